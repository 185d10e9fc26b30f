"""Charts of a page as inline SVG, whose colours follow the page's: pure functions of numbers.

Each is a figure with a legend below it; what it shows stands in words too, for those who don't see it. Points that are
not finite are left out, and long series thinned, so that a chart's size is bounded.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

WIDTH, NARROW, HEIGHT = 440, 300, 240
_RIGHT, _TOP, _BOTTOM = 16, 8, 36
_MOST_POINTS = 240
_DOTS_UP_TO = 40  # where more points stand, dots would hide the line
_COLOURS = 6  # as many as page_style has classes for
_WIDEST_LINEAR = 200  # the largest ratio of values that is drawn on a linear axis
_LETTER = 8.2  # width of a letter in the SVG's units, where a narrow page enlarges it


@dataclass(frozen=True)
class Series:
    """A line: its name, and as many places as values, in order."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Interval:
    """A value between two others, by name; the one that is `chosen` stands out."""

    name: str
    low: float
    value: float
    high: float
    chosen: bool = False


@dataclass(frozen=True)
class LineChart:
    """What a chart of lines shows.

    Attributes:
        x_name: below the axis.
        marks: places on the x axis at which something changes, drawn as dashed lines.
        from_zero: whether the y axis begins at 0 where it's linear.
        logarithmic: whether the y axis may be logarithmic, and is where values differ widely.
        narrow: for a third of the page instead of a half.
    """

    title: str
    x_name: str
    series: Sequence[Series]
    marks: Sequence[float] = field(default=())
    from_zero: bool = False
    logarithmic: bool = False
    narrow: bool = False


def lines(chart: LineChart) -> str:
    """A chart of lines as HTML; empty where no value is finite."""
    drawn = [(place, _thinned(_finite(one))) for place, one in enumerate(chart.series)]
    drawn = [(place, one) for place, one in drawn if one.x]
    if not drawn:
        return ""
    xs, ys = [x for _, one in drawn for x in one.x], [y for _, one in drawn for y in one.y]
    # a start that exploded would flatten all that follows
    logarithmic = chart.logarithmic and min(ys) > 0 and max(ys) > _WIDEST_LINEAR * min(ys)
    width = NARROW if chart.narrow else WIDTH
    low, high = min(ys), max(ys)
    if logarithmic:
        ticks = _decades(low, high)
        low, high = math.log10(low), math.log10(high)
    else:
        low = min(low, 0.0) if chart.from_zero else low
        ticks = nice_ticks(low, high)
        low, high = min(low, ticks[0]), max(high, ticks[-1])
    up = _Scale(low, high, HEIGHT - _BOTTOM, _TOP)
    left = 8 + _LETTER * max(len(_number(tick)) for tick in ticks)
    across = _Scale(min(xs), max(xs), left, width - _RIGHT)

    def height(y: float) -> float:
        return up(math.log10(y) if logarithmic else y)

    parts = [_grid_line(height(tick), _number(tick), left, width - _RIGHT) for tick in ticks]
    whole = all(float(x).is_integer() for x in xs)
    parts += [_x_tick(across(tick), _number(tick)) for tick in nice_ticks(min(xs), max(xs), whole=whole, most=6)]
    parts += [f'<path class="mark" d="M{across(x):.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>' for x in chart.marks]
    parts += [_line(place, one, across, height) for place, one in drawn]
    parts.append(
        f'<text x="{(left + width - _RIGHT) / 2:.1f}" y="{HEIGHT - 4}" text-anchor="middle">'
        f"{html.escape(chart.x_name)}</text>"
    )
    words = "; ".join(_in_words(one, chart.x_name) for _, one in drawn)
    names = [(place, one.name) for place, one in drawn] if len(chart.series) > 1 else []  # one is named by the title
    return _figure(chart.title, words, (width, HEIGHT), parts, names)


def intervals(title: str, rows: Sequence[Interval]) -> str:
    """Values with their intervals, one below the other, as HTML; empty without rows."""
    if not rows:
        return ""
    left = min(20 + _LETTER * max(len(row.name) for row in rows), WIDTH / 2)
    ticks = nice_ticks(min(row.low for row in rows), max(row.high for row in rows), most=5)
    low = min(ticks[0], *(row.low for row in rows))
    across = _Scale(low, max(ticks[-1], *(row.high for row in rows)), left, WIDTH - 24)
    height = 26 * len(rows) + 30
    parts = []
    for tick in ticks:
        x = across(tick)
        parts.append(f'<path class="grid" d="M{x:.1f} 4V{height - 22}"/>')
        parts.append(f'<text x="{x:.1f}" y="{height - 6}" text-anchor="middle">{_number(tick)}</text>')
    for number, row in enumerate(rows):
        y = 26 * number + 18
        kind = "named chosen" if row.chosen else "named"
        parts.append(f'<text class="{kind}" x="0" y="{y + 4}">{html.escape(row.name)}</text>')
        parts.append(
            f'<g class="{"s0" if row.chosen else "s5"}"><path class="line" d="M{across(row.low):.1f} {y}'
            f'H{across(row.high):.1f}"/><circle class="dot" cx="{across(row.value):.1f}" cy="{y}" r="5"><title>'
            f"{html.escape(row.name)}: {row.value:.4f} ({row.low:.4f} to {row.high:.4f})</title></circle></g>"
        )
    words = "; ".join(f"{row.name} {row.value:.4f}, from {row.low:.4f} to {row.high:.4f}" for row in rows)
    return _figure(title, words, (WIDTH, height), parts, [])


def shares(title: str, parts: Sequence[tuple[str, float]]) -> str:
    """Parts of a whole as one bar with a legend, as HTML; empty where there are none.

    Args:
        parts: names with shares, each from 0 to 1; what they leave of 1 stays blank.
    """
    if not parts:
        return ""
    bar = "".join(
        f'<i class="s{place % _COLOURS}" style="--share:{share:.4f}" title="{html.escape(name)}: {share:.1%}"></i>'
        for place, (name, share) in enumerate(parts)
    )
    rest = max(1.0 - sum(share for _, share in parts), 0.0)
    bar += f'<b style="flex:{rest:.4f} 0 0"></b>' if rest > 0.0005 else ""
    words = "; ".join(f"{name} {share:.1%}" for name, share in parts)
    legend = _legend([(place, f"{name} {share:.1%}") for place, (name, share) in enumerate(parts)])
    shown = html.escape(title)
    return (
        f'<figure><h3>{shown}</h3><div class="shares" role="img" aria-label="{shown}: {html.escape(words)}">{bar}</div>'
        f"{legend}</figure>"
    )


def nice_ticks(low: float, high: float, *, whole: bool = False, most: int = 5) -> list[float]:
    """Round values, evenly spaced, that reach over [low, high] (or, where `whole`, lie in it and are whole).

    Args:
        most: about how many.
    """
    span = high - low or abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / most))
    step = next(step * factor for factor in (1, 2, 5, 10, 20) if span / (step * factor) <= most)
    step = max(round(step), 1) if whole else step
    first, last = (math.ceil(low / step), math.floor(high / step)) if whole else (math.floor(low / step), 0)
    last = last if whole else max(math.ceil(high / step - 1e-9), first + 1)
    # rounded, or 3 * 0.1 would be 0.30000000000000004
    return [float(f"{number * step:.10g}") for number in range(first, last + 1)]


def _decades(low: float, high: float) -> list[float]:
    # there is at least one: values that differ so widely have a power of ten between them
    return [10.0**power for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)]


@dataclass(frozen=True)
class _Scale:
    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        if self.high == self.low:  # one value stands in the middle
            return (self.start + self.end) / 2
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _finite(series: Series) -> Series:
    kept = [(x, y) for x, y in zip(series.x, series.y, strict=True) if math.isfinite(x) and math.isfinite(y)]
    return Series(series.name, [x for x, _ in kept], [y for _, y in kept])


def _thinned(series: Series) -> Series:
    """Means of neighbours where there are more points than a chart can show."""
    size = math.ceil(len(series.x) / _MOST_POINTS)
    if size <= 1:
        return series
    starts = range(0, len(series.x), size)
    x, y = (
        [sum(values[at : at + size]) / len(values[at : at + size]) for at in starts] for values in (series.x, series.y)
    )
    return Series(series.name, x, y)


def _line(place: int, series: Series, across: _Scale, height: Callable[[float], float]) -> str:
    points = [(across(x), height(y)) for x, y in zip(series.x, series.y, strict=True)]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dots = ""
    if len(points) <= _DOTS_UP_TO:
        name = html.escape(series.name)
        dots = "".join(
            f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{name}: {_number(value)}</title></circle>'
            for (x, y), value in zip(points, series.y, strict=True)
        )
    return f'<g class="s{place % _COLOURS}"><path class="line" d="M{path}"/>{dots}</g>'


def _grid_line(y: float, name: str, left: float, right: float) -> str:
    return (
        f'<path class="grid" d="M{left:.1f} {y:.1f}H{right}"/>'
        f'<text x="{left - 7:.1f}" y="{y + 4:.1f}" text-anchor="end">{name}</text>'
    )


def _x_tick(x: float, name: str) -> str:
    return f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">{name}</text>'


def _number(value: float) -> str:
    if value == 0:
        return "0"
    if abs(value) >= 10000 or abs(value) < 0.001:
        return f"{value / 1000:,.4g}k" if 10000 <= abs(value) < 1e6 else f"{value:.2g}".replace("e-0", "e-")
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _in_words(series: Series, x_name: str) -> str:
    begin, end = series.y[0], series.y[-1]
    return (
        f"{series.name}: from {_number(begin)} to {_number(end)}, between {_number(min(series.y))} and "
        f"{_number(max(series.y))}, over {x_name} {_number(series.x[0])} to {_number(series.x[-1])}"
    )


def _figure(
    title: str, words: str, size: tuple[int, int], parts: Sequence[str], names: Sequence[tuple[int, str]]
) -> str:
    shown = html.escape(title)
    return (
        f'<figure><h3>{shown}</h3><svg viewBox="0 0 {size[0]} {size[1]}" role="img" '
        f'aria-label="{shown}. {html.escape(words)}">{"".join(parts)}</svg>{_legend(names)}</figure>'
    )


def _legend(names: Sequence[tuple[int, str]]) -> str:
    if not names:
        return ""
    items = "".join(f'<li class="s{place % _COLOURS}">{html.escape(name)}</li>' for place, name in names)
    return f'<ul class="legend">{items}</ul>'
