"""What a run found, as a table and as a roofline."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from burrstone.kernels.measure.files import write_whole

REHEARSAL = "rehearsal on a CPU: no figure means anything"
_COLOURS = (
    "#0969da",
    "#bc4c00",
    "#1a7f37",
    "#8250df",
    "#bf3989",
    "#6e7781",
    "#b3261e",
    "#3f7d8c",
    "#a67c00",
    "#444c56",
)
_MARKS = "osD^vP*Xph"


def write_report(results: dict[str, Any], file: Path) -> list[str]:
    """The table, and the picture where matplotlib is, beside `file`, the results. Returns what to tell. Raises OSError."""
    write_whole(file.with_suffix(".md"), table(results))
    written = [f"{file.with_suffix('.md')} written"]
    if not results["cases"]:
        return [*written, "no roofline: nothing was timed"]
    try:
        picture = roofline(results)
    except ImportError:
        return [
            *written,
            f"no roofline: matplotlib is not installed; `burrstone kernels report {file}` draws it elsewhere",
        ]
    write_whole(file.with_suffix(".png"), picture)
    return [*written, f"{file.with_suffix('.png')} written"]


def table(results: dict[str, Any]) -> str:
    return "\n".join(_lines(results)) + "\n"


def _lines(results: dict[str, Any]) -> Iterator[str]:
    yield "# Kernels, measured"
    yield ""
    if results["rehearsal"]:
        yield f"**{REHEARSAL}.**"
        yield ""
    yield (
        f"{results['device']} ({results['arch']}), driver {results['driver'] or 'unknown'}, PyTorch {results['torch']}, "
        f"Triton {results['triton']}, {results['date']}, seed {results['seed']}, {results['spent_s']:.0f} s."
        + ("" if results["complete"] else " **The run was stopped: what follows is a part.**")
    )
    if ceilings := results["ceilings"]:
        yield ""
        yield (
            f"Ceilings, measured in the same run: copy {ceilings['copy_gb_s']:.0f} GB/s, INT8 {ceilings['int8_top_s']:.0f} TOP/s, "
            f"bfloat16 {ceilings['bf16_top_s']:.0f} TFLOP/s; a launch {ceilings['launch_us']:.2f} us."
        )
    yield from _section("Correctness", ("Kernel", "Shapes checked", "Result"), _correctness(results))
    yield from _section(
        "Time",
        ("Kernel", "Shape", "us", "IQR", "A/A", "Of the ceiling", "Best peer", "Ratio", "Goal", "Reached"),
        (_case(row) for row in results["cases"]),
    )
    yield from _section(
        "Peers",
        ("Kernel", "Peer", "Shapes", "Geometric mean", "Goal"),
        (
            (row["kernel"], row["peer"], row["shapes"], f"{row['ratio']:.2f}x", _goal(row))
            for row in results["geomeans"]
        ),
    )
    yield from _section("Absent peers", ("Kernel", "Peer", "Why"), _absent(results))
    yield from _section(
        "Misses",
        ("Kernel", "Shape", "Why"),
        ((r["kernel"], r["shape"], r["reason"]) for r in results["cases"] if r["ok"] is False),
    )
    yield from _section(
        "Cut for want of time",
        ("Kernel", "Shape", "What"),
        ((row["kernel"], row["shape"], row["what"]) for row in results["cut"]),
    )


def _section(title: str, header: tuple[str, ...], rows: Any) -> Iterator[str]:
    """Nothing where there are no rows."""
    lines = [" | ".join(str(value).replace("|", "\\|").replace("\n", " ") for value in row) for row in rows]
    if lines:
        yield from ("", f"## {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}")
        yield from (f"| {line} |" for line in lines)


def _correctness(results: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    for name, row in results["correctness"].items():
        faults = "; ".join(f"{fault['shape']}: {fault['what']}" for fault in row["wrong"])
        yield (
            name,
            row["checked"],
            f"**wrong**: {faults}" if faults else "right" if row["ok"] else "not all was checked",
        )


def _case(row: dict[str, Any]) -> tuple[Any, ...]:
    reached = {True: "yes", False: "**no**", None: "not judged"}[row["ok"]]
    ratio = f"{row['ratio']:.2f}x" if row["ratio"] is not None else ""
    figures = (
        f"{row['us']:.2f}",
        f"{row['iqr_us']:.2f}",
        f"{row['noise']:.1%}",
        f"{row['fraction']:.0%} ({row['bound']})",
    )
    return (row["kernel"], row["shape"], *figures, row["best_peer"] or "", ratio, row["goal"] or "", reached)


def _goal(row: dict[str, Any]) -> str:
    return "" if row["goal"] is None else f"{row['goal']:g}x, {'reached' if row['ok'] else 'missed'}"


def _absent(results: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each once, with the reason of the first shape that has it."""
    seen: dict[tuple[str, str], str] = {}
    for row in results["cases"]:
        for peer, reason in row["absent"].items():
            seen.setdefault((row["kernel"], peer), reason)
    return ((kernel, peer, reason) for (kernel, peer), reason in seen.items())


def roofline(results: dict[str, Any]) -> bytes:
    """PNG. Raises ImportError where matplotlib is not installed."""
    from matplotlib.figure import Figure

    cases, ceilings = results["cases"], results["ceilings"]
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots()
    intensities = [row["operations"] / row["bytes"] for row in cases]
    ends = (min(intensities) / 3, max(*intensities, ceilings["int8_top_s"] * 1e3 / ceilings["copy_gb_s"]) * 3)
    for name, top, style in (("INT8", ceilings["int8_top_s"], "-"), ("bfloat16", ceilings["bf16_top_s"], "--")):
        knee = top * 1e3 / ceilings["copy_gb_s"]
        xs = sorted((*ends, min(max(knee, ends[0]), ends[1])))
        ys = [min(top, x * ceilings["copy_gb_s"] / 1e3) for x in xs]
        axes.plot(xs, ys, style, color="#444c56", linewidth=1, label=f"measured ceiling, {name}")
    names = list(dict.fromkeys(row["kernel"] for row in cases))
    for index, name in enumerate(names):
        mine = [row for row in cases if row["kernel"] == name]
        axes.plot(
            [row["operations"] / row["bytes"] for row in mine],
            [row["operations"] / row["us"] / 1e6 for row in mine],
            _MARKS[index % len(_MARKS)],
            color=_COLOURS[index % len(_COLOURS)],
            label=name,
        )
    axes.set(xscale="log", yscale="log", xlabel="operations per byte", ylabel="TOP/s or TFLOP/s")
    title = f"{results['device']}, Triton {results['triton']}, {results['date']}"
    axes.set_title(REHEARSAL if results["rehearsal"] else title)
    axes.grid(linewidth=0.4, which="both")
    axes.legend(fontsize=8)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=150)
    return drawn.getvalue()
