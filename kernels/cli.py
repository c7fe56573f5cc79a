"""`burrstone kernels`: flags only. What they do is loaded when it is asked for, so that other commands need not wait."""

import argparse
import importlib.util
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

_DESCRIPTION = """\
The Triton kernels of the INT8 path.

  burrstone kernels list       what there is, and what each computes
  burrstone kernels check      compile all of it for every GPU that is supported; needs no GPU
  burrstone kernels bench      on a GPU: is each right, and how fast beside its peers; a rehearsal elsewhere
  burrstone kernels tune       on a GPU: try tiles, and keep the fastest of each shape
  burrstone kernels report     the table and the roofline of a bench's results"""
# Under nine minutes, with what the start of a process takes.
_BUDGET_S = 500.0


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "kernels",
        help="the INT8 kernels: list them, compile them for every GPU, measure them",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_actions(parser)


def _add_actions(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("list", help="what there is")
    listing.add_argument("--json", action="store_true")
    listing.set_defaults(run=_list)
    check = actions.add_parser(
        "check",
        help="compile every kernel for every GPU architecture",
        description="Compile every kernel, in every way it is launched, for each architecture, and refuse spilled registers, "
        "too much shared memory, missing tensor-core instructions and loads of single bytes; compare with the golden "
        "figures of this Triton. Exit code 1 on any failure.",
    )
    check.add_argument("--json", action="store_true")
    check.add_argument(
        "--processes", type=_count, default=os.cpu_count() or 1, metavar="N", help="at once [%(default)s]"
    )
    check.add_argument("--update-golden", action="store_true", help="write this Triton's golden figures")
    check.set_defaults(run=_check)
    _add_bench(actions)
    _add_tune(actions)
    report = actions.add_parser("report", help="the table and the roofline of a bench's results")
    report.add_argument(
        "results", type=Path, metavar="FILE", help="what `bench --out` wrote; both are written beside it"
    )
    report.set_defaults(run=_report)


def _add_bench(actions: Any) -> None:
    bench = actions.add_parser(
        "bench",
        help="check and time the kernels on this GPU",
        description="On the GPU that is here: whether each kernel computes what float64 does; what a copy and matrix products "
        "reach; how fast each kernel is beside its peers. Exit code 1 where a kernel is wrong; it is not timed then.",
    )
    bench.add_argument("--out", type=Path, metavar="FILE.json", help="write results here, table and roofline beside it")
    _add_common(bench, "a kernel")
    bench.add_argument("--quick", action="store_true", help="two shapes of each kernel")
    bench.add_argument("--check-only", action="store_true", help="whether they are right, and no timing")
    bench.add_argument("--no-graph", action="store_true", help="check without replaying a CUDA graph")
    bench.add_argument("--sanitizer", action="store_true", help="small shapes under compute-sanitizer first")
    bench.set_defaults(run=_bench)


def _add_tune(actions: Any) -> None:
    tune = actions.add_parser(
        "tune",
        help="find the fastest tiles on this GPU",
        description="On the GPU that is here: compile tiles for the products of Llama 3.1 8B, compare each with float64, time "
        "those that are right, and write the fastest into the kernels' tables. Ctrl-C keeps what is found. Exit code 1 where a "
        "shape was not tuned.",
    )
    tune.add_argument("--out", type=Path, metavar="FOLDER", help="write tables here [the kernels' own]")
    _add_common(tune, "a kernel that has a table")
    tune.add_argument(
        "--candidates", type=_count, default=32, metavar="N", help="tiles to try at a shape [%(default)s]"
    )
    tune.add_argument(
        "--processes",
        type=_count,
        default=min(8, os.cpu_count() or 1),
        metavar="N",
        help="that compile at once [%(default)s]",
    )
    tune.set_defaults(run=_tune)


def _add_common(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help=f"{what}; may be given again [all]")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="cpu: a rehearsal, with tiny shapes [cuda]"
    )
    parser.add_argument(
        "--budget-s", type=_seconds, default=_BUDGET_S, metavar="S", help="how long it may take [%(default)g]"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="of the inputs [random, and told]")
    parser.add_argument(
        "--vllm-library",
        type=Path,
        metavar="FILE",
        help="the library of vLLM's wheel that registers torch.ops._C, for its kernels as peers",
    )


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"{text} is none: at least 1")
    return count


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is no time: seconds, more than 0")
    return seconds


def _bench(arguments: argparse.Namespace) -> int:
    from burrstone.kernels.measure.commands import run_bench, run_told

    return run_told(run_bench, arguments)


def _tune(arguments: argparse.Namespace) -> int:
    from burrstone.kernels.measure.commands import run_told, run_tune

    return run_told(run_tune, arguments)


def _report(arguments: argparse.Namespace) -> int:
    from burrstone.kernels.measure.commands import run_report, run_told

    return run_told(run_report, arguments)


def _list(arguments: argparse.Namespace) -> int:
    from burrstone.kernels.registry import KERNELS

    told = {name: (module.__doc__ or "").partition("\n")[0] for name, module in KERNELS.items()}
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        print("\n".join(f"{name:20}{text}" for name, text in told.items()))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    # Triton would interpret the kernels, and there would be nothing to compile.
    os.environ.pop("TRITON_INTERPRET", None)
    from burrstone.kernels.check import check, golden_file

    told, figures = check(arguments.processes)
    if arguments.update_golden:
        golden_file().write_text(json.dumps(figures, indent=1, sort_keys=True) + "\n")
        told["failures"] = [failure for failure in told["failures"] if "--update-golden" not in failure]
    if arguments.json:
        print(json.dumps(told, indent=2))
    else:
        print(
            f"Triton {told['triton']}: {told['kernels']} kernels, {told['configs']} configurations, {told['compiled']} compiled"
        )
        print("\n".join(told["failures"]) or "no failures")
    return 1 if told["failures"] else 0


def main(argv: list[str] | None = None) -> int:
    """These commands without the rest of burrstone, for a machine that has PyTorch and Triton alone."""
    parser = argparse.ArgumentParser(
        prog="python -m burrstone.kernels.cli",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_actions(parser)
    arguments = parser.parse_args(argv)
    if missing := [name for name in ("torch", "triton") if importlib.util.find_spec(name) is None]:
        print(
            f"burrstone: {sys.executable} has no {missing[0]}; call a Python that has PyTorch and Triton "
            "(make test-gpu GPU_PYTHON=/path/to/python)",
            file=sys.stderr,
        )
        return 2
    try:
        code: int = arguments.run(arguments)
    except KeyboardInterrupt:
        print("burrstone: stopped", file=sys.stderr)
        return 130
    return code


if __name__ == "__main__":
    sys.exit(main())
