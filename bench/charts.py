"""Charts as small SVG pictures that stand in the page itself.

Drawn by hand and not by a library: plotly's charts are JavaScript, 4.9 MB of it in every page, and nothing without it;
matplotlib writes one picture for one background and a viewer's size, and would have to be installed on a board. These
few marks take their colours from the page's style sheet (so they follow dark and light), their letters stay text that
can be read aloud and searched for, a mark tells its numbers when pointed at, and the same input gives the same bytes.

Colour is never the only sign: every row has its name and its numbers, every report its own shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from edgecls.bench.markup import Element, element

COLOURS = 6
"""Colours and shapes before they begin again."""

_WIDTH = 480
_HEIGHT = 320
_LEFT, _BOTTOM = 44, 272
"""Where the axes of a chart with two of them are."""
_MARGIN = 10
_MAX_LOOKS = 240
"""Moments of a band that are drawn: two pixels each."""
_LETTERS = 30
_SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",  # circle
    "M-4.5-4.5h9v9h-9z",  # square
    "M0-6l6 10.5h-12z",  # triangle
    "M0-6.5l6 6.5l-6 6.5l-6-6.5z",  # diamond
    "M-5-2h3v-3h4v3h3v4h-3v3h-4v-3h-3z",  # cross
    "M0 6l6-10.5h-12z",  # triangle on its tip
)
Scale = Callable[[float], float]


class Row(NamedTuple):
    """A line of a chart of lines."""

    label: str
    text: str
    """Its numbers, as they are read."""
    group: int = 0
    """Colour and shape: the number of the report."""
    middle: float | None = None
    low: float | None = None
    high: float | None = None
    """Ends of the thin line: an interval or whiskers."""
    box: tuple[float, float] | None = None
    """Quartiles."""
    parts: tuple[float, ...] = ()
    """Lengths of stacked bars, in the order of the legend."""


class Point(NamedTuple):
    """A mark with error bars on both axes."""

    label: str
    text: str
    group: int
    x: float
    y: float
    x_ends: tuple[float, float] | None
    y_ends: tuple[float, float] | None
    valid: bool = True
    """Whether the line may join it."""


class Band(NamedTuple):
    """Lowest and highest of something over time."""

    label: str
    group: int
    seen: tuple[tuple[float, float, float], ...]
    """Time, lowest and highest at it; more than one."""

    @property
    def numbers(self) -> tuple[float, float, float, float]:
        """The highest at first, the lowest and the highest ever, the highest at last."""
        lowest, highest = min(low for _, low, _ in self.seen), max(high for _, _, high in self.seen)
        return self.seen[0][2], lowest, highest, self.seen[-1][2]


def rows_chart(title: str, description: str, unit: str, rows: Sequence[Row]) -> Element:
    """Lines with a mark, an interval, a box or stacked bars each, on one axis that shows 0 where it is near."""
    values = [value for row in rows for value in (row.middle, row.low, row.high, sum(row.parts)) if value is not None]
    ticks = _ticks(min([0.0, *values]), max([0.0, *values]))
    scale = _scale(ticks[0], ticks[-1], _MARGIN, _WIDTH - _MARGIN)
    pitch = 40
    bottom = pitch * len(rows) + 6
    grid = [_line("zero" if tick == 0 else "grid", scale(tick), 0, scale(tick), bottom) for tick in ticks]
    axis = [_text("axis", _within(scale(tick)), bottom + 16, f"{tick:g}", anchor="middle") for tick in ticks]
    axis.append(_text("axis", _WIDTH / 2, bottom + 34, unit, anchor="middle"))
    marks = [_row(row, scale, pitch * index) for index, row in enumerate(rows)]
    return _svg(title, description, bottom + 40, [*grid, *axis, *marks])


def scatter_chart(title: str, description: str, x_unit: str, y_unit: str, points: Sequence[Point]) -> Element:
    """Numbered points with error bars, x logarithmic; the line joins those that none of their group beats on both."""
    xs = [end for point in points for end in (point.x, *(point.x_ends or ())) if end > 0]
    ys = [end for point in points for end in (point.y, *(point.y_ends or ()))]
    x_ticks, y_ticks = _log_ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))
    log = _scale(math.log(x_ticks[0]), math.log(x_ticks[-1]), _LEFT, _WIDTH - 2 * _MARGIN)
    y = _scale(y_ticks[0], y_ticks[-1], _BOTTOM, _MARGIN)

    def x(value: float) -> float:
        return log(math.log(max(value, x_ticks[0])))

    drawn = _axes(x, x_ticks, y, y_ticks, f"{x_unit} → {y_unit} ↑")
    for group in sorted({point.group for point in points}):
        front = _front([point for point in points if point.group == group and point.valid])
        path = " ".join(f"{x(point.x):.1f},{y(point.y):.1f}" for point in front)
        drawn.append(element("polyline", points=path, class_=f"front {_colour(group)}"))
    for number, point in enumerate(points, 1):
        bars = []
        if point.x_ends:
            bars.append(_line("bar", x(point.x_ends[0]), y(point.y), x(point.x_ends[1]), y(point.y)))
        if point.y_ends:
            bars.append(_line("bar", x(point.x), y(point.y_ends[0]), x(point.x), y(point.y_ends[1])))
        drawn.append(
            element(
                "g",
                element("title", f"{point.label}: {point.text}"),
                *bars,
                _shape(point.group, x(point.x), y(point.y)),
                _text("number", x(point.x) + 8, y(point.y) + (-6 if number % 2 else 16), str(number)),
                class_=_colour(point.group),
            )
        )
    return _svg(title, description, _HEIGHT, drawn)


def bands_chart(title: str, description: str, x_unit: str, y_unit: str, bands: Sequence[Band]) -> Element:
    """Bands over time, each with its number in the legend at its end; where lowest and highest are one, a line."""
    times = [time for band in bands for time, _, _ in band.seen]
    x_ticks = _ticks(min(times), max(times))
    y_ticks = _ticks(min(band.numbers[1] for band in bands), max(band.numbers[2] for band in bands))
    x = _scale(x_ticks[0], x_ticks[-1], _LEFT, _WIDTH - 2 * _MARGIN)
    y = _scale(y_ticks[0], y_ticks[-1], _BOTTOM, _MARGIN)
    drawn = _axes(x, x_ticks, y, y_ticks, f"{x_unit} → {y_unit} ↑")
    for number, band in enumerate(bands, 1):
        seen = _thinned(band.seen)
        edge = [(time, high) for time, _, high in seen] + [(time, low) for time, low, _ in reversed(seen)]
        path = " ".join(f"{x(time):.1f},{y(value):.1f}" for time, value in edge)
        first, lowest, highest, last = band.numbers
        drawn.append(
            element(
                "g",
                element("title", f"{band.label}: {first:.0f}, {lowest:.0f} to {highest:.0f}, {last:.0f} {y_unit}"),
                element("polygon", points=path, class_="band"),
                _text("number", min(x(seen[-1][0]) + 4, _WIDTH - _MARGIN), y(last) - 6, str(number)),
                class_=_colour(band.group),
            )
        )
    return _svg(title, description, _HEIGHT, drawn)


def heat_chart(title: str, description: str, shares: Sequence[Sequence[float]]) -> Element:
    """A matrix of shares 0..1 in eight strengths of one colour, empty cells left out."""
    steps = 8
    cells: list[list[str]] = [[] for _ in range(steps + 1)]
    for row, values in enumerate(shares):
        for column, share in enumerate(values):
            if share > 0:
                cells[min(steps, math.ceil(share * steps))].append(f"M{column} {row}h1v1h-1z")
    paths = [
        element("path", d="".join(found), class_="heat", fill_opacity=step / steps)
        for step, found in enumerate(cells)
        if found
    ]
    side = len(shares)
    frame = element("path", d=f"M0 0h{side}v{side}h-{side}z", class_="frame")
    picture = _svg(title, description, side, [*paths, frame])
    picture.set("viewBox", f"0 0 {side} {side}")
    return picture


def _svg(title: str, description: str, height: float, content: Sequence[Element]) -> Element:
    return element(
        "svg",
        element("title", title),
        element("desc", description),
        *content,
        viewBox=f"0 0 {_WIDTH} {height:g}",
        role="img",
    )


def _axes(x: Scale, x_ticks: Sequence[float], y: Scale, y_ticks: Sequence[float], units: str) -> list[Element]:
    drawn = [_line("grid", x(tick), _MARGIN, x(tick), _BOTTOM) for tick in x_ticks]
    drawn += [_line("grid", _LEFT, y(tick), _WIDTH - 2 * _MARGIN, y(tick)) for tick in y_ticks]
    drawn += [_text("axis", x(tick), _BOTTOM + 16, f"{tick:g}", anchor="middle") for tick in x_ticks]
    drawn += [_text("axis", _LEFT - 6, y(tick) + 4, f"{tick:g}", anchor="end") for tick in y_ticks]
    return [*drawn, _text("axis", _WIDTH / 2, _BOTTOM + 36, units, anchor="middle")]


def _row(row: Row, scale: Scale, top: float) -> Element:
    middle_y = top + 26
    marks = []
    start = 0.0
    for part, end in enumerate(accumulate(row.parts)):
        bar = {"x": f"{scale(start):.1f}", "y": f"{middle_y - 6}", "height": "12"}
        marks.append(element("rect", **bar, width=f"{scale(end) - scale(start):.1f}", class_=f"part {_colour(part)}"))
        start = end
    if row.low is not None and row.high is not None:
        marks.append(_line("bar", scale(row.low), middle_y, scale(row.high), middle_y))
    if row.box is not None:
        low, high = scale(row.box[0]), scale(row.box[1])
        box = {"x": f"{low:.1f}", "y": f"{middle_y - 6}", "height": "12"}
        marks.append(element("rect", **box, width=f"{max(high - low, 1):.1f}", class_="box"))
    if row.middle is not None:
        if row.box is not None:
            marks.append(_line("median", scale(row.middle), middle_y - 6, scale(row.middle), middle_y + 6))
        else:
            marks.append(_shape(row.group, scale(row.middle), middle_y))
    return element(
        "g",
        element("title", f"{row.label}: {row.text}"),
        _text("label", 0, top + 14, _shortened(row.label)),
        _text("value", _WIDTH, top + 14, row.text, anchor="end"),
        *marks,
        class_=_colour(row.group),
    )


def _text(kind: str, x: float, y: float, text: str, anchor: str | None = None) -> Element:
    return element("text", text, x=f"{x:.1f}", y=f"{y:.1f}", class_=kind, text_anchor=anchor)


def _line(kind: str, x1: float, y1: float, x2: float, y2: float) -> Element:
    return element("path", d=f"M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}", class_=kind)


def _shape(group: int, x: float, y: float) -> Element:
    place = f"translate({x:.1f} {y:.1f})"
    return element("path", d=_SHAPES[group % COLOURS], transform=place, class_="mark")


def _colour(group: int) -> str:
    return f"c{group % COLOURS}"


def _shortened(label: str) -> str:
    """The beginning and the end, which tells launches and reports apart."""
    half = _LETTERS // 2
    return label if len(label) <= _LETTERS else f"{label[: half - 1]}…{label[-half:]}"


def _within(x: float) -> float:
    """Keeps a number below the axis inside the picture."""
    return min(max(x, 14), _WIDTH - 14)


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose a range."""
    spread = (high - low) or abs(high) or 1.0
    magnitude = 10.0 ** math.floor(math.log10(spread / 4))
    step = next(factor * magnitude for factor in (1, 2, 5, 10) if factor * magnitude >= spread / 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [float(f"{count * step:.12g}") for count in range(first, max(last, first + 1) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """The numbers 1, 2 and 5 of the powers of ten that enclose a range, and at most eight of them."""
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 2)
    ticks = [float(f"{digit}e{exponent}") for exponent in exponents for digit in (1, 2, 5)]
    first = max(index for index, tick in enumerate(ticks) if tick <= low)
    last = min(index for index, tick in enumerate(ticks) if tick >= high and index > first)
    inside = ticks[first : last + 1]
    thinned = inside[:: math.ceil(len(inside) / 8)]
    return thinned if thinned[-1] == inside[-1] else [*thinned, inside[-1]]


def _thinned(seen: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """At most so many moments as can be drawn: neighbours as one, with the lowest and the highest of them."""
    step = math.ceil(len(seen) / _MAX_LOOKS)
    groups = [seen[start : start + step] for start in range(0, len(seen), step)]
    return [(group[-1][0], min(low for _, low, _ in group), max(high for _, _, high in group)) for group in groups]


def _front(points: Sequence[Point]) -> list[Point]:
    """Those that no other is faster and better than, by x."""
    best, front = -math.inf, []
    for point in sorted(points, key=lambda point: (point.x, -point.y)):
        if point.y > best:
            best = point.y
            front.append(point)
    return front
