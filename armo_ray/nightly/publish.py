"""Publishing a night: `dates/<date>.json`, then `LATEST.json`, each a pointer that appears whole or not at all.

A pointer lists the parts of the scores and datasets. A later night adds parts or outputs and changes none of these. An
increment replaces parts of its dataset, but those that LATEST.json or the pointer before it lists stay until the next
night is published. So who read LATEST.json can read all that it lists for as long as a night takes, at least.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.nightly.gate import Condition
from armo_ray.nightly.night import DATASETS, Night
from armo_ray.nightly.steps import Done, report_place
from armo_ray.outputs.dataset import parts_of
from armo_ray.outputs.increments import hold
from armo_ray.storage import commits, lock
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.json_files import digest_of, to_json
from armo_ray.storage.parts import REJECTS
from armo_ray.storage.store import Store
from armo_ray.version import __version__

logger = logging.getLogger(__name__)

LATEST = "LATEST.json"
PAGE = "night.html"
_WHEN = "published_at"


def publish(night: Night, done: dict[str, Done], conditions: list[Condition]) -> dict[str, Any]:
    """Write the pointers. Returns where the night's is, whether it is new, and whether LATEST.json is it.

    Raises ConfigError if another night is being published there at this moment, or a part is not as it was written.
    """
    assert night.publish is not None
    store, name = Store(night.publish), f"dates/{night.date}.json"
    content = pointer(night, done, conditions)
    with lock.held(store, "nightly"):
        _check_parts(night, content, store.read_json(LATEST) or {})
        earlier = store.read_json(name)
        is_new = _plain(earlier) != _plain(content)
        if earlier is not None and not is_new:
            content = earlier
        else:
            store.write(name, to_json(content))
        moved = _move_latest(store, content, night)
    return {"pointer": f"{store.uri}/{name}", "new": is_new or moved, "latest": _is_latest(store, night)}


def find_published(night: Night, done: dict[str, Done]) -> tuple[list[Condition], dict[str, Any]] | None:
    """The conditions of a night whose pointer lists all that it made, and where that is; None if it is to be judged.

    It is also judged if LATEST.json should name this night and does not, or if that is asked for.
    """
    if night.publish is None or night.force_latest or not any(one.made for one in done.values()):
        return None
    store, name = Store(night.publish), f"dates/{night.date}.json"
    earlier, latest = store.read_json(name) or {}, store.read_json(LATEST) or {}
    if earlier.get("made") != _made(done) or latest.get("date", "") < night.date:
        return None
    conditions = [Condition(**condition) for condition in earlier["gate"]]
    return conditions, {"pointer": f"{store.uri}/{name}", "new": False, "latest": _is_latest(store, night)}


def _made(done: dict[str, Done]) -> str:
    """A digest of what the steps of a night made."""
    return digest_of(json.dumps({name: one.made for name, one in done.items()}, sort_keys=True).encode())


def pointer(night: Night, done: dict[str, Done], conditions: list[Condition]) -> dict[str, Any]:
    """The content of a pointer: what was made, part by part, with totals and the values of the gate."""
    scores, report = night.step("score"), night.step("report")
    datasets = {step.name: _listed(step.writes[0]) for step in night.steps if step.name in DATASETS}
    totals: dict[str, Any] = {f"{name}_rows": dataset["rows"] for name, dataset in datasets.items()}
    of_night = done["score"].totals if scores else ()
    return {
        "date": night.date,
        "made": _made(done),
        "version": __version__,
        _WHEN: commits.now(),
        "scores": [_listed(output) for output in scores.writes] if scores else [],
        "datasets": datasets,
        "totals": totals
        | {
            "candidates": sum(one.candidates for one in of_night),
            "scored": sum(one.scored for one in of_night),
            "rejected": sum(one.num_rejected for one in of_night),
        },
        "gate": [condition._asdict() for condition in conditions],
        "page": f"{Store(night.home).uri}/{PAGE}",
        "report": f"{Store(report_place(report)[0]).uri}/{report_place(report)[1]}" if report else None,
    }


def _listed(output: str) -> dict[str, Any]:
    """An output: its URI, and its parts, by paths below it. Raises RuntimeError if it is not complete."""
    store = Store(output)
    parts = parts_of(store)
    if parts is None:
        raise RuntimeError(f"{output}: not complete any more: run the same command again")
    return {
        "uri": store.uri,
        "rows": sum(part.rows for part in parts if not part.is_in(REJECTS)),
        "bytes": sum(part.bytes for part in parts),
        "parts": [part.to_dict() for part in parts],
    }


def _check_parts(night: Night, content: dict[str, Any], latest: dict[str, Any]) -> None:
    """Raises ConfigError if a part that LATEST.json does not list is not there, or has another size."""
    known = {(uri, path) for _, uri, parts in _outputs(latest) for path in parts}
    for name, uri, parts in _outputs(content):
        new = {path: size for path, size in parts.items() if (uri, path) not in known}
        for path, found in _sizes(Store(uri), new).items():
            if found != new[path]:
                what = "is missing" if found is None else f"has {found} bytes"
                raise ConfigError(
                    f"{uri}/{path} {what}; it was written with {new[path]} bytes: {_repair(night, name, uri)}"
                )


def _repair(night: Night, name: str, uri: str) -> str:
    """What to do if a part of the output of a step is damaged."""
    step = night.step(name)
    if step and step.appends:
        return f"restore it, or make the dataset anew, in another output of [{name}]"
    start = f"use armo-ray verify {uri} --repair" if name == "score" else f"delete {uri}"
    return f"{start}, then run the same command again"


def _sizes(store: Store, paths: Iterable[str]) -> dict[str, int | None]:
    """The sizes of files in an output by their paths; None of those that are missing."""
    folders = sorted({path.rpartition("/")[0] for path in paths})
    listed = dict(zip(folders, in_parallel(store.list_names, folders), strict=True))
    return {path: listed[path.rpartition("/")[0]].get(path.rpartition("/")[2]) for path in paths}


def _outputs(content: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, int]]]:
    """Of each output that a pointer lists: the section that made it, its URI, and the sizes of its parts by path."""
    scores = [("score", one) for one in content.get("scores", ())]
    for name, one in (*scores, *content.get("datasets", {}).items()):
        yield name, one["uri"], {part["path"]: part["bytes"] for part in one["parts"]}


def _move_latest(store: Store, content: dict[str, Any], night: Night) -> bool:
    """Point LATEST.json to this night unless it names a later one. Returns whether it was written."""
    latest = store.read_json(LATEST)
    if latest is not None and latest.get("date", "") > night.date and not night.force_latest:
        logger.info("%s/%s stays at %s, which is later", store.uri, LATEST, latest.get("date"))
        return False
    if latest == content:
        return False
    for step in night.steps:
        if step.appends and step.name != "filter":  # a filter only adds parts
            listed = [(one or {}).get("datasets", {}).get(step.name) for one in (latest, content)]
            uri = Store(step.writes[0]).uri
            parts = [part["path"] for one in listed if one and one["uri"] == uri for part in one["parts"]]
            hold(Store(uri), store.uri, set(parts))
            if content["datasets"][step.name]["parts"] != _listed(uri)["parts"]:
                raise RuntimeError(f"{uri}: changed while it was published: run the same command again")
    store.write(LATEST, to_json(content))
    return True


def _is_latest(store: Store, night: Night) -> bool:
    return (store.read_json(LATEST) or {}).get("date") == night.date


def _plain(content: dict[str, Any] | None) -> dict[str, Any] | None:
    return content and {name: value for name, value in content.items() if name != _WHEN}
