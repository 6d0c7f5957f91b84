"""Figures of an evaluation as SVG text: bars, a curve of points, a matrix."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from armo_ray.evaluate.tables import SHOWN, length_label

_FONT = 'font-family="sans-serif" font-size="12"'
_BLUE, _PALE, _ORANGE, _GREY, _BLACK = "#3b6ea8", "#8fb3d9", "#d9822b", "#dddddd", "#222222"
_LEFT, _WIDTH, _ROW, _TOP = 250, 400, 20, 40


class Bar(NamedTuple):
    """A fraction of 1 with its interval, and another to compare it with."""

    label: str
    value: float
    low: float | None = None
    high: float | None = None
    mark: float | None = None


def figures(found: Mapping[str, Any]) -> dict[str, str]:
    """File names and SVG texts of an evaluation."""
    accuracy = [
        Bar(name, row["accuracy"], row["low"], row["high"], row["longest"])
        for kind in ("sections", "subsets")
        if kind == "sections" or len(found[kind]) <= SHOWN
        for name, row in found[kind].items()
    ]
    length = [Bar(length_label(r), r["accuracy"]) for r in found["length"] if r["pairs"]]
    alone = sorted((Bar(n, v) for n, v in found["objectives"].items()), key=lambda b: -b.value)
    matrix = found["agreement"]
    drawn = {
        "accuracy.svg": bars("Accuracy, its 95 % interval, and (orange) always the longest answer", accuracy),
        "length.svg": bars("Accuracy by the correct answer's length in the wrong one's", length),
        "objectives.svg": bars("Accuracy of one objective alone", alone),
        "agreement.svg": heatmap("Pairs that two columns order alike", matrix["names"], matrix["matrix"]),
    }
    if "bins" in found["calibration"]:
        bins = found["calibration"]["bins"]
        points = [(b["confidence"], b["accuracy"], b["pairs"]) for b in bins]
        drawn["calibration.svg"] = reliability("How often the higher score is right, by confidence", points)
    return drawn


def bars(title: str, rows: Sequence[Bar]) -> str:
    """Horizontal bars from 0 to 100 %."""
    bottom = _TOP + len(rows) * _ROW
    body = [_line(_at(x / 4), _TOP, _at(x / 4), bottom, _GREY) for x in range(5)]
    body += [_text(_at(x / 4), bottom + 16, f"{25 * x} %", "middle") for x in range(5)]
    for i, bar in enumerate(rows):
        y = _TOP + i * _ROW
        body.append(_text(_LEFT - 6, y + 13, bar.label, "end"))
        body.append(_rect(_LEFT, y + 2, bar.value * _WIDTH, _ROW - 5, _PALE))
        if bar.low is not None and bar.high is not None:
            body.append(_line(_at(bar.low), y + 9.5, _at(bar.high), y + 9.5, _BLACK))
        if bar.mark is not None:
            body.append(_rect(_at(bar.mark) - 1.5, y, 3, _ROW - 1, _ORANGE))
        body.append(_text(_LEFT + _WIDTH + 12, y + 13, f"{100 * bar.value:.1f}"))
    return _svg(title, _LEFT + _WIDTH + 60, bottom + 30, body)


def reliability(title: str, points: Sequence[tuple[float, float, int]]) -> str:
    """Points of confidence (0.5 to 1), accuracy (0 to 1) and their number of pairs, beside the ideal line."""
    side, left = 300, 60
    most = max(pairs for _, _, pairs in points)

    def place(confidence: float, accuracy: float) -> tuple[float, float]:
        return left + (confidence - 0.5) * 2 * side, _TOP + (1 - accuracy) * side

    body = [
        _line(*place(0.5, 0.5), *place(1, 1), _GREY),
        _line(*place(0.5, 0), *place(1, 0), _BLACK),
        _line(*place(0.5, 0), *place(0.5, 1), _BLACK),
    ]
    for confidence, accuracy, pairs in points:
        x, y = place(confidence, accuracy)
        body.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{3 + 7 * (pairs / most) ** 0.5:.1f}" fill="{_BLUE}"/>'
        )
    body += [_text(place(x / 10, 0)[0], _TOP + side + 16, f"{10 * x} %", "middle") for x in range(5, 11)]
    body += [_text(left - 6, place(0.5, y / 4)[1] + 4, f"{25 * y} %", "end") for y in range(5)]
    body.append(
        _text(left + side / 2, _TOP + side + 34, "confidence; the circle grows with its pairs", "middle")
    )
    return _svg(title, left + side + 40, _TOP + side + 44, body)


def heatmap(title: str, names: Sequence[str], values: Sequence[Sequence[float]]) -> str:
    """Cells from 0 (orange) over a half (white) to 1 (blue), their percent in them."""
    cell, body = 28, []
    top = _TOP + 200
    for i, name in enumerate(names):
        body.append(_text(_LEFT - 6, top + i * cell + 18, name, "end"))
        x = _LEFT + i * cell + 18
        body.append(
            f'<text x="{x}" y="{top - 6}" transform="rotate(-90 {x} {top - 6})" {_FONT}>{escape(name)}</text>'
        )
        for j, value in enumerate(values[i]):
            body.append(_rect(_LEFT + j * cell, top + i * cell, cell - 1, cell - 1, _shade(value)))
            body.append(
                _text(_LEFT + j * cell + cell / 2, top + i * cell + 18, f"{100 * value:.0f}", "middle")
            )
    size = len(names) * cell
    return _svg(title, _LEFT + size + 20, top + size + 20, body)


def _shade(value: float) -> str:
    color, share = ((59, 110, 168), 2 * value - 1) if value > 0.5 else ((217, 130, 43), 1 - 2 * value)
    return "#" + "".join(f"{round(255 - share * (255 - c)):02x}" for c in color)


def _at(fraction: float) -> float:
    return _LEFT + fraction * _WIDTH


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {_FONT}>{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0):.1f}" height="{height:.1f}" fill="{fill}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="1.2"/>'
    )


def _svg(title: str, width: float, height: float, body: Sequence[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}">'
    back = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, back, _text(12, 22, title), *body, "</svg>\n"])
