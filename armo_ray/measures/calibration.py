"""Statistics of a whole corpus for labels: mean and deviation of the score and every reward, and a temperature."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import Expression, quote

# significant digits that are kept: the last bits of a sum depend on the order in which threads add
_DIGITS = 9


def standardization(
    con: duckdb.DuckDBPyConnection, relation: str, names: Sequence[str], per: Sequence[Expression]
) -> list[dict[str, Any]]:
    """`mean` and `scale` (population standard deviation) of the score and every reward, for each group by `per`.

    A scale of 0, when all values are equal, is returned as 1.
    """
    columns = ["score", *(f"rewards.{quote(name)}" for name in names)]
    numbers = ", ".join(f"avg({c}::DOUBLE), stddev_pop({c}::DOUBLE)" for c in columns)
    groups = "".join(f"({e.sql})::VARCHAR AS __per{i}, " for i, e in enumerate(per))
    rows = con.execute(f"SELECT {groups}{numbers} FROM ({relation}) GROUP BY ALL ORDER BY ALL").fetchall()
    labels = []
    for row in rows:
        moments = [float(f"{number:.{_DIGITS}g}") for number in row[len(per) :]]
        pairs = zip(["score", *names], moments[::2], moments[1::2], strict=True)
        entry = {name: {"mean": mean, "scale": scale or 1.0} for name, mean, scale in pairs}
        labels.append({"group": list(row[: len(per)]), "labels": entry})
    return labels


def find_temperature(con: duckdb.DuckDBPyConnection, relation: str) -> Mapping[str, Any]:
    """The best temperature for labelled pairs and measures of its fit; 1 if the corpus has no labelled pairs.

    A labelled pair is two candidates of one row with the roles chosen and rejected.
    """
    differences = con.execute(
        f"""SELECT c.score::DOUBLE - r.score::DOUBLE AS difference
            FROM ({relation}) c JOIN ({relation}) r USING (source, source_row)
            WHERE c.role = 'chosen' AND r.role = 'rejected' ORDER BY difference"""
    ).fetchnumpy()["difference"]
    if not len(differences):
        return {"temperature": 1.0, "labelled_pairs": 0}
    differences = np.asarray(differences, np.float64)
    temperature = fit_temperature(differences)
    loss = float(np.logaddexp(0, -differences / temperature).mean())
    return {
        "temperature": temperature,
        "labelled_pairs": len(differences),
        "accuracy": float((differences > 0).mean() + (differences == 0).mean() / 2),
        "log_loss": round(loss, _DIGITS),
    }


def fit_temperature(differences: npt.NDArray[np.float64]) -> float:
    """The T that maximizes Π sigmoid(d / T) over the score differences d = chosen - rejected (P,) of labelled pairs.

    The logarithm is concave in 1 / T, so its slope is bisected. Raises ConfigError if there is no best T because the
    scores agree with all labels, or with too few.
    """

    def slope(inverse: float) -> float:
        # derivative of the logarithm: Σ d sigmoid(-d / T)
        return math.fsum(differences * np.exp(-np.logaddexp(0, differences * inverse)))

    if differences.sum() <= 0 or (differences >= 0).all():
        agree = "none of" if (differences >= 0).all() else "too many of"
        raise ConfigError(
            f"no temperature fits best: {agree} {len(differences)} labelled pairs contradict the scores; "
            f"give --temperature"
        )
    low, high = 0.0, 1 / float(np.abs(differences).max())
    while slope(high) > 0:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(middle) > 0 else (low, middle)
    return float(f"{1 / high:.{_DIGITS}g}")
