"""`armo-ray report`: a page and its numbers about outputs, and whether they drifted."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from armo_ray.exit_status import COMPLETE, DRIFTED
from armo_ray.report.numbers import measure
from armo_ray.report.options import ReportOptions
from armo_ray.report.page import page
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)


def run(options: ReportOptions) -> int:
    """Write the report. Returns DRIFTED if the outputs drifted from the older one, else COMPLETE."""
    place, name = options.output or options.scores[0], "report.html"
    if place.endswith(".html"):
        place, _, name = place.rpartition("/")
        place = place or "."
    store = Store(place)
    found = measure(options)
    store.write(name, page(found).encode())
    store.write(name.removesuffix(".html") + ".json", _to_json(found))
    print(f"report: {store.uri}/{name}")
    drifted = found["drift"]["drifted"] if found["drift"] else []
    if drifted:
        logger.error("drifted from %s: %s", options.against, ", ".join(drifted))
        return DRIFTED
    return COMPLETE


def _to_json(found: Mapping[str, Any]) -> bytes:
    """With rewards in the order of the model, and null for what is no number."""
    return json.dumps(found, indent=1, default=str, allow_nan=False).encode() + b"\n"
