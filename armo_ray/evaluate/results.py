"""From items to the numbers of an evaluation: those of the benchmark's authors, and what they leave out."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from armo_ray.evaluate.benchmarks import OVERALL, Benchmark
from armo_ray.evaluate.diagnostics import agreement_of, by_length, differences, interval, margins, resampled
from armo_ray.evaluate.items import Items


def judge(items: Items, benchmark: Benchmark, samples: int, seed: int) -> dict[str, Any]:
    """Judge the first column of items by a benchmark's rules; all numbers are fractions of 1.

    Args:
        samples, seed: of the bootstrap.

    Returns:
        `items` and `unscored` ones, which count as wrong; `subsets` and `sections` with their accuracy, its
        interval, and `longest`, the accuracy of always taking the longest answer; `pairs` of each label;
        `length`, accuracy by relative length; `objectives`, the overall accuracy of every reward alone; and
        `agreement` between any two columns.

    Raises ConfigError where items are not of the benchmark.
    """
    labels = benchmark.labels(items)
    columns = (*items.values.T, items.tokens)
    worth = [benchmark.credits(items, column.astype(np.float64), labels) for column in columns]
    by_subset = [benchmark.subsets(credit) for credit in worth]
    counts = {name: len(credit) for name, credit in by_subset[0].items()}
    means = [{name: float(credit.mean()) for name, credit in found.items()} for found in by_subset]
    sections = [benchmark.sections(mean, counts) for mean in means]
    generator = np.random.default_rng(seed)
    drawn = benchmark.subsets({k: resampled(credit, samples, generator) for k, credit in worth[0].items()})
    section_rows = _rows(sections, benchmark.sections(drawn, counts))
    return {
        "items": len(items),
        "unscored": int(items.unscored.sum()),
        "subsets": {name: {"items": counts[name], **row} for name, row in _rows(means, drawn).items()},
        "sections": section_rows,
        "missing_sections": [name for name in sections[0] if name not in section_rows],
        "pairs": margins(items, labels),
        "length": by_length(items),
        "objectives": {
            name: _alone(sections[i], means[i], counts) for i, name in enumerate(items.names) if i > 0
        },
        "agreement": {
            "names": list(items.names),
            "matrix": agreement_of(differences(items)).round(6).tolist(),
        },
    }


def _rows(by_column: list[dict[str, float]], drawn: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """What is known of the first column, beside the last, of lengths."""
    found = {}
    for name, accuracy in by_column[0].items():
        if np.isfinite(accuracy):
            low, high = interval(drawn[name])
            found[name] = {"accuracy": accuracy, "low": low, "high": high, "longest": by_column[-1][name]}
    return found


def _alone(sections: dict[str, float], means: dict[str, float], counts: dict[str, int]) -> float:
    """The overall accuracy; of a part of a benchmark, the mean over its items."""
    if np.isfinite(sections[OVERALL]):
        return sections[OVERALL]
    return sum(means[name] * counts[name] for name in counts) / sum(counts.values())
