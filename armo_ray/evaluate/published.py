"""Published results of models on benchmarks, and whether an evaluation reproduces them."""

import difflib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.evaluate.benchmarks import BENCHMARKS

POINTS = 1.0  # a section may differ by this: other kernels and a bfloat16 head flip a few close pairs


def published(benchmark: str) -> list[dict[str, Any]]:
    """Entries with model, revision, source, and accuracies in percent by section and, where published, by subset.

    If subsets were published, sections are computed from them by the benchmark's rules.
    """
    content = json.loads(files("armo_ray.evaluate").joinpath("published.json").read_text("utf-8"))
    entries: list[dict[str, Any]] = content.get(benchmark, [])
    for entry in entries:
        if "subsets" in entry:
            entry["sections"] = BENCHMARKS[benchmark].sections(entry["subsets"], {})
    return entries


def find_published(benchmark: str, model: str, asked: str | None) -> dict[str, Any] | None:
    """The published results of the model `asked` for, else of `model`; None if there are none.

    Models are compared by the last component of their names. Raises ConfigError if the model asked for has no results.
    """
    entries = {_key(entry["model"]): entry for entry in published(benchmark)}
    entry = entries.get(_key(asked or model))
    if entry is None and asked is not None:
        models = [e["model"] for e in entries.values()]
        close = difflib.get_close_matches(asked, models, 1)
        hint = f"did you mean {close[0]}?" if close else f"models with results: {', '.join(models) or 'none'}"
        raise ConfigError(f"published {asked}: no results on {benchmark} are known; {hint}")
    return entry


def _key(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()


def against(entry: Mapping[str, Any], accuracies: Mapping[str, float | None]) -> dict[str, Any]:
    """Sections in percent beside the published ones, and whether all that both have differ by at most POINTS.

    `accuracies` are fractions of 1.
    """
    rows = {}
    for name, value in entry["sections"].items():
        own = accuracies.get(name)
        if own is not None:
            rows[name] = {"published": value, "found": 100 * own, "difference": 100 * own - value}
    return {
        "model": entry["model"],
        "source": entry["source"],
        "note": entry.get("note"),
        "sections": rows,
        "missing": [name for name in entry["sections"] if name not in rows],
        "reproduced": bool(rows) and all(abs(row["difference"]) <= POINTS for row in rows.values()),
    }
