"""What the page shows of nights: charts over them, and a table."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote

from armo_ray.formatting.numbers import number
from armo_ray.formatting.series import Point, series
from armo_ray.formatting.svg import Chart
from armo_ray.report.columns import LENGTH, SCORE
from armo_ray.report.nights import COST, FEWEST, REJECTED, SPEED, Night, Nights, Value

_NAMED = 3  # columns that a row names as outside
_CHARTS = {  # titles, and the factor of the values
    SCORE: ("Mean score", 1.0),
    LENGTH: ("Mean response length, tokens", 1.0),
    REJECTED: ("Rejects, % of the candidates", 100.0),
    SPEED: ("Tokens per second", 1.0),
    COST: ("Cost, USD", 1.0),
}


class Row(NamedTuple):
    """A night in the table; `link` is the file of its own page, `words` say what is outside."""

    night: Night
    link: str | None
    words: str


def nights_view(nights: Nights, files: Collection[str], most_rewards: int) -> dict[str, Any]:
    """The charts and the rows of the table, newest first. `files` are those beside the page."""
    of_nights = nights.nights
    known = {name for night in of_nights for name, own in night.values.items() if own.value is not None}
    charts = [_chart(of_nights, name, *drawn) for name, drawn in _CHARTS.items() if name in known]
    rewards = [name for name in of_nights[0].values if name.startswith("rewards.") and name in known]
    return {
        "night_charts": [*charts[:1], *_spread(of_nights, known), *charts[1:]],
        "night_rewards": [_reward(of_nights, name) for name in rewards[:most_rewards]],
        "night_rows": [Row(night, _link(night.night, files), _words(night)) for night in reversed(of_nights)],
        "night_columns": known,
        "latest_night": _latest(of_nights[-1]),
    }


def _chart(nights: Sequence[Night], name: str, title: str, factor: float, small: bool = False) -> Chart:
    known = [own.value for night in nights if (own := night.values[name]).value is not None]
    ends = _ends(known)
    points = []
    for night in nights:
        own = night.values[name]
        value = None if own.value is None else own.value * factor
        label = f"{night.night}: {_told(own, factor)}"
        points.append(Point(night.night, value, _band(own, ends, factor), own.outside, label))
    return series(title, points, small)


def _ends(values: Sequence[float]) -> tuple[float, float]:
    """How far bands are drawn: they widen after a night that is outside, and would hide all others."""
    low, high = min(values), max(values)
    return max(low - (high - low) / 2, min(low, 0.0)), high + (high - low) / 2


def _band(own: Value, ends: tuple[float, float], factor: float) -> tuple[float, float] | None:
    """The limits that the nights before set, between the ends of what is drawn."""
    if own.limits is None:
        return None
    low, high = (min(max(limit, ends[0]), ends[1]) * factor for limit in own.limits)
    return low, high


def _told(own: Value, factor: float) -> str:
    """The value, the nights before, and whether it is outside."""
    if own.value is None:
        return number(None)
    words = [number(own.value * factor)]
    if own.mean is not None and own.sd is not None:
        nights = "night" if own.before == 1 else f"{own.before} nights"
        words.append(f"{nights} before: {number(own.mean * factor)}, SD {number(own.sd * factor)}")
    return "; ".join([*words, *([own.outside] if own.outside else [])])


def _spread(nights: Sequence[Night], known: Collection[str]) -> list[Chart]:
    """The mean score between the percentiles of its candidates; empty if nothing was scored."""
    points = []
    for night in nights:
        band = None if night.p10 is None or night.p90 is None else (night.p10, night.p90)
        value = night.values[SCORE].value
        label = f"{night.night}: {number(value)}, from {number(night.p10)} to {number(night.p90)}"
        points.append(Point(night.night, value, band, None, label))
    return [series("Mean score, from the 10th to the 90th percentile", points)] if SCORE in known else []


def _reward(nights: Sequence[Night], name: str) -> tuple[str, str, Chart]:
    """Name, latest value and small chart of a reward."""
    plain = name.removeprefix("rewards.")
    latest = next(night.values[name] for night in reversed(nights) if night.values[name].value is not None)
    return plain, number(latest.value), _chart(nights, name, plain, 1.0, small=True)


def _latest(night: Night) -> str:
    if night.outside:
        return f"is outside the limits of those before it: {_words(night)}"
    if all(own.before < FEWEST for own in night.values.values()):
        return "has too few before it to be compared with"
    return "is within the limits of those before it"


def _words(night: Night) -> str:
    """Such as: score above, code_style below, 2 more."""
    told = [f"{_plain(name)} {side}" for name, side in night.outside.items()]
    more = len(told) - _NAMED
    return ", ".join(told[:_NAMED] + ([f"{more} more"] if more > 0 else []))


def _plain(name: str) -> str:
    return {LENGTH: "length", REJECTED: "rejects", SPEED: "tokens/s", COST: "cost"}.get(
        name, name.removeprefix("rewards.")
    )


def _link(night: str, files: Collection[str]) -> str | None:
    """The address of a night's own page, if it is one of the files."""
    name = f"report-{quote(night, safe='')}.html"  # as --partition names it
    return quote(name) if name in files else None
