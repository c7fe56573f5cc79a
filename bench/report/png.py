"""The report's charts as pictures, for READMEs. Loads matplotlib, which nothing else does."""

from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from burrstone.batching.sim.report.plots import NUM_COLOURS, Series, number
from burrstone.bench.files import whole_file
from burrstone.bench.report.drawings import Drawing

# The page's, in light.
_COLOURS = ("#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#6e7781")
_GOAL = "#b3261e"


def write_pngs(folder: Path, drawings: Iterable[Drawing]) -> list[Path]:
    """One file a drawing. Raises UsageError where they cannot be written."""
    written = []
    for drawing in drawings:
        file = folder / f"{drawing.file.replace('/', '-')}.png"
        with whole_file(file) as scratch:
            _figure(drawing).savefig(scratch, format="png", dpi=150)
        written.append(file)
    return written


def _figure(drawing: Drawing) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes: Axes = figure.subplots()
    for index, series in enumerate(drawing.series):
        if len(series.x):
            _draw(axes, series, index)
    for axis, scale, limits, own, line in (
        (drawing.x_axis, axes.set_xscale, axes.set_xlim, axes.xaxis, axes.axvline),
        (drawing.y_axis, axes.set_yscale, axes.set_ylim, axes.yaxis, axes.axhline),
    ):
        if axis.log:
            scale("log")
        own.set_major_formatter(
            PercentFormatter(1.0) if axis.percent else FuncFormatter(lambda value, _: number(value))
        )
        own.set_minor_formatter(NullFormatter())
        limits(axis.low, axis.high)
        if axis.goal is not None:
            line(axis.goal, color=_GOAL, linestyle="--", linewidth=1)
    axes.set(title=drawing.title, xlabel=drawing.x_axis.label, ylabel=drawing.y_axis.label)
    axes.grid(linewidth=0.4)
    axes.legend()
    return figure


def _draw(axes: Axes, series: Series, index: int) -> None:
    colour, dashed = _COLOURS[index % NUM_COLOURS], index // NUM_COLOURS % 2
    style, marker = "--" if dashed else "-", "o" if series.dots else None
    where = "steps-post" if series.steps else "default"
    axes.plot(series.x, series.y, style, color=colour, marker=marker, drawstyle=where, label=series.name)
    if series.low is not None and series.high is not None:
        axes.fill_between(series.x, series.low, series.high, color=colour, alpha=0.15, linewidth=0)
