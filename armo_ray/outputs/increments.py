"""Datasets that grow: each increment adds the rows of what was scored since the one before.

`_increments/made.json` is created first: the command and the options that all increments share.
`_increments/00001.json`, created once every part of the increment is written, is its commit. The dataset is what its
increments list. Any other part was left by a command that was killed, or was replaced; the next command deletes it,
unless a file `_increments/held-*.json` names it: then readers of an earlier state still need it.
"""

import json
import logging
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.outputs import dataset
from armo_ray.storage import commits, json_files, lock
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.parts import DATA
from armo_ray.storage.records import DamagedError, PartEntry
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

FOLDER = "_increments"
MINHASH = "_minhash"  # digests of the prompts of each increment, if it compares them
_MADE = f"{FOLDER}/made.json"
_HELD = re.compile(rf"{FOLDER}/held(-[0-9a-f]+)?\.json")  # without digits: of an earlier version
_COMMIT = re.compile(r"(\d{5,})\.json")
_PART = re.compile(r"part-(\d{5,})-")  # in names of parts: the increment whose rows it holds
_KIND = json_files.Kind(
    {
        "units": lambda value: isinstance(value, dict),
        "parts": lambda value: isinstance(value, list),
        "replaced": lambda value: isinstance(value, list),
    },
    {},
)
_MADE_KIND = json_files.Kind({"command": lambda value: isinstance(value, str)}, {})

Units = Mapping[str, Mapping[str, str]]  # by output and unit, the digest of the parts that were read


@dataclass(frozen=True)
class Increment:
    """What one increment read and wrote."""

    units: Units
    parts: tuple[PartEntry, ...]
    replaced: tuple[str, ...]  # paths of the parts of earlier increments that it replaced
    counts: Mapping[str, Any]
    contaminated: Mapping[str, Mapping[str, str] | None] = field(default_factory=dict)
    """Changes to the list of contaminated prompts, by prompt id; None takes an entry out."""
    finished_at: str = ""
    date: str | None = None  # of the command, if it was given one


@dataclass(frozen=True)
class Making:
    """What all increments of a dataset have in common."""

    command: str
    settings: Mapping[str, Any]  # the options that decide rows and are not at their default
    state: Mapping[str, str]  # digests of what else decides rows, by what it is


@dataclass(frozen=True)
class Growing:
    """A dataset that is locked by this command, and its increments so far."""

    store: Store
    increments: tuple[Increment, ...]

    @property
    def number(self) -> int:
        """The number of the next increment; the first is 1."""
        return len(self.increments) + 1

    @property
    def parts(self) -> list[PartEntry]:
        """The parts that the dataset consists of."""
        replaced = {path for one in self.increments for path in one.replaced}
        return [part for one in self.increments for part in one.parts if part.path not in replaced]

    @property
    def units(self) -> Units:
        """All units that were read."""
        used: dict[str, dict[str, str]] = {}
        for one in self.increments:
            for output, units in one.units.items():
                used.setdefault(output, {}).update(units)
        return used

    @property
    def contaminated(self) -> dict[str, Mapping[str, str]]:
        """The entries of the contaminated prompts, by prompt id."""
        entries: dict[str, Mapping[str, str] | None] = {}
        for one in self.increments:
            entries |= one.contaminated
        return {prompt: entry for prompt, entry in sorted(entries.items()) if entry is not None}

    def commit(self, increment: Increment) -> "Growing":
        """Add an increment whose parts are written. Raises RuntimeError if another command added one meanwhile."""
        increment = replace(increment, finished_at=commits.now())
        content = vars(increment) | {"parts": [part.to_dict() for part in increment.parts]}
        if not self.store.create(f"{FOLDER}/{self.number:05d}.json", json_files.sealed(content)):
            raise RuntimeError(f"{self.store.uri}: another command added an increment: run this one again")
        return replace(self, increments=(*self.increments, increment))

    def is_published(self) -> bool:
        """Whether the manifest lists all increments."""
        manifest = self.store.read_json(commits.SUCCESS) or {}
        return len(manifest.get("increments", ())) == len(self.increments)

    def delete_stale(self) -> None:
        """Delete the parts and scratch files that neither an increment nor the manifest lists, nor are held."""
        manifest = self.store.read_json(commits.SUCCESS) or {"parts": []}
        listed = {part.path for part in self.parts} | {part["path"] for part in manifest["parts"]}
        names = dataset.own_files(dataset.names_in(self.store))
        for name in filter(_HELD.fullmatch, names):
            listed |= set((self.store.read_json(name) or {"parts": []})["parts"])
        listed |= {f"{MINHASH}/{number:05d}.parquet" for number in range(1, self.number)}
        folders = tuple(f"{folder}/" for folder in (DATA, MINHASH, "_work"))
        stale = [name for name in names if name.startswith(folders) and name not in listed]
        if stale:
            dataset.delete(self.store, stale)


def parts_of_date(store: Store, date: str) -> list[PartEntry]:
    """The parts with rows of the increments of a date, as far as later increments left them."""
    manifest = store.read_json(commits.SUCCESS) or {"parts": []}
    numbers = dict(_increments_of_date(manifest, date))
    return [PartEntry.from_dict(p) for p in manifest["parts"] if _increment_of(p["path"]) in numbers]


def increments_of_date(store: Store, date: str) -> list[tuple[int, str]]:
    """The numbers of the increments of a date, each with the time when it was finished."""
    return _increments_of_date(store.read_json(commits.SUCCESS) or {}, date)


def _increments_of_date(manifest: Mapping[str, Any], date: str) -> list[tuple[int, str]]:
    made = (one for one in manifest.get("increments", ()) if one.get("date") == date)
    return [(one["number"], one["finished_at"]) for one in made]


def _increment_of(path: str) -> int | None:
    """The increment that made the rows of a part: 1 of part-00001-00000, and of part-00001-00000-00003, its rest."""
    found = _PART.match(path.rpartition("/")[2])
    return int(found[1]) if found else None


def hold(store: Store, reader: str, paths: Collection[str]) -> None:
    """Keep these parts of a dataset that grows for a reader, and no others for it. `reader` is any name."""
    name = f"{FOLDER}/held-{json_files.digest_of(reader.encode())[:16]}.json"
    store.write(name, json_files.sealed({"reader": reader, "parts": sorted(paths)}))
    store.delete(f"{FOLDER}/held.json")  # of an earlier version, which knew one reader


@contextmanager
def growing_output(uri: str, making: Making) -> Iterator[Growing]:
    """Lock an output that is empty or was made by the same command with the same options, without leftovers.

    If the body fails before it commits an increment, what it wrote is deleted.

    Raises ConfigError if the output holds something else, or what decides its rows has changed; then nothing is
    written.
    """
    store = Store(uri)
    made = _read_made(store)
    if made is None:
        _check_free(store)
    else:
        _check_same(store, made, making)
    with lock.held(store, making.command) as held:
        _claim(held, making)
        growing = Growing(store, read_increments(store))
        growing.delete_stale()
        try:
            yield growing
        except BaseException:
            _undo(held, growing)
            raise


def _check_free(store: Store) -> None:
    if commits.SUCCESS in store.list_names(""):
        raise ConfigError(
            f"output {store.uri}: holds a dataset that was made without --append: delete it, or choose another"
        )
    dataset.check_unclaimed(store)


def _claim(held: lock.Held, making: Making) -> None:
    store = held.store
    made = _read_made(store)
    if made is None:
        dataset.check_empty(held)
        store.create(_MADE, json_files.sealed(vars(making)))
        made = _read_made(store)
    _check_same(store, made or {}, making)


def _read_made(store: Store) -> dict[str, Any] | None:
    with commits.reading(store, "output "):
        try:
            return json_files.parse(store.read(_MADE), _MADE_KIND)
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise _damaged(store, _MADE, error) from error


def _check_same(store: Store, made: Mapping[str, Any], making: Making) -> None:
    """Raises ConfigError, naming what differs, if a dataset was made in another way."""
    if made.get("command") != making.command:
        raise ConfigError(
            f"output {store.uri} was made by armo-ray {made.get('command')}: choose another output"
        )
    before, now = made["settings"], json.loads(json.dumps(making.settings))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            was, is_now = (repr(s[name]) if name in s else "the default" for s in (before, now))
            raise ConfigError(
                f"output {store.uri}: --{name.replace('_', '-')} was {was}, now {is_now}: --append adds rows made with "
                f"the same options. Use them, or another output"
            )
    for name, digest in making.state.items():
        if made["state"].get(name) != digest:
            raise ConfigError(
                f"output {store.uri}: {name} changed since its first increment: make the dataset anew, elsewhere"
            )


def read_increments(store: Store) -> tuple[Increment, ...]:
    """All increments, in order. Raises DamagedError if one is damaged or missing."""
    names = sorted(name for name in store.list_names(FOLDER) if _COMMIT.fullmatch(name))
    expected = [f"{number:05d}.json" for number in range(1, len(names) + 1)]
    if missing := sorted(set(expected) - set(names)):
        raise DamagedError(f"{store.uri}/{FOLDER}/{missing[0]}: missing: make the dataset anew")
    return tuple(in_parallel(lambda name: _read_increment(store, f"{FOLDER}/{name}"), expected))


def _read_increment(store: Store, name: str) -> Increment:
    try:
        values = json_files.parse(store.read(name), _KIND)
        values = {name: values[name] for name in Increment.__dataclass_fields__ if name in values}
        parts = tuple(PartEntry.from_dict(part) for part in values.pop("parts"))
        return Increment(**values | {"replaced": tuple(values["replaced"])}, parts=parts)
    except (ValueError, TypeError) as error:
        raise _damaged(store, name, error) from error


def _damaged(store: Store, name: str, error: Exception) -> DamagedError:
    return DamagedError(f"{store.uri}/{name}: damaged: {error}. Make the dataset anew, in another output")


def _undo(held: lock.Held, growing: Growing) -> None:
    """Delete what this command wrote, unless it committed an increment or lost the output. Does not raise."""
    store = held.store
    try:
        if not held.is_ours() or len(read_increments(store)) > len(growing.increments):
            return
        if growing.increments:
            growing.delete_stale()
        else:
            dataset.delete(store, dataset.own_files(dataset.names_in(store)))
    except (OSError, RuntimeError, ConfigError) as error:
        logger.warning("%s: cannot delete the files written so far: %s", store.uri, error)


def numbers(increments: Sequence[Increment]) -> list[dict[str, Any]]:
    """The increments in numbers, as the manifest lists them."""
    return [
        {
            "number": number,
            "finished_at": one.finished_at,
            "date": one.date,
            "units": sum(map(len, one.units.values())),
            "counts": dict(one.counts),
        }
        for number, one in enumerate(increments, 1)
    ]
