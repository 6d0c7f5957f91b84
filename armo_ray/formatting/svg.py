"""Charts as SVG: inline in a page, whose style sheet gives colors and width, or as a file of their own.

Lengths are in SVG user units. Classes are those of chart.css. Any text may be hostile: it is escaped.
"""

import re
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import NamedTuple

from markupsafe import Markup

from armo_ray.formatting import shapes
from armo_ray.formatting.numbers import number

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 216, 46, 12, 26, 38
_CELL, _CHAR = 22, 6.6  # of a matrix; width of a letter
_LONGEST = 40  # letters of a label
_TURN = 0.87  # sine of 60 degrees
_COLORS = {"ink": "#23262b", "muted": "#62686f", "rule": "#e2ded5", "blue": "#3b6ea8", "orange": "#c8741f"}
_VARIABLES = {**_COLORS, "pale": "#8fb3d9", "shade": ".8"}  # of the style sheet, in a file


class Chart(NamedTuple):
    """A chart; in a template it is the inline SVG."""

    title: str
    width: float
    height: float
    body: Sequence[Markup]
    kind: str = "chart"  # its class; one that is `wide` scrolls

    def __html__(self) -> str:
        head = Markup(
            '<svg class="{0}" style="--width: {1:.0f}" viewBox="0 0 {1:.0f} {2:.0f}" role="img" aria-label="{3}">'
        ).format(self.kind, self.width, self.height, self.title)
        drawn = head + Markup("").join(self.body) + Markup("</svg>")
        return Markup('<div class="scroll">{}</div>').format(drawn) if self.kind == "wide" else drawn

    def standalone(self) -> str:
        """The content of an SVG file, with the title above the chart."""
        width, height = max(self.width, _CHAR * len(self.title)) + 24, self.height + 44
        style = re.sub(r"var\(--(\w+)\)", lambda name: _VARIABLES[name[1]], chart_style())
        return Markup(
            '<svg xmlns="http://www.w3.org/2000/svg" width="{0:.0f}" height="{1:.0f}" '
            'viewBox="0 0 {2:.0f} {3:.0f}">\n'
            "<style>\ntext {{ font-family: sans-serif; }}\n{4}</style>\n"
            '<rect width="100%" height="100%" fill="white"/>\n'
            '<text class="title" x="12" y="20">{5}</text>\n<g transform="translate(12 34)">\n{6}\n</g>\n</svg>\n'
        ).format(
            1.2 * width, 1.2 * height, width, height, Markup(style), self.title, Markup("\n").join(self.body)
        )


def chart_style() -> str:
    """The style sheet of all charts; its variables are those of a page."""
    return files(__package__).joinpath("chart.css").read_text("utf-8")


class Bar(NamedTuple):
    """A fraction of 1, its interval, and a value to compare it with."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None


def histogram(
    title: str,
    edges: Sequence[float],
    counts: Sequence[float],
    titles: tuple[str, str],
    mark: float | None = None,
) -> Chart:
    """A bar for each of the bins between len(counts) + 1 edges, and a line at `mark`."""
    frame = _Frame((edges[0], edges[-1]), (0.0, max(counts, default=0) or 1.0))
    body = frame.axes(*titles)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, top = frame.x(low), frame.y(count)
        width = max(frame.x(high) - left - 0.6, 0.6)
        label = f"{number(low)} to {number(high)}: {number(count)}"
        body.append(shapes.rect(left, top, width, _HEIGHT - _BOTTOM - top, "bar", label))
    if mark is not None and edges[0] <= mark <= edges[-1]:
        body.append(shapes.line(frame.x(mark), _TOP, frame.x(mark), _HEIGHT - _BOTTOM, "mark"))
    return Chart(title, _WIDTH, _HEIGHT, body)


def small_histogram(title: str, edges: Sequence[float], counts: Sequence[float], mark: float) -> Chart:
    """Bars without axes; the ends of the x axis are written below them."""
    low, high, most = edges[0], edges[-1], max(counts, default=0) or 1
    scale = 220 / ((high - low) or 1.0)
    body = [
        shapes.rect(
            (a - low) * scale, 52 - 50 * n / most, max((b - a) * scale - 0.5, 0.5), 50 * n / most, "bar"
        )
        for a, b, n in zip(edges, edges[1:], counts, strict=False)
    ]
    body.append(shapes.line(0, 52, 220, 52, "axis"))
    if low <= mark <= high:
        body.append(shapes.line((mark - low) * scale, 0, (mark - low) * scale, 52, "mark"))
    body += [shapes.text(0, 66, number(low)), shapes.text(220, 66, number(high), "end")]
    return Chart(title, 220, 70, body)


def curve(
    title: str,
    points: Sequence[tuple[float, float]],
    titles: tuple[str, str],
    line: tuple[float, float] | None = None,
    whiskers: Sequence[tuple[float, float]] = (),
) -> Chart:
    """Points joined by a line, with an interval each if given; and a straight line of (slope, intercept)."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    margin = 0.06 * ((max(ys) - min(ys)) or abs(ys[0]) or 1.0)
    spread = [*ys, *(end for interval in whiskers for end in interval)]
    frame = _Frame((min(xs), max(xs)), (min(spread) - margin, max(spread) + margin))
    whole = all(x == int(x) for x in xs)
    body = frame.axes(*titles, least=1.0 if whole else 0.0)
    for (x, _), (low, high) in zip(points, whiskers, strict=False):
        body.append(shapes.line(frame.x(x), frame.y(low), frame.x(x), frame.y(high), "whisker"))
    if line is not None:
        ends = [(x, min(max(line[0] * x + line[1], frame.low_y), frame.high_y)) for x in (xs[0], xs[-1])]
        (a, b), (c, d) = ends
        body.append(shapes.line(frame.x(a), frame.y(b), frame.x(c), frame.y(d), "mark"))
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    body.append(Markup('<polyline class="line" points="{}"/>').format(path))
    body += [shapes.circle(frame.x(x), frame.y(y), 3, f"{number(x)}: {number(y)}") for x, y in points]
    return Chart(title, _WIDTH, _HEIGHT, body)


def reliability(title: str, points: Sequence[tuple[float, float, int]]) -> Chart:
    """Points of confidence (0.5 to 1), accuracy (0 to 1) and their number of pairs, and the line of perfect
    calibration."""
    frame = _Frame((0.5, 1.0), (0.0, 1.0), height=360)
    body = frame.axes("confidence; larger circles stand for more pairs", "accuracy", form=_percent)
    body.append(shapes.line(frame.x(0.5), frame.y(0.5), frame.x(1), frame.y(1), "mark"))
    most = max(pairs for _, _, pairs in points)
    for confidence, accuracy, pairs in points:
        label = f"{_percent(confidence)}: {_percent(accuracy)} of {number(pairs)} pairs"
        body.append(
            shapes.circle(frame.x(confidence), frame.y(accuracy), 3 + 7 * (pairs / most) ** 0.5, label)
        )
    return Chart(title, _WIDTH, 360, body)


def bars(title: str, rows: Sequence[Bar]) -> Chart:
    """Horizontal bars from 0 to 100 %, each with its value, its interval and its mark."""
    row, length = 20, 400
    left = 8 + _CHAR * min(max((len(bar.label) for bar in rows), default=0), _LONGEST)
    bottom = len(rows) * row
    body = [shapes.line(left + x * length / 4, 0, left + x * length / 4, bottom, "grid") for x in range(5)]
    body += [shapes.text(left + x * length / 4, bottom + 16, f"{25 * x} %", "middle") for x in range(5)]
    for i, bar in enumerate(rows):
        y = i * row
        body.append(shapes.text(left - 6, y + 13, _short(bar.label), "end", "title"))
        body.append(shapes.rect(left, y + 2, bar.value * length, row - 5, "pale"))
        if bar.low is not None and bar.high is not None:
            ends = (left + bar.low * length, left + bar.high * length)
            body.append(shapes.line(ends[0], y + 9.5, ends[1], y + 9.5, "interval"))
        if bar.mark is not None:
            body.append(shapes.rect(left + bar.mark * length - 1.5, y, 3, row - 1, "less"))
        body.append(shapes.text(left + length + 12, y + 13, f"{100 * bar.value:.1f}", kind="title"))
    return Chart(title, left + length + 50, bottom + 24, body)


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    middle: float = 0.0,
    most: float = 1.0,
) -> Chart:
    """Cells of values times 100, shaded from middle - most (orange) over middle (blank) to middle + most (blue)."""
    left = 8 + _CHAR * min(max(map(len, rows)), _LONGEST)
    top = 16 + _CHAR * _TURN * min(max(map(len, columns)), _LONGEST)
    right = 16 + _CHAR * 0.5 * min(len(columns[-1]), _LONGEST)
    body = []
    for j, name in enumerate(columns):
        x = left + (j + 0.6) * _CELL
        turned = Markup('<text transform="translate({:.1f} {:.1f}) rotate(-60)">{}</text>')
        body.append(turned.format(x, top - 6, _short(name)))
    for i, (name, row) in enumerate(zip(rows, values, strict=True)):
        y = top + i * _CELL
        body.append(shapes.text(left - 6, y + 15, _short(name), "end"))
        for j, value in enumerate(row):
            shade = 0.0 if value is None or not most else (value - middle) / most
            body.append(_cell(left + j * _CELL, y, value, shade, f"{name}, {columns[j]}"))
    width, height = left + len(columns) * _CELL + right, top + len(rows) * _CELL + 4
    return Chart(title, width, height, body, "wide")


def _cell(x: float, y: float, value: float | None, shade: float, where: str) -> Markup:
    if value is None:
        return shapes.text(x + _CELL / 2, y + 15, "-", "middle", "cell")
    drawn = Markup(
        '<rect class="shade {}" x="{:.1f}" y="{:.1f}" width="{}" height="{}" fill-opacity="{:.2f}">'
        "<title>{}</title></rect>"
    )
    color, opacity = "less" if shade < 0 else "bar", min(abs(shade), 1.0)
    box = drawn.format(color, x, y, _CELL - 1, _CELL - 1, opacity, f"{where}: {number(value)}")
    return box + shapes.text(x + _CELL / 2, y + 15, f"{100 * value:z.0f}", "middle", "cell")


def cell_bar(value: float | None, most: float, low: float = 0.0) -> Markup:
    """A bar from 0 to `value` that fills a cell of a table, whose width stands for low to most."""
    if value is None or not most > low:
        return Markup("")
    zero, end = (min(max((v - low) / (most - low), 0.0), 1.0) * 100 for v in (0.0, value))
    color = "less" if value < 0 else "bar"
    drawn = Markup(
        '<svg class="cellbar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="{}" x="{:.2f}" y="0" width="{:.2f}" height="10"/></svg>'
    )
    return drawn.format(color, min(zero, end), abs(end - zero))


class _Frame:
    """Scales and axes of a chart: x from left to right, y upwards."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float], height: float = _HEIGHT) -> None:
        self.low_x, self.high_x = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.low_y, self.high_y = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)
        self.height = height

    def x(self, value: float) -> float:
        share = (value - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return self.height - _BOTTOM - share * (self.height - _BOTTOM - _TOP)

    def axes(
        self, x_title: str, y_title: str, least: float = 0.0, form: Callable[[float], str] | None = None
    ) -> list[Markup]:
        """Grid, ticks and titles; `least` is the smallest step of x, `form` writes a tick."""
        form = form or shapes.tick
        body = []
        for value in shapes.ticks(self.low_y, self.high_y, 4):
            y = self.y(value)
            body.append(shapes.line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"))
            body.append(shapes.text(_LEFT - 6, y + 4, form(value), "end"))
        for value in shapes.ticks(self.low_x, self.high_x, least=least):
            text = form(value)
            x = min(self.x(value), _WIDTH - _CHAR * len(text) / 2)  # the last may lie at the edge
            body.append(shapes.text(x, self.height - _BOTTOM + 15, text, "middle"))
        bottom = self.height - _BOTTOM
        body.append(shapes.line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis"))
        body.append(shapes.text(_WIDTH - _RIGHT, self.height - 5, x_title, "end", "title"))
        return [*body, shapes.text(0, 11, y_title, kind="title")]


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"
