"""Results that were published, and whether an evaluation reproduces them."""

import difflib
import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.evaluate.benchmarks import BENCHMARKS

POINTS = 1.0  # that a section may differ by: other kernels and a bfloat16 head move a few close pairs


def published(benchmark: str) -> list[dict[str, Any]]:
    """Entries of model, revision, source, and accuracies in percent: `sections`, and `subsets` where published.

    Sections that follow from the published subsets are computed by the benchmark's rules.
    """
    content = json.loads(files("armo_ray.evaluate").joinpath("published.json").read_text("utf-8"))
    entries: list[dict[str, Any]] = content.get(benchmark, [])
    for entry in entries:
        if "subsets" in entry:
            entry["sections"] = BENCHMARKS[benchmark].sections(entry["subsets"], {})
    return entries


def find_published(benchmark: str, model: str, asked: str | None) -> dict[str, Any] | None:
    """The published results of a model, by the last part of its name; None where there are none.

    Raises ConfigError where a model that was asked for has none.
    """
    entries = {_key(entry["model"]): entry for entry in published(benchmark)}
    found = entries.get(_key(asked or model))
    if found is None and asked is not None:
        known = [entry["model"] for entry in entries.values()]
        close = difflib.get_close_matches(asked, known, 1)
        told = f"did you mean {close[0]}?" if close else f"there are {', '.join(known) or 'none'}"
        raise ConfigError(f"published {asked}: no results of it on {benchmark} are known; {told}")
    return found


def _key(model: str) -> str:
    return model.rstrip("/").rpartition("/")[2].lower()


def against(entry: Mapping[str, Any], found: Mapping[str, float | None]) -> dict[str, Any]:
    """Sections in percent beside the published ones, and whether all that both have are within a point."""
    rows = {}
    for name, value in entry["sections"].items():
        own = found.get(name)
        if own is not None:
            rows[name] = {"published": value, "found": 100 * own, "difference": 100 * own - value}
    return {
        "model": entry["model"],
        "source": entry["source"],
        "sections": rows,
        "missing": [name for name in entry["sections"] if name not in rows],
        "reproduced": bool(rows) and all(abs(row["difference"]) <= POINTS for row in rows.values()),
    }
