"""Charts as inline SVG: lines over steps or recall, and bars. Each has a title that a screen reader speaks."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from .html import tag, text
from .style import COLOURS, DASHES

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 34
"""Margins around the plot, for ticks and the name of the axis."""
POINTS = 240
"""Most points of a line: more than a screen shows, and the page stays small."""


@dataclass(frozen=True)
class Line:
    """One line of a chart; points where y is not finite are left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    """Position in `COLOURS`, and of the dashes after one round of them; -1: grey."""
    dashed: bool = False
    faint: bool = False
    """Behind a line of the same colour that says more."""


def line_chart(title: str, lines: Sequence[Line], *, x_name: str, y_range: tuple[float, float] | None = None) -> str:
    """A figure. y_range: what the axis shows at least; otherwise what the lines need."""
    points = [list(_points(line)) for line in lines]
    flat = [point for one in points for point in one]
    if not flat:
        return ""
    xs, ys = [x for x, _ in flat], [y for _, y in flat]
    x_axis = _Axis(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_axis = _Axis(*(y_range or _padded(min(ys), max(ys))), HEIGHT - BOTTOM, TOP)
    drawn = [*_grid(x_axis, y_axis, x_name)]
    for line, one in zip(lines, points, strict=True):
        path = " ".join(f"{x_axis.at(x):.1f},{y_axis.at(y):.1f}" for x, y in one)
        dash = "4 3" if line.dashed else stroke_dash(line.colour)
        drawn.append(tag("polyline", points=path, fill="none", stroke=colour(line.colour), stroke_width=1.8,
                         stroke_linejoin="round", stroke_dasharray=dash or None,
                         opacity=0.3 if line.faint else None))  # fmt: skip
    names = ", ".join(dict.fromkeys(line.name for line in lines))
    return figure(title, f"{title}: {names}", drawn, HEIGHT)


def smoothed(line: Line, span: int = 20) -> list[Line]:
    """A noisy line, faint, and its running mean over `span` points; the line alone where it is short."""
    if len(line.y) < 2 * span:
        return [line]
    width = range(len(line.y))
    means = [sum(line.y[max(0, n - span + 1) : n + 1]) / min(span, n + 1) for n in width]
    return [replace(line, faint=True), replace(line, y=means)]


def bar_chart(title: str, names: Sequence[str], groups: Sequence[tuple[int, Sequence[float | None]]]) -> str:
    """A figure of horizontal bars from zero, `names` from top to bottom. groups: (colour, a value for each name)."""
    values = [value for _, group in groups for value in group if value is not None]
    if not values:
        return ""
    thick, gap, left = 13, 12, 104
    axis = _Axis(min(0.0, *values), max(0.1, *values), left, WIDTH - 46)
    drawn: list[str] = []
    y = 6
    for row, name in enumerate(names):
        middle = y + len(groups) * thick / 2
        drawn.append(tag("text", text(name), x=left - 8, y=round(middle + 4, 1), text_anchor="end"))
        for paint, group in groups:
            if (value := group[row]) is not None:
                start, end = sorted((axis.at(0), axis.at(value)))
                drawn.append(tag("rect", x=round(start, 1), y=y, width=round(max(end - start, 1), 1), height=thick - 2,
                                 fill=colour(paint)))  # fmt: skip
                drawn.append(tag("text", f"{value:+.1f}", x=round(end + 4, 1), y=y + thick - 3))
            y += thick
        y += gap
    return figure(title, f"{title}: {', '.join(names)}", drawn, y)


def swatch(paint: int) -> str:
    """A short piece of a run's line, for a legend."""
    line = tag("line", x1=0, y1=6, x2=28, y2=6, stroke=colour(paint), stroke_width=4,
               stroke_dasharray=stroke_dash(paint) or None)  # fmt: skip
    return tag("svg", line, width=28, height=12, aria_hidden="true")


def colour(position: int) -> str:
    """Of a run."""
    return "#6b7280" if position < 0 else COLOURS[position % len(COLOURS)]


def stroke_dash(position: int) -> str:
    """Of a run's line."""
    return DASHES[max(0, position) // len(COLOURS) % len(DASHES)]


def figure(caption: str, spoken: str, drawn: Sequence[str], height: float) -> str:
    """SVG elements under a caption."""
    svg = tag("svg", *drawn, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=spoken)
    return tag("figure", tag("figcaption", text(caption)), svg)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers from `low` to `high`."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(step * power for step in (1, 2, 2.5, 5, 10) if step * power >= raw * 0.8)
    first = math.ceil(low / step - 1e-9)
    return [round(n * step, 12) for n in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick in few characters."""
    if value and abs(value) < 1e-3:
        return f"{value:.0e}".replace("e-0", "e-")
    if abs(value) >= 10000:
        return f"{value / 1000:g}k"
    return f"{value:g}"


@dataclass(frozen=True)
class _Axis:
    """From numbers to places in the figure."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1.0) * (self.end - self.start)


def _grid(x_axis: _Axis, y_axis: _Axis, x_name: str) -> list[str]:
    drawn: list[str] = []
    for value in ticks(y_axis.low, y_axis.high):
        y = round(y_axis.at(value), 1)
        drawn.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, stroke="#d5d9df"))
        drawn.append(tag("text", label(value), x=LEFT - 6, y=round(y + 4, 1), text_anchor="end"))
    for value in ticks(x_axis.low, x_axis.high, 4):
        x = round(x_axis.at(value), 1)
        drawn.append(tag("text", label(value), x=x, y=HEIGHT - BOTTOM + 15, text_anchor="middle"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(tag("text", text(x_name), x=middle, y=HEIGHT - 4, text_anchor="middle"))
    return drawn


def _points(line: Line) -> list[tuple[float, float]]:
    """Means of neighbours, at most `POINTS` of them."""
    finite = [(x, y) for x, y in zip(line.x, line.y, strict=True) if math.isfinite(y)]
    size = max(1, math.ceil(len(finite) / POINTS))
    parts = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def _padded(low: float, high: float) -> tuple[float, float]:
    margin = 0.05 * (high - low) or abs(high) or 1.0
    return (0.0 if 0 <= low < 0.5 * high else low - margin), high + margin
