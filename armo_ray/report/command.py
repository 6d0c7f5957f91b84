"""`armo-ray report`: a page and its numbers about outputs, and whether they drifted."""

import logging

from armo_ray.report.numbers import measure
from armo_ray.report.options import ReportOptions
from armo_ray.report.page import page
from armo_ray.storage import commits
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)


def run(options: ReportOptions) -> bool:
    """Write the report; tells whether the outputs drifted from the older one. Raises ConfigError."""
    place, name = options.output or options.scores[0], "report.html"
    if place.endswith(".html"):
        place, _, name = place.rpartition("/")
        place = place or "."
    store = Store(place)
    found = measure(options)
    store.write(name, page(found).encode())
    store.write(name.removesuffix(".html") + ".json", commits.to_json(found))
    print(f"{store.uri}/{name}")
    drifted = found["drift"]["drifted"] if found["drift"] else []
    if drifted:
        logger.error("drifted from %s: %s", options.against, ", ".join(drifted))
    return bool(drifted)
