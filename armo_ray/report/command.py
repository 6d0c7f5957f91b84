"""`armo-ray report`: a page about outputs, its numbers as JSON, and whether they drifted from an older output."""

import logging
from urllib.parse import quote

from armo_ray.exit_status import COMPLETE, DRIFTED
from armo_ray.report.drift import per_value, told
from armo_ray.report.numbers import measure
from armo_ray.report.options import ReportOptions
from armo_ray.report.page import page
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)


def run(options: ReportOptions) -> int:
    """Write the report. Returns DRIFTED if the outputs drifted from the older one, else COMPLETE."""
    place, name = place_of(options)
    store = Store(place)
    report = measure(options)
    files = store.list_names("").keys() - {name} if report.nights else ()
    store.write(name, page(report, files).encode())
    store.write(name.removesuffix(".html") + ".json", report.to_json())
    print(f"report: {store.uri}/{name}")
    if report.drift:
        print(*told(report.drift), *per_value(report.drift), sep="\n")
    drifted = report.drift.drifted if report.drift else []
    if drifted:
        logger.error("drifted from %s: %s", ", ".join(options.against), ", ".join(drifted))
        return DRIFTED
    return COMPLETE


def place_of(options: ReportOptions) -> tuple[str, str]:
    """The directory of the page, and the name of the page in it."""
    place = options.output or options.scores[0]
    if not place.endswith(".html"):
        return place, _name(options)
    place, _, name = place.rpartition("/")
    return place or ".", name


def _name(options: ReportOptions) -> str:
    """A name for the page: another one for each choice of partitions, so that pages of nights lie side by side."""
    values = [quote(text.partition("=")[2], safe="") for text in options.partition]
    return "-".join(["report", *values]) + ".html"
