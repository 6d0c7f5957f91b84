"""A chart of values in a row, such as those of nights, each with a band around it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from markupsafe import Markup

from armo_ray.formatting import shapes
from armo_ray.formatting.svg import Chart

_LETTERS = 14  # of a name below the x axis
_MOST_DOTS = 62  # more would hide the line


class Point(NamedTuple):
    """A value and the band to draw behind it; None is unknown.

    outside: "above" or "below" marks the value with a triangle that points there.
    label: what is shown when the mouse is over the value.
    """

    name: str
    value: float | None
    band: tuple[float, float] | None = None
    outside: str | None = None
    label: str = ""


@dataclass(frozen=True)
class _Place:
    """Where the values lie: from left to right by their index, upwards by their size."""

    width: float
    height: float
    left: float
    bottom: float  # below the x axis
    count: int
    low: float
    high: float

    def x(self, i: float) -> float:
        return self.left + 6 + i * (self.width - self.left - 12) / max(self.count - 1, 1)

    def y(self, value: float) -> float:
        return self.floor - (value - self.low) / (self.high - self.low) * (self.floor - 10)

    @property
    def floor(self) -> float:
        """The y of the x axis."""
        return self.height - self.bottom


def series(title: str, points: Sequence[Point], small: bool = False) -> Chart:
    """Values joined by a line, which breaks where one is unknown, over their bands.

    The x axis has names that fit. A small chart has no y axis.
    """
    small_sizes, sizes = (220, 92, 0, 18), (420, 180, 46, 24)
    place = _Place(*(small_sizes if small else sizes), len(points), *_range(points))
    body = _axes(place, points, small)
    for run in _runs(points, lambda point: point.band):
        upper = [(x, place.y(high)) for x, (_, high) in _placed(place, run)]
        lower = [(x, place.y(low)) for x, (low, _) in _placed(place, run)]
        body.append(_path("polygon", "band", [*upper, *reversed(lower)]))
    alone = set()
    for run in _runs(points, lambda point: point.value):
        body.append(_path("polyline", "line", [(x, place.y(value)) for x, value in _placed(place, run)]))
        alone |= {run[0][0]} if len(run) == 1 else set()
    dotted = not small and len(points) <= _MOST_DOTS
    for i, point in enumerate(points):
        if point.value is not None and (point.outside or dotted or i in alone):
            body.append(_mark(place.x(i), place.y(point.value), point))
    return Chart(title, place.width, place.height, body)


_Run = list[tuple[int, Any]]  # indices and what is known there


def _runs(points: Sequence[Point], of: Callable[[Point], Any]) -> Iterator[_Run]:
    """Neighbors that are all known."""
    for known, run in groupby(enumerate(map(of, points)), key=lambda entry: entry[1] is not None):
        if known:
            yield list(run)


def _placed(place: _Place, run: _Run) -> list[tuple[float, Any]]:
    """What is known, by its x; a single one covers the width of half a step on both sides."""
    if len(run) > 1:
        return [(place.x(i), known) for i, known in run]
    ((i, known),) = run
    return [(place.x(max(i - 0.5, 0)), known), (place.x(min(i + 0.5, place.count - 1)), known)]


def _range(points: Sequence[Point]) -> tuple[float, float]:
    """From the least to the largest value or end of a band, with a margin."""
    ends = [point.value for point in points if point.value is not None]
    ends += [end for point in points if point.band is not None for end in point.band]
    low, high = min(ends, default=0.0), max(ends, default=1.0)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _axes(place: _Place, points: Sequence[Point], small: bool) -> list[Markup]:
    right = place.width - 6
    body = []
    if not small:
        for value in shapes.ticks(place.low, place.high, 4):
            body.append(shapes.line(place.left, place.y(value), right, place.y(value), "grid"))
            body.append(shapes.text(place.left - 6, place.y(value) + 4, shapes.tick(value), "end"))
    body.append(shapes.line(place.left, place.floor, right, place.floor, "axis"))
    last, steps = len(points) - 1, 1 if small else 3
    for i in dict.fromkeys(round(k * last / steps) for k in range(steps + 1)):
        anchor = "start" if small and i == 0 else "end" if i == last and last else "middle"
        x = {"start": 0.0, "end": place.width}.get(anchor, place.x(i))
        body.append(shapes.text(x, place.height - 5, _short(points[i].name), anchor))
    return body


def _path(tag: str, kind: str, corners: Iterable[tuple[float, float]]) -> Markup:
    ends = " ".join(f"{x:.1f},{y:.1f}" for x, y in corners)
    return Markup('<{} class="{}" points="{}"/>').format(tag, kind, ends)


def _mark(x: float, y: float, point: Point) -> Markup:
    """A dot, or a triangle that points to where the value is outside."""
    if point.outside is None:
        return shapes.circle(x, y, 2.4, point.label)
    tip = -7 if point.outside == "above" else 7
    corners = f"{x - 6:.1f},{y - tip / 2:.1f} {x + 6:.1f},{y - tip / 2:.1f} {x:.1f},{y + tip:.1f}"
    drawn = Markup('<polygon class="less" points="{}"><title>{}</title></polygon>')
    return drawn.format(corners, point.label)


def _short(name: str) -> str:
    return name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
