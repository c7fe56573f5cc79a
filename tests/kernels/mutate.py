"""`make kernels-mutations`: edits that break a kernel, each of which a test must catch. Prints which did; exit code 1 for a survivor.

Each edit is made in a copy of the tree, and the kernel's tests run there in the interpreter. Takes some minutes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Kernel's file -> (what, text, what it becomes).
EDITS: dict[str, list[tuple[str, str, str]]] = {
    "rms_norm_int8": [
        (
            "a mask deleted",
            "x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0)",
            "x = tl.load(x_ptr + row * x_stride + columns)",
        ),
        ("a store's mask deleted", "quantized(y, inverse), mask=inside)", "quantized(y, inverse))"),
        ("another stride", "row * x_stride + columns", "row * hidden + columns"),
        ("the sum not stored", "tl.store(total_ptr + row * hidden + columns, x, mask=inside)", "pass"),
        (
            "the sum not rounded",
            "narrow(x.to(tl.float32) + residual.to(tl.float32), x.dtype)",
            "x.to(tl.float32) + residual.to(tl.float32)",
        ),
    ],
    "silu_mul_int8": [
        ("the halves swapped", "gate / (1.0 + tl.exp(-gate)) * up", "up / (1.0 + tl.exp(-up)) * gate"),
        ("another stride", "row * x_stride + columns", "row * intermediate * 2 + columns"),
    ],
    "gemm_w8a8_decode": [
        ("sums in float", "split, tl.int32, EVEN_K", "split, tl.float32, EVEN_K"),
    ],
    "gemm_w8a8_prefill": [
        ("rows of a last group", "high = tl.minimum(tiles_m - group * GROUP, GROUP)", "high = GROUP"),
        (
            "one tile a program",
            "tl.range(tl.program_id(0), tiles_m * tiles_n, tl.num_programs(0))",
            "tl.range(tl.program_id(0), tl.program_id(0) + 1, 1)",
        ),
    ],
    "attention_kv_int8": [
        ("tokens beyond the end", 'tl.where(inside[None, :], scores, float("-inf"))', "scores"),
        ("the parts' maximum", "kept = tl.exp2(top - new_top)", "kept = tl.exp2(top - top)"),
        ("scales swapped", "tl.load(value_scales_ptr + scale_at", "tl.load(key_scales_ptr + scale_at"),
        ("another distance of scales", "scale_at = page * scales_stride", "scale_at = page * (scales_stride + 4)"),
        ("pages in order", "row = page * page_stride", "row = (token // PAGE_TOKENS) * page_stride"),
    ],
    "rope_kv_int8": [
        ("slot -1 written", "if slot < 0:", "if slot < -1:"),
        ("a sign", "x1 * cos - x2 * sin", "x1 * cos + x2 * sin"),
        ("the rest's magnitude", "top = tl.maximum(top, top_bits(rest))", "pass"),
    ],
    "lora": [
        ("another's adapter", "(adapter * n + column[None, :]) * RANK", "column[None, :] * RANK"),
        ("tokens of the next", "mine = place < tl.load(starts_ptr + segment + 1)", "mine = place >= 0"),
    ],
    "llm_int8": [
        ("outliers decide the scale", "top_bits(tl.where(counts, x, 0.0))", "top_bits(x)"),
    ],
    "sample": [
        (
            "a mask deleted",
            'tl.load(row_ptr + tokens, mask=tokens < vocab, other=float("-inf"))',
            "tl.load(row_ptr + tokens)",
        ),
        ("equals at an edge left out", "kept = _image(x) >= edge", "kept = _image(x) > edge"),
        (
            "top-p of all, not of the top k",
            "top_p * _mass(row_ptr, vocab, low,",
            "top_p * _mass(row_ptr, vocab, low * 0 + _LOWEST,",
        ),
    ],
    "../tall": [
        ("a scale left out", "return y * tl.load(weight_scales_ptr", "return y + 0.0 * tl.load(weight_scales_ptr"),
        ("a count not cleared", "tl.store(arrival_ptr, 0)", "pass"),
        ("the last part left out", "for part in range(SPLITS):", "for part in range(SPLITS - 1):"),
        ("a k mask deleted", "mask=inside[:, None], other=0)", "other=0)"),
    ],
    "../rows": [
        ("a NaN forgotten", "finite = top < _INFINITY_BITS", "finite = top >= 0"),
        ("truncation", "rounded = (ratio + _ROUNDER) - _ROUNDER", "rounded = ratio"),
    ],
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, metavar="FILE", help="write what caught each")
    arguments = parser.parse_args()
    if gone := list(stale()):
        print("\n".join(gone))
        return 1
    caught = {}
    with tempfile.TemporaryDirectory(prefix="burrstone-mutations-") as scratch:
        copy = Path(scratch) / "tree"
        shutil.copytree(
            ROOT,
            copy,
            symlinks=True,
            ignore=shutil.ignore_patterns(".venv*", ".triton", ".git", "__pycache__", ".mypy_cache"),
        )
        for name, edits in EDITS.items():
            for what, old, new in edits:
                told = f"{name.removeprefix('../')}: {what}"
                caught[told] = _caught_by(copy, name, old, new)
                print(f"{told}: {caught[told] or 'SURVIVED'}", flush=True)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(caught, indent=2) + "\n")
    return 0 if all(caught.values()) else 1


def stale() -> Iterator[str]:
    """Edits that fit nowhere any more."""
    for name, edits in EDITS.items():
        text = _file(ROOT, name).read_text()
        yield from (
            f"{name}: {what}: there is no {old!r}; bring it up to date" for what, old, _ in edits if old not in text
        )


def _file(tree: Path, name: str) -> Path:
    return (tree / "kernels" / "ops" / f"{name}.py").resolve()


def _caught_by(tree: Path, name: str, old: str, new: str) -> str | None:
    """The first test that fails with the edit, or None."""
    file = _file(tree, name)
    text = file.read_text()
    file.write_text(text.replace(old, new))
    try:
        tests = tree / "tests" / "kernels" / "interpreted"
        target = tests / f"test_{name}.py" if (tests / f"test_{name}.py").exists() else tests
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-x",
            "-p",
            "no:cacheprovider",
            "--timeout",
            "300",
            str(target),
        ]
        environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(tree / ".links"), "PYTHONSAFEPATH": "1"}
        run = subprocess.run(command, check=False, env=environment, cwd=tree, capture_output=True, text=True)
        failed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        told = failed[0].partition("::")[2].partition(" - ")[0] if failed else "the process dies"
        return told if run.returncode else None
    finally:
        file.write_text(text)


if __name__ == "__main__":
    sys.exit(main())
