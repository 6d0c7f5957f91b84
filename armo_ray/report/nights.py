"""The nights of outputs, which are the values of a hive directory, each compared with the seven before it."""

import math
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, stdev
from typing import Any

import duckdb

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice, quote
from armo_ray.outputs.scores import Scores, scan
from armo_ray.report.columns import LENGTH, SCORE
from armo_ray.report.read import Committed
from armo_ray.report.speed import speed
from armo_ray.storage.parts import hive_values

WEEK, FEWEST = 7, 4  # nights before, and how many of them are needed
# quantiles of Student's t for 1 to 6 degrees of freedom, at the 0.99865 that a normal distribution has at 3 deviations
_T = (235.801, 19.207, 9.219, 6.620, 5.507, 4.904)
REJECTED, SPEED, COST = "rejected_share", "tokens_per_second", "cost_usd"
_MOST_NIGHTS = 4000


@dataclass(frozen=True)
class Value:
    """A number of a night, and the mean and standard deviation of the nights before it that have the number.

    before: how many of these there are, at most WEEK. sd is that of a sample, of at least two nights.
    outside: "above" or "below" if there are at least FEWEST, and the value is outside `limits`.
    """

    value: float | None
    before: int
    mean: float | None
    sd: float | None
    outside: str | None

    @property
    def limits(self) -> tuple[float, float] | None:
        """Between these is another night with 99.7 % probability if nights are of one normal distribution."""
        if self.mean is None or self.sd is None:
            return None
        width = _T[self.before - 2] * self.sd * math.sqrt(1 + 1 / self.before)
        return self.mean - width, self.mean + width


@dataclass(frozen=True)
class Night:
    """The candidates of a night.

    candidates, rejected: from the commit records; None if the paths of the shards do not name the night.
    p10, p90: of the score, approximately; None, like its mean, if nothing was scored.
    values: by name: score, rewards.NAME and num_response_tokens are means; rejected_share is of the candidates;
        tokens_per_second; cost_usd if there is a price.
    """

    night: str
    scored: int
    candidates: int | None
    rejected: int | None
    p10: float | None
    p90: float | None
    values: dict[str, Value]

    @property
    def outside(self) -> dict[str, str]:
        """What is outside the limits that the nights before set, and on which side."""
        return {name: own.outside for name, own in self.values.items() if own.outside}


@dataclass(frozen=True)
class Nights:
    """Nights, the oldest first, by the hive directory `by`; `without` counts scored candidates in none."""

    by: str
    without: int
    nights: list[Night]


def by_night(con: duckdb.DuckDBPyConnection, committed: Committed, by: str, price: float | None) -> Nights:
    """Measure every night. Raises ConfigError if `by` is no hive directory of the outputs, or has too many values."""
    scores = committed.scores
    _check_directory(scores, by)
    scored = _scored(con, scores, by)
    records = _records(committed, by)
    names = sorted(scored.keys() | records.keys(), key=_order)
    numbers = [
        scored.get(name, {}) | _recorded(records.get(name, ()), committed.runs, price) for name in names
    ]
    values = {
        column: compared([night.get(column) for night in numbers]) for column in _columns(scores, price)
    }
    nights = [
        _night(name, own, {column: of_nights[i] for column, of_nights in values.items()})
        for i, (name, own) in enumerate(zip(names, numbers, strict=True))
    ]
    return Nights(by, scores.rows - sum(night.scored for night in nights), nights)


def _check_directory(scores: Scores, by: str) -> None:
    """Raises ConfigError if no part of the outputs lies in a hive directory of this name, or too many do."""
    names = list(dict.fromkeys(name for part in scores.parts for name in part.directories))
    if by not in names:
        found = advice(by, names) if names else "the output has none"
        raise ConfigError(f"by {by}: not a hive directory of {', '.join(scores.outputs)}; {found}")
    count = len({dict(hive_values(part.uri)).get(by) for part in scores.parts})
    if count > _MOST_NIGHTS:
        raise ConfigError(f"by {by}: {count:,} values; a report draws at most {_MOST_NIGHTS:,}")


def _means(scores: Scores) -> dict[str, str]:
    """SQL of the columns whose means are told, by name."""
    rewards = {f"rewards.{name}": f"rewards.{quote(name)}" for name in scores.reward_names}
    return {SCORE: SCORE, **rewards, LENGTH: LENGTH}


def _columns(scores: Scores, price: float | None) -> list[str]:
    return [*_means(scores), REJECTED, SPEED, *([] if price is None else [COST])]


def _scored(con: duckdb.DuckDBPyConnection, scores: Scores, by: str) -> dict[str, dict[str, Any]]:
    """Counts, means and quantiles of the score by night, in one scan."""
    parts = [part for part in scores.parts if by in part.directories]
    means = _means(scores)
    selects = ", ".join(f"avg(({sql})::DOUBLE)" for sql in means.values())
    # a t-digest: exact quantiles of all nights would have to be in memory together
    rows = con.execute(
        f"""SELECT {quote(by)}, count(*), approx_quantile({SCORE}::DOUBLE, [0.1, 0.9]), {selects}
            FROM ({scan(parts)}) WHERE {quote(by)} IS NOT NULL GROUP BY 1"""
    ).fetchall()
    return {
        night: {"scored": count, "p10": low, "p90": high, **dict(zip(means, values, strict=True))}
        for night, count, (low, high), *values in rows
    }


def _records(committed: Committed, by: str) -> dict[str, list[Mapping[str, Any]]]:
    """The commit records whose shard lies in a directory of a night."""
    nights = defaultdict(list)
    for record in committed.records:
        night = dict(hive_values(record["source"])).get(by)
        if night is not None:
            nights[night].append(record)
    return nights


def _recorded(
    records: Sequence[Mapping[str, Any]], runs: Sequence[Mapping[str, Any]], price: float | None
) -> dict[str, Any]:
    """Rejects, speed and cost of a night."""
    read = sum(record["candidates"] for record in records)
    rejected = sum(sum(record["rejected"].values()) for record in records)
    fast = speed(records, runs, price) if records else None
    return {
        "candidates": read if records else None,
        "rejected": rejected if records else None,
        REJECTED: rejected / read if read else None,
        SPEED: fast.tokens_per_second if fast else None,
        COST: fast.cost_usd if fast else None,
    }


def _night(name: str, own: Mapping[str, Any], values: dict[str, Value]) -> Night:
    return Night(
        night=name,
        scored=own.get("scored", 0),
        candidates=own["candidates"],
        rejected=own["rejected"],
        p10=own.get("p10"),
        p90=own.get("p90"),
        values=values,
    )


def compared(values: Iterable[float | None]) -> list[Value]:
    """The values of all nights, oldest first, each compared with those before it."""
    before: deque[float] = deque(maxlen=WEEK)
    found = []
    for value in values:
        found.append(_compared(value, before))
        if value is not None:
            before.append(value)
    return found


def _compared(value: float | None, before: Sequence[float]) -> Value:
    middle = mean(before) if before else None
    deviation = stdev(before) if len(before) > 1 else None
    own = Value(value, len(before), middle, deviation, None)
    if value is None or own.limits is None or len(before) < FEWEST:
        return own
    low, high = own.limits
    rounding = 1e-9 * abs(low + high)  # equal values may differ by that much
    is_outside = not low - rounding <= value <= high + rounding
    return replace(own, outside=("above" if value > high else "below") if is_outside else None)


def _order(night: str) -> tuple[bool, int, str]:
    """Whole numbers by their value, before texts in their order."""
    whole = night.isascii() and night.isdigit()
    return (not whole, int(night) if whole else 0, night)
