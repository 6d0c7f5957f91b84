"""Figures as inline SVG whose colors and fonts are those of the page, which fits them to its width."""

from collections.abc import Mapping, Sequence
from math import ceil, floor, log10
from typing import Any

from markupsafe import Markup

from armo_ray.report.html import number

_WIDTH, _HEIGHT, _LEFT, _RIGHT, _TOP, _BOTTOM = 420, 216, 46, 12, 26, 38
_CELL, _CHAR = 22, 6.6  # pixels; of a letter's width at 11
_LONGEST = 40  # letters of a label
_TURN = 0.87  # sine of 60 degrees


def ticks(low: float, high: float, most: int = 5, least: float = 0.0) -> list[float]:
    """Round numbers between two values, at least so far apart."""
    if not high > low:
        return [low]
    raw = max((high - low) / most, least)
    power = 10.0 ** floor(log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    return [i * step for i in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _tick(value: float) -> str:
    for size, sign in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:,.6g}"


class _Frame:
    """Axes of a figure: x from left to right, y upwards."""

    def __init__(self, x: tuple[float, float], y: tuple[float, float]) -> None:
        self.low_x, self.high_x = x if x[1] > x[0] else (x[0] - 0.5, x[0] + 0.5)
        self.low_y, self.high_y = y if y[1] > y[0] else (y[0] - 0.5, y[0] + 0.5)

    def x(self, value: float) -> float:
        share = (value - self.low_x) / (self.high_x - self.low_x)
        return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        share = (value - self.low_y) / (self.high_y - self.low_y)
        return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)

    def axes(self, x_title: str, y_title: str, least: float = 0.0) -> list[Markup]:
        body = []
        for value in ticks(self.low_y, self.high_y, 4):
            y = self.y(value)
            body.append(_line(_LEFT, y, _WIDTH - _RIGHT, y, "grid"))
            body.append(_text(_LEFT - 6, y + 4, _tick(value), "end"))
        for value in ticks(self.low_x, self.high_x, least=least):
            text = _tick(value)
            x = min(self.x(value), _WIDTH - _CHAR * len(text) / 2)  # the last may lie at the edge
            body.append(_text(x, _HEIGHT - _BOTTOM + 15, text, "middle"))
        bottom = _HEIGHT - _BOTTOM
        body.append(_line(_LEFT, bottom, _WIDTH - _RIGHT, bottom, "axis"))
        body.append(_text(_WIDTH - _RIGHT, _HEIGHT - 5, x_title, "end", "title"))
        return [*body, _text(0, 11, y_title, kind="title")]


def histogram(
    title: str, bins: Mapping[str, Any], x_title: str, y_title: str = "candidates", mark: float | None = None
) -> Markup:
    """Bars over the bins of `edges` and `counts`, and a line at a value."""
    edges, counts = bins["edges"], bins["counts"]
    frame = _Frame((edges[0], edges[-1]), (0.0, max(counts, default=0) or 1.0))
    body = frame.axes(x_title, y_title)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        left, top = frame.x(low), frame.y(count)
        width = max(frame.x(high) - left - 0.6, 0.6)
        told = f"{number(low)} to {number(high)}: {number(count)}"
        body.append(_rect(left, top, width, _HEIGHT - _BOTTOM - top, "bar", told))
    if mark is not None and edges[0] <= mark <= edges[-1]:
        body.append(_line(frame.x(mark), _TOP, frame.x(mark), _HEIGHT - _BOTTOM, "mark"))
    return _svg(title, _WIDTH, _HEIGHT, body)


def curve(
    title: str,
    points: Sequence[tuple[float, float]],
    titles: tuple[str, str],
    line: tuple[float, float] | None = None,
    bars: Sequence[tuple[float, float]] = (),
) -> Markup:
    """Points joined by a line; a straight line of (slope, intercept); and intervals, one a point."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    margin = 0.06 * ((max(ys) - min(ys)) or abs(ys[0]) or 1.0)
    spread = [*ys, *(end for interval in bars for end in interval)]
    frame = _Frame((min(xs), max(xs)), (min(spread) - margin, max(spread) + margin))
    whole = all(x == int(x) for x in xs)
    body = frame.axes(*titles, least=1.0 if whole else 0.0)
    for (x, _), (low, high) in zip(points, bars, strict=False):
        body.append(_line(frame.x(x), frame.y(low), frame.x(x), frame.y(high), "whisker"))
    if line is not None:
        ends = [(x, min(max(line[0] * x + line[1], frame.low_y), frame.high_y)) for x in (xs[0], xs[-1])]
        (a, b), (c, d) = ends
        body.append(_line(frame.x(a), frame.y(b), frame.x(c), frame.y(d), "mark"))
    path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
    body.append(Markup('<polyline class="line" points="{}"/>').format(path))
    for x, y in points:
        told = f"{number(x)}: {number(y)}"
        body.append(
            Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="3"><title>{}</title></circle>').format(
                frame.x(x), frame.y(y), told
            )
        )
    return _svg(title, _WIDTH, _HEIGHT, body)


def small_histogram(title: str, bins: Mapping[str, Any], mark: float) -> Markup:
    """Bars alone, with the ends of the axis below them."""
    edges, counts = bins["edges"], bins["counts"]
    low, high, most = edges[0], edges[-1], max(counts, default=0) or 1
    scale = 220 / ((high - low) or 1.0)
    body = [
        _rect((a - low) * scale, 52 - 50 * n / most, max((b - a) * scale - 0.5, 0.5), 50 * n / most, "bar")
        for a, b, n in zip(edges, edges[1:], counts, strict=False)
    ]
    body.append(_line(0, 52, 220, 52, "axis"))
    if low <= mark <= high:
        body.append(_line((mark - low) * scale, 0, (mark - low) * scale, 52, "mark"))
    body += [_text(0, 66, number(low)), _text(220, 66, number(high), "end")]
    return _svg(title, 220, 70, body)


def heatmap(
    title: str,
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    most: float = 1.0,
) -> Markup:
    """Cells of values from -most (orange) over 0 to most (blue), times 100."""
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
        body.append(_text(left - 6, y + 15, _short(name), "end"))
        for j, value in enumerate(row):
            body.append(_cell(left + j * _CELL, y, value, most, f"{name}, {columns[j]}"))
    width, height = left + len(columns) * _CELL + right, top + len(rows) * _CELL + 4
    return Markup('<div class="scroll">{}</div>').format(_svg(title, width, height, body, "wide"))


def _cell(x: float, y: float, value: float | None, most: float, where: str) -> Markup:
    if value is None:
        return _text(x + _CELL / 2, y + 15, "-", "middle", "cell")
    shade = min(abs(value) / most, 1.0) if most else 0.0
    drawn = Markup(
        '<rect class="shade {}" x="{:.1f}" y="{:.1f}" width="{}" height="{}" fill-opacity="{:.2f}">'
        "<title>{}</title></rect>"
    )
    color = "less" if value < 0 else "bar"
    box = drawn.format(color, x, y, _CELL - 1, _CELL - 1, shade, f"{where}: {number(value)}")
    return box + _text(x + _CELL / 2, y + 15, f"{100 * value:.0f}".replace("-0", "0"), "middle", "cell")


def bar(value: float | None, most: float, low: float = 0.0) -> Markup:
    """A bar as wide as its cell of a table, from 0, in a range from low to most."""
    if value is None or not most > low:
        return Markup("")
    zero, end = (min(max((v - low) / (most - low), 0.0), 1.0) * 100 for v in (0.0, value))
    color = "less" if value < 0 else "bar"
    drawn = Markup(
        '<svg class="cellbar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="{}" x="{:.2f}" y="0" width="{:.2f}" height="10"/></svg>'
    )
    return drawn.format(color, min(zero, end), abs(end - zero))


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _rect(x: float, y: float, width: float, height: float, kind: str, title: str = "") -> Markup:
    told = Markup("<title>{}</title>").format(title) if title else ""
    return Markup('<rect class="{}" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}">{}</rect>').format(
        kind, x, y, width, height, told
    )


def _line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x1, y1, x2, y2
    )


def _svg(title: str, width: float, height: float, body: Sequence[Markup], kind: str = "chart") -> Markup:
    head = Markup(
        '<svg class="{0}" style="--width: {1:.0f}" viewBox="0 0 {1:.0f} {2:.0f}" role="img" aria-label="{3}">'
    )
    return head.format(kind, width, height, title) + Markup("").join(body) + Markup("</svg>")
