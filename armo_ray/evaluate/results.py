"""Computes the numbers of an evaluation: those that the benchmark's authors report, and diagnostics."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from armo_ray.evaluate.benchmarks import OVERALL, Benchmark
from armo_ray.evaluate.diagnostics import agreement_of, by_length, differences, interval, margins, resampled
from armo_ray.evaluate.items import Items


def evaluate_items(items: Items, benchmark: Benchmark, samples: int, seed: int) -> dict[str, Any]:
    """Evaluate the first column of items, the score, by a benchmark's rules; accuracies are fractions of 1.

    Args:
        samples: number of bootstrap samples behind the intervals.
        seed: seed of the bootstrap.

    Returns:
        `items`, and how many of them are `unscored`, which count as wrong, or `unjudged`, which count as the benchmark
        counts errors of a judge; `subsets` and `sections` with accuracy, its 95 % interval, and `longest`, the
        accuracy of always preferring the longest response, or None; `pairs` by label; `length`, accuracy by relative
        length, if tokens were counted; `objectives`, the overall accuracy of every reward alone; and
        `agreement` between any two columns.

    Raises ConfigError if items are not of the benchmark.
    """
    labels = benchmark.labels(items)
    lengths = (items.tokens,) if items.has_lengths else ()
    columns = (*items.values.T, *lengths)
    plain = items if items.verdicts is None else replace(items, verdicts=replace(items.verdicts, contests={}))
    by_label = [
        benchmark.credits(plain if i else items, column.astype(np.float64), labels)
        for i, column in enumerate(columns)
    ]
    by_subset = [benchmark.subsets(credit) for credit in by_label]
    counts = {name: len(credit) for name, credit in by_subset[0].items()}
    means = [{name: float(credit.mean()) for name, credit in subsets.items()} for subsets in by_subset]
    sections = [benchmark.sections(mean, counts) for mean in means]
    generator = np.random.default_rng(seed)
    drawn = benchmark.subsets({k: resampled(credit, samples, generator) for k, credit in by_label[0].items()})
    section_rows = _rows(sections, benchmark.sections(drawn, counts), items.has_lengths)
    return {
        "items": len(items),
        "unscored": int((items.unscored & ~items.unjudged).sum()),
        "unjudged": int(items.unjudged.sum()),
        "subsets": {
            name: {"items": counts[name], **row}
            for name, row in _rows(means, drawn, items.has_lengths).items()
        },
        "sections": section_rows,
        "missing_sections": [name for name in sections[0] if name not in section_rows],
        "pairs": margins(items, labels),
        "length": by_length(items) if items.has_lengths else [],
        "objectives": {
            name: _alone(sections[i], means[i], counts) for i, name in enumerate(items.names) if i > 0
        },
        "agreement": {
            "names": list(items.names),
            "matrix": agreement_of(differences(items)).round(6).tolist(),
        },
    }


def _rows(
    by_column: list[dict[str, float]], drawn: Mapping[str, Any], has_lengths: bool
) -> dict[str, dict[str, float | None]]:
    """Accuracy and interval of the first column, the score, beside the accuracy of the last, the length."""
    rows: dict[str, dict[str, float | None]] = {}
    for name, accuracy in by_column[0].items():
        if np.isfinite(accuracy):
            low, high = interval(drawn[name])
            rows[name] = {"accuracy": accuracy, "low": low, "high": high}
            rows[name]["longest"] = by_column[-1][name] if has_lengths else None
    return rows


def _alone(sections: dict[str, float], means: dict[str, float], counts: dict[str, int]) -> float:
    """The overall accuracy; if subsets of the benchmark are missing, the mean over all items."""
    if np.isfinite(sections[OVERALL]):
        return sections[OVERALL]
    return sum(means[name] * counts[name] for name in counts) / sum(counts.values())
