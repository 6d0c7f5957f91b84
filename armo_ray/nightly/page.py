"""The page of a night: its steps, the gate as a table, and links to what it made."""

import posixpath
from importlib.resources import files
from typing import Any, NamedTuple

from markupsafe import Markup

from armo_ray.formatting.templates import render
from armo_ray.nightly.gate import Condition
from armo_ray.nightly.night import Night
from armo_ray.nightly.steps import EMPTY, Done, report_place
from armo_ray.outputs.cards import CARD
from armo_ray.storage import commits
from armo_ray.storage.store import Store
from armo_ray.version import __version__


class Row(NamedTuple):
    """A step as the page shows it; `links` are names and addresses."""

    name: str
    done: Done
    links: list[tuple[str, str]]


def page(
    night: Night, done: dict[str, Done], conditions: list[Condition], published: dict[str, Any] | None
) -> str:
    """The HTML of a night whose steps are done; `published` as `publish` returned it."""
    home = Store(night.home).uri
    links = {step.name: [] if done[step.name].status == EMPTY else _links(step, home) for step in night.steps}
    rows = [Row(name, done[name], of_step) for name, of_step in links.items()]
    css = files("armo_ray.report").joinpath("templates/page.css").read_text("utf-8")
    return render(
        "nightly/templates/night.html.jinja",
        night=night,
        rows=rows,
        conditions=conditions,
        failed=[condition for condition in conditions if not condition.passed],
        published=published,
        pointer=_address(published["pointer"], home) if published else None,
        style=Markup(css),  # the package's own: nothing in it comes from data
        version=__version__,
        made_at=commits.now(),
    )


def _links(step: Any, home: str) -> list[tuple[str, str]]:
    if step.name == "report":
        place, name = report_place(step)
        return [("report", _address(f"{Store(place).uri}/{name}", home))]
    uris = [Store(output).uri for output in step.writes]
    return [(uri, _address(f"{uri}/{CARD}", home)) for uri in uris]


def _address(uri: str, home: str) -> str:
    """The address of a file for a page in `home`: relative if both lie in one bucket or on a disk."""
    (protocol, _, path), (own, _, here) = _split(uri), _split(home)
    bucket, base = path.split("/", 1)[0], here.split("/", 1)[0]
    return posixpath.relpath(f"/{path}", f"/{here}") if (protocol, bucket) == (own, base) else uri


def _split(uri: str) -> tuple[str, str, str]:
    protocol, separator, path = uri.rpartition("://")
    return protocol, separator, path
