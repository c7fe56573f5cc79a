"""Charts as inline SVG. Colours are the page's own (CSS classes s0, s1, ...), so one drawing serves light, dark and print."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

# In units of the drawing, which fills its column: about one pixel each on a phone.
WIDTH, HEIGHT = 420, 270
LEFT, RIGHT, TOP, BOTTOM = 50, 12, 10, 40
NUM_COLOURS = 6
MAX_POINTS = 240


@dataclass(frozen=True, slots=True)
class Series:
    """One line. `low` and `high` are a band around it; `steps` holds each value until the next; `dots` marks them."""

    name: str
    x: Floats
    y: Floats
    low: Floats | None = None
    high: Floats | None = None
    steps: bool = False
    dots: bool = False


@dataclass(frozen=True, slots=True)
class Axis:
    """`goal` draws a dashed line across at this value. Bounds are those of the data where none are given."""

    label: str
    log: bool = False
    low: float | None = None
    high: float | None = None
    percent: bool = False
    goal: float | None = None


def chart(series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> str:
    """The SVG of these lines; a word that says so where there is nothing to draw."""
    shown = [s for s in (_finite(s, x_axis, y_axis) for s in series) if len(s.x)]
    if not shown:
        return '<p class="none">no data</p>'
    x_scale = _Scale.of(x_axis, [s.x for s in shown], LEFT, WIDTH - RIGHT)
    bands = [edge for s in shown for edge in (s.low, s.high) if edge is not None]
    y_scale = _Scale.of(y_axis, [s.y for s in shown] + bands, HEIGHT - BOTTOM, TOP)
    label = escape(f"{y_axis.label} over {x_axis.label}: {', '.join(s.name for s in series)}", quote=True)
    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    parts += _grid(x_scale, y_scale)
    parts += [f'<text class="name" x="{(LEFT + WIDTH - RIGHT) / 2:.0f}" y="{HEIGHT - 5}">{escape(x_axis.label)}</text>']
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts += [
        f'<text class="name" transform="translate(11 {middle:.0f}) rotate(-90)">{escape(y_axis.label)}</text>',
    ]
    colour_of = {s.name: colour(index) for index, s in enumerate(series)}
    for s in shown:
        parts += _line(s, colour_of[s.name], x_scale, y_scale)
    return "".join([*parts, "</svg>"])


def legend(names: Sequence[str]) -> str:
    """The names of lines beside their colours, as HTML that wraps."""
    swatch = '<svg class="swatch" viewBox="0 0 26 8" aria-hidden="true"><path class="line {}" d="M1 4H25"/></svg>'
    items = [f"<li>{swatch.format(colour(index))}{escape(name)}</li>" for index, name in enumerate(names)]
    return f'<ul class="legend">{"".join(items)}</ul>'


def colour(index: int) -> str:
    """CSS classes of the index-th line; after the last colour they come again, dashed."""
    dashed = " dashed" if index // NUM_COLOURS % 2 else ""
    return f"s{index % NUM_COLOURS}{dashed}"


def cdf(name: str, values: Floats) -> Series:
    """Share of the values at or below x; values that are not finite count, and are never reached."""
    size = len(values)
    known = np.sort(values[np.isfinite(values)])
    if len(known) == 0:
        return Series(name, np.empty(0), np.empty(0))
    # Denser towards the tail, which is what such a plot is read for.
    shares = np.concatenate([np.linspace(0.0, 0.9, 120), 1.0 - np.geomspace(0.1, 1.0 / len(known), 80), [1.0]])
    places = np.unique(np.clip((shares * (len(known) - 1)).round().astype(int), 0, len(known) - 1))
    return Series(name, known[places], (places + 1) / size)


def number(value: float) -> str:
    """Three digits, without an exponent where one can do without: 0.0123, 12.3, 1,230, 12.3 M."""
    if not math.isfinite(value):
        return "-"
    size = abs(value)
    for bound, unit in ((1e9, " G"), (1e6, " M")):
        if size >= bound:
            return f"{value / bound:.3g}{unit}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if size >= 1e-4 or value == 0 else f"{value:.1e}"


def seconds(value: float) -> str:
    """Milliseconds below ten, so that a column of them lines up; - for never."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


@dataclass(frozen=True, slots=True)
class _Scale:
    axis: Axis
    low: float
    high: float
    start: float
    end: float

    @classmethod
    def of(cls, axis: Axis, data: Sequence[Floats], start: float, end: float) -> "_Scale":
        values = np.concatenate(data)
        low = float(values.min()) if axis.low is None else axis.low
        high = float(values.max()) if axis.high is None else axis.high
        if axis.goal is not None:
            low, high = min(low, axis.goal), max(high, axis.goal)
        size = max(abs(low), abs(high))
        if high - low <= 1e-9 * size or size == 0:
            low, high = (low / 2, low * 2) if axis.log else (low - max(0.5, size), low + max(0.5, size))
        return cls(axis, low, high, start, end)

    def __call__(self, values: Floats) -> Floats:
        low, high = self.low, self.high
        if self.axis.log:
            values, low, high = np.log(values), math.log(low), math.log(high)
        share = (values - low) / (high - low)
        return self.start + np.clip(share, 0.0, 1.0) * (self.end - self.start)

    def ticks(self) -> Iterator[tuple[float, str]]:
        """Position and text."""
        for value in _log_ticks(self.low, self.high) if self.axis.log else _ticks(self.low, self.high):
            text = f"{100 * value:.3g} %" if self.axis.percent else number(value)
            yield float(self(np.array([value]))[0]), text


def _ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 2.5, 5, 10) if factor * unit >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{index * step:.9g}") for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 2, 5) if math.log10(high / low) < 2.5 else (1,)
    found = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
    return inside if len(inside) > 1 else [value for value in _ticks(low, high) if value > 0]


def _finite(series: Series, x_axis: Axis, y_axis: Axis) -> Series:
    keep = np.isfinite(series.x) & np.isfinite(series.y)
    if x_axis.log:
        keep &= series.x > 0
    if y_axis.log:
        keep &= series.y > 0
    rows = np.flatnonzero(keep)
    if len(rows) > MAX_POINTS:
        rows = rows[np.unique(np.linspace(0, len(rows) - 1, MAX_POINTS).astype(int))]
    low = None if series.low is None else series.low[rows]
    high = None if series.high is None else series.high[rows]
    return Series(series.name, series.x[rows], series.y[rows], low, high, series.steps, series.dots)


def _grid(x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for y, text in y_scale.ticks():
        yield f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>'
        yield f'<text class="y" x="{LEFT - 5}" y="{y + 4:.1f}">{text}</text>'
    room = -math.inf
    for x, text in x_scale.ticks():
        yield f'<path class="grid" d="M{x:.1f} {TOP}V{bottom}"/>'
        half = 3.2 * len(text)
        if x - half > room:
            yield f'<text class="x" x="{min(x, WIDTH - half):.1f}" y="{bottom + 16}">{text}</text>'
            room = x + half + 4
    if x_scale.axis.goal is not None:
        yield f'<path class="goal" d="M{float(x_scale(np.array([x_scale.axis.goal]))[0]):.1f} {TOP}V{bottom}"/>'
    if y_scale.axis.goal is not None:
        yield f'<path class="goal" d="M{LEFT} {float(y_scale(np.array([y_scale.axis.goal]))[0]):.1f}H{right}"/>'
    yield f'<path class="frame" d="M{LEFT} {TOP}V{bottom}H{right}"/>'


def _line(series: Series, colour: str, x_scale: _Scale, y_scale: _Scale) -> Iterator[str]:
    x, y = x_scale(series.x), y_scale(series.y)
    if series.low is not None and series.high is not None:
        low, high = y_scale(series.low), y_scale(series.high)
        points = [*zip(x, high, strict=True), *zip(x[::-1], low[::-1], strict=True)]
        yield f'<path class="band {colour}" d="M{"L".join(f"{px:.1f} {py:.1f}" for px, py in points)}Z"/>'
    path = f"M{x[0]:.1f} {y[0]:.1f}"
    for px, py in zip(x[1:], y[1:], strict=True):
        path += f"H{px:.1f}V{py:.1f}" if series.steps else f"L{px:.1f} {py:.1f}"
    yield f'<path class="line {colour}" d="{path}"><title>{escape(series.name)}</title></path>'
    if series.dots:
        for px, py, value_x, value_y in zip(x, y, series.x, series.y, strict=True):
            told = f"{series.name}: {number(float(value_x))}, {number(float(value_y))}"
            yield f'<circle class="dot {colour}" cx="{px:.1f}" cy="{py:.1f}" r="3"><title>{escape(told)}</title></circle>'
