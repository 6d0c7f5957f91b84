"""From items to the numbers of an evaluation: those of the benchmark's authors, and what they leave out."""

from typing import Any

import numpy as np

from armo_ray.evaluation.benchmarks import OVERALL, Benchmark
from armo_ray.evaluation.items import Items
from armo_ray.evaluation.measures import (
    agreement_of,
    by_length,
    differences,
    interval,
    margins,
    resampled,
)


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
    values = np.concatenate((items.values, items.tokens[:, None]), axis=1).astype(np.float64)
    by_column = [benchmark.credits(items, column, labels) for column in values.T]
    counts = {name: len(credit) for name, credit in by_column[0].items()}
    means = [{name: float(c.mean()) for name, c in found.items()} for found in by_column]
    sections = [
        {name: float(value) for name, value in benchmark.sections(mean, counts).items()} for mean in means
    ]
    generator = np.random.default_rng(seed)
    drawn = {name: resampled(credit, samples, generator) for name, credit in by_column[0].items()}
    drawn_sections = benchmark.sections(drawn, counts)
    subset_rows = {
        name: {"items": counts[name], **_row(means[0][name], drawn[name], means[-1][name])} for name in counts
    }
    section_rows = {
        name: _row(value, drawn_sections[name], sections[-1][name])
        for name, value in sections[0].items()
        if np.isfinite(value)
    }
    difference = differences(items)
    return {
        "items": len(items),
        "unscored": int(items.unscored.sum()),
        "subsets": subset_rows,
        "sections": section_rows,
        "missing_sections": [name for name in sections[0] if name not in section_rows],
        "pairs": margins(items, labels),
        "length": by_length(items),
        "objectives": {
            name: _alone(sections[i], means[i], counts) for i, name in enumerate(items.names) if i > 0
        },
        "agreement": {"names": list(items.names), "matrix": agreement_of(difference).round(6).tolist()},
    }


def _row(accuracy: float, drawn: Any, longest: float) -> dict[str, float]:
    low, high = interval(drawn)
    return {"accuracy": accuracy, "low": low, "high": high, "longest": longest}


def _alone(sections: dict[str, float], means: dict[str, float], counts: dict[str, int]) -> float:
    """The overall accuracy; of a part of a benchmark, the mean over its items."""
    if np.isfinite(sections[OVERALL]):
        return sections[OVERALL]
    return sum(means[name] * counts[name] for name in counts) / sum(counts.values())
