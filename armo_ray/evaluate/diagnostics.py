"""What benchmarks do not report: length, ties, margins, calibration, single rewards and their agreement.

All numbers are over pairs of a correct and a wrong response of one item. Pairs without both scores are left out.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from armo_ray.evaluate.items import Floats, Items
from armo_ray.measures.lengths import LENGTH_RATIOS

_CONFIDENCE = np.linspace(0.5, 1, 11)  # edges of the bins of confidence


def differences(items: Items) -> npt.NDArray[np.float64]:
    """Correct minus wrong in every column, over the pairs that were scored, (P, V)."""
    difference = items.values[items.pairs.correct] - items.values[items.pairs.wrong]
    return np.asarray(difference[~np.isnan(difference[:, 0])], np.float64)


def margins(items: Items, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
    """By label: scored pairs, ties, mean and median margin, and the fraction whose correct response is longer."""
    first, second, item = items.pairs
    margin = items.values[first, 0].astype(np.float64) - items.values[second, 0]
    scored = ~np.isnan(margin)
    label = np.array(labels)[item]
    rows = {}
    for name in dict.fromkeys(labels):
        own = scored & (label == name)
        m, longer = margin[own], (items.tokens[first] > items.tokens[second])[own]
        rows[name] = {
            "pairs": len(m),
            "ties": int((m == 0).sum()),
            "mean_margin": float(m.mean()) if len(m) else None,
            "median_margin": float(np.median(m)) if len(m) else None,
            "correct_is_longer": float(longer.mean()) if len(m) and items.has_lengths else None,
        }
    return rows


def by_length(items: Items) -> list[dict[str, Any]]:
    """Accuracy by the ratio of the correct response's tokens to the wrong one's."""
    first, second, _ = items.pairs
    margin = items.values[first, 0].astype(np.float64) - items.values[second, 0]
    ratio = items.tokens[first] / items.tokens[second]
    bounds = [0.0, *LENGTH_RATIOS, np.inf]
    rows = []
    for low, high in pairwise(bounds):
        own = margin[(ratio >= low) & (ratio < high) & ~np.isnan(margin)]
        entry = {"from": low, "to": None if np.isinf(high) else high, "pairs": len(own)}
        rows.append(entry | {"accuracy": float((own > 0).mean()) if len(own) else None})
    return rows


def reliability(margin: Floats, temperature: float) -> dict[str, Any]:
    """How well sigmoid(|margin| / temperature) predicts how often the higher score is right; a tie is half right.

    Returns:
        `bins` of that confidence, each with its number of pairs, mean confidence and accuracy; and
        `expected_error`, the mean difference between the two, weighted by pairs.
    """
    confidence = 1 / (1 + np.exp(-np.abs(margin) / temperature))
    right = (np.sign(margin) + 1) / 2
    place = np.clip(np.searchsorted(_CONFIDENCE, confidence, side="right") - 1, 0, len(_CONFIDENCE) - 2)
    bins = []
    for i in np.unique(place):
        own = place == i
        entry = {"from": float(_CONFIDENCE[i]), "to": float(_CONFIDENCE[i + 1]), "pairs": int(own.sum())}
        bins.append(
            entry | {"confidence": float(confidence[own].mean()), "accuracy": float(right[own].mean())}
        )
    gaps = [b["pairs"] * abs(b["confidence"] - b["accuracy"]) for b in bins]
    return {"expected_error": sum(gaps) / max(len(margin), 1), "bins": bins}


def agreement_of(difference: Floats) -> Floats:
    """How often two columns prefer the same response of a pair, (V, V); a tie counts as half.

    Args:
        difference: (P, V) correct minus wrong, as `differences` returns it.
    """
    sign = np.sign(difference)
    return np.asarray((sign.T @ sign / max(len(sign), 1) + 1) / 2, np.float64)


def resampled(credit: Floats, samples: int, generator: np.random.Generator) -> Floats:
    """Means of bootstrap samples of credits (N, ...), (samples, ...). Fast because credits have few distinct values."""
    levels, counts = np.unique(credit, axis=0, return_counts=True)
    drawn = generator.multinomial(len(credit), counts / len(credit), samples)
    return np.asarray(drawn @ levels / len(credit), np.float64)


def interval(values: Any) -> tuple[float, float]:
    """The bounds of the middle 95 % of resampled values."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
