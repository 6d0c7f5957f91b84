"""Counts of the input and of the sample, repeated prompts, and lengths of conversations."""

import math
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from armo_ray.plan.intervals import Figure, Z, exact
from armo_ray.plan.sample import Sample
from armo_ray.storage.units import Span

Json = dict[str, Any]


def describe_input(spans: Sequence[Span]) -> Json:
    units = [unit for span in spans if span.error is None for unit in span.units]
    parquet = sum(span.shard.is_parquet for span in spans)
    return {
        "shards": len(spans),
        "parquet_shards": parquet,
        "unreadable_shards": sum(span.error is not None for span in spans),
        "bytes": sum(span.shard.size for span in spans),
        "parquet_units": len(units),
        "parquet_rows": sum(unit.num_rows for unit in units),
        "parquet_candidates": sum(unit.candidates for unit in units),
    }


def describe_sample(sample: Sample) -> Json:
    counts = {
        name: sum(int(s.counts[name].sum()) for s in sample.strata)
        for name in ("rows", "candidates", "tokens")
    }
    complete = all(stratum.complete for stratum in sample.strata)
    return {"places": sum(map(len, sample.runs)), **counts, "complete": complete}


def duplicates(sample: Sample, rows_to_do: float) -> Json:
    """The fraction of sampled rows that share their prompt with another row, and the expected number of other rows,
    among all rows to do, that share a row's prompt.

    The latter counts within the row's own run of consecutive rows, and extrapolates from pairs of rows in
    different runs. Two runs that share prompts are one event of a Poisson process, however many prompts they share.
    """
    runs = [run.prompts for runs in sample.runs for run in runs]
    places: dict[str, list[int]] = {}
    for k, run in enumerate(runs):
        for prompt in run:
            places.setdefault(prompt, []).append(k)
    rows = sum(run.total() for run in runs)
    if not rows:
        return {"repeated": None, "others": None}
    shared: Counter[tuple[int, int]] = Counter()
    for prompt, those in places.items():
        for a, b in combinations(those, 2):
            shared[a, b] += runs[a][prompt] * runs[b][prompt]
    alone = sum(runs[those[0]][prompt] == 1 for prompt, those in places.items() if len(those) == 1)
    near = sum(n * (n - 1) for run in runs for n in run.values()) / rows
    pairs = (rows**2 - sum(run.total() ** 2 for run in runs)) / 2
    equal, error = shared.total(), math.sqrt(sum(n**2 for n in shared.values()))
    if all(s.complete for s in sample.strata) or not pairs:
        return {"repeated": 1 - alone / rows, "others": exact(near + 2 * equal / rows)}
    # if no event was seen, up to 3 are possible
    bounds = equal, max(equal - Z * error, 0.0), equal + Z * error + 3.0
    return {
        "repeated": 1 - alone / rows,
        "others": Figure(*(near + n / pairs * rows_to_do for n in bounds)),
    }


def lengths(tokens: Sequence[int], weights: Sequence[float], max_length: int, measured: int) -> Json:
    """Mean, quantiles and histogram of the tokens of conversations, in bins that double, with an edge at max_length.

    measured: the largest length that is measured; longer conversations count as this long.
    """
    if not tokens:
        return {"mean": None, "quantiles": {}, "longest": None, "is_bound": False, "histogram": []}
    order = np.argsort(tokens, kind="stable")
    values, mass = np.asarray(tokens)[order], np.asarray(weights)[order]
    below = np.cumsum(mass) / mass.sum()
    at = {q: int(values[np.searchsorted(below, q - 1e-9)]) for q in (0.5, 0.9, 0.99)}
    edges = [1 << k for k in range(4, 40) if 1 << k < max_length]
    edges = [1, *edges, max_length + 1, *(max_length * (1 << k) + 1 for k in range(1, 5))]
    edges = sorted({*edges, max(int(values[-1]) + 1, edges[-1] + 1)})
    counts, _ = np.histogram(values, edges, weights=mass)
    bins = [
        {"from": a, "to": b - 1, "share": float(n / mass.sum())}
        for a, b, n in zip(edges, edges[1:], counts, strict=False)
    ]
    filled = [k for k, bucket in enumerate(bins) if bucket["share"]]
    return {
        "mean": float(np.average(values, weights=mass)),
        "quantiles": at,
        "longest": int(values[-1]),
        "is_bound": bool(values[-1] >= measured),  # then longest and mean are lower bounds
        "histogram": bins[filled[0] : filled[-1] + 1],
    }


def mean_context(tokens: Sequence[int], weights: Sequence[float]) -> float:
    """The mean number of tokens that a token of these conversations attends to; 0 for none."""
    sizes, mass = np.asarray(tokens, np.float64), np.asarray(weights, np.float64)
    whole = float((sizes * mass).sum())
    return float((sizes * (sizes + 1) / 2 * mass).sum()) / whole if whole else 0.0
