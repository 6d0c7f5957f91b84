"""Labels: numbers that people or a judge gave to the responses of a row, such as ratings or whether one is safe.

A label stays with the response that it was given to, wherever the candidates of the row are put. A value that says
nothing (null, NaN, empty text, N/A) is a missing label. One that cannot be read is missing too, and flagged.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

from armo_ray.text.conversations import Candidate
from armo_ray.text.layouts import Layout
from armo_ray.text.paths import Rejected, kind_of, root_of, value_at

COLUMN = "labels"  # in the rows of an output
LOST = "label_lost"  # prefix of a flag; a colon and the name of the label follow
_MISSING = ("", "n/a", "na", "nan")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LARGEST = float(np.finfo(np.float32).max)


class UnreadableError(ValueError):
    """The labels of a row cannot be read; says why."""


@dataclass(frozen=True)
class Label:
    """Where rows hold a label, and the range that its values are declared to have.

    columns: one path, to a number or to a list with a number for each response of the row in the order in which the
        row holds them; or two, for the responses first and second, or chosen and rejected.
    where: a path and a text: rows with another text there have no such label.
    match: paths to lists of names, one of the responses and one of the values, if the values are in another order.
    """

    columns: tuple[str, ...]
    low: float | None = None
    high: float | None = None
    where: tuple[str, str] | None = None
    match: tuple[str, str] | None = None

    @property
    def column(self) -> str:
        """The columns as --label takes them."""
        return ",".join(self.columns)

    @property
    def sources(self) -> tuple[str, ...]:
        """The input columns to read: the first column of every path, and a column whose name is the whole path."""
        return tuple(dict.fromkeys(name for path in self.paths for name in (path, root_of(path))))

    @property
    def paths(self) -> tuple[str, ...]:
        """All paths that are read."""
        return (*self.columns, *(self.where or ())[:1], *(self.match or ()))


Labels = Mapping[str, Label]  # by name


def sources_of(labels: Labels) -> tuple[str, ...]:
    """The input columns that hold labels."""
    return tuple(dict.fromkeys(name for label in labels.values() for name in label.sources))


def columns_read(identity: Mapping[str, Any]) -> list[str]:
    """The input columns that a run of this identity reads."""
    layout, labels = Layout.of_record(identity["layout"]), of_record(identity.get("labels", {}))
    return [*layout.sources, *identity.get("keep", {}).values(), *sources_of(labels)]


def lacking(labels: Labels, names: Iterable[str]) -> list[str]:
    """The labels of which an input with the columns `names` lacks a column."""
    names = frozenset(names)
    return [
        name
        for name, label in labels.items()
        if any(path not in names and root_of(path) not in names for path in label.paths)
    ]


def record(labels: Labels) -> dict[str, Any]:
    """The labels as JSON in `_run.json`; `of_record` reads them back."""
    return {
        name: {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(label).items()
        }
        for name, label in labels.items()
    }


def of_record(recorded: Mapping[str, Any]) -> dict[str, Label]:
    """The labels that `record` returned."""
    return {
        name: Label(
            tuple(one["columns"]),
            one["low"],
            one["high"],
            *(tuple(one[key]) if one[key] else None for key in ("where", "match")),
        )
        for name, one in recorded.items()
    }


def described(labels: Labels) -> dict[str, Any]:
    """The labels for the metadata in footers: column, low and high by name. Empty if there are none."""
    entries = {
        name: {"column": label.column, "low": label.low, "high": label.high} for name, label in labels.items()
    }
    return {COLUMN: entries} if entries else {}


def fields(names: Iterable[str]) -> tuple[pa.Field, ...]:
    """The column of the labels of these names: a struct of float32, null where missing. None without names."""
    members = [(name, pa.float32()) for name in names]
    return (pa.field(COLUMN, pa.struct(members)),) if members else ()


def labels_of(
    row: Mapping[str, Any], labels: Labels, candidates: Sequence[Candidate]
) -> list[tuple[dict[str, float | None], list[str]]]:
    """The labels of each candidate of a row, and a flag for each of them that could not be read.

    `candidates` are all that the row has, those that cannot be scored too. Labels of a row that was not parsed are
    missing.
    """
    found: list[tuple[dict[str, float | None], list[str]]] = [({}, []) for _ in candidates]
    for name, label in labels.items():
        for (own, flags), value in zip(found, values_of(row, label, candidates), strict=True):
            if isinstance(value, UnreadableError):
                flags.append(f"{LOST}:{name}")
            own[name] = None if isinstance(value, UnreadableError) else value
    return found


def values_of(
    row: Mapping[str, Any], label: Label, candidates: Sequence[Candidate]
) -> list[float | UnreadableError | None]:
    """One label of each candidate of a row: a number, None if it is missing, or why it cannot be read."""
    places = [candidate.place for candidate in candidates if candidate.place is not None]
    if len(places) < len(candidates):
        return [None] * len(candidates)
    try:
        written = _written(row, label, candidates)
    except UnreadableError as error:
        return [error] * len(candidates)
    numbers = [_number_or_error(value, label.column) for value in written]
    return [numbers[place] for place in places]


def _written(row: Mapping[str, Any], label: Label, candidates: Sequence[Candidate]) -> list[Any]:
    """The values of a label in the order in which the row holds the responses. Raises UnreadableError."""
    try:
        if label.where is not None and value_at(row, label.where[0]) != label.where[1]:
            return [None] * len(candidates)
        given = [value_at(row, path) for path in label.columns]
        if label.match is not None:
            names, of_values = (value_at(row, path) for path in label.match)
            given = [_matched(given[0], names, of_values, label.column)]
    except Rejected as rejection:
        raise UnreadableError(rejection.args[1]) from None
    if len(given) == 1:
        return _listed(given[0], len(candidates), label.column)
    first = _on_first_side(candidates)
    sides = zip(label.columns, given, (first, len(candidates) - first), strict=True)
    return [value for path, entry, size in sides for value in _listed(entry, size, path)]


def _matched(values: Any, names: Any, of_values: Any, path: str) -> Any:
    """The values in the order of the responses, which have these names; that of a name without a value is None."""
    lists = (values, names, of_values)
    if not all(isinstance(entry, list) for entry in lists) or len(values) != len(of_values):
        raise UnreadableError(f"{path}: it cannot be matched with the responses by name")
    if len(set(map(str, names))) < len(names) or len(set(map(str, of_values))) < len(of_values):
        raise UnreadableError(f"{path}: a name occurs twice, so the responses cannot be told apart")
    by_name = dict(zip(map(str, of_values), values, strict=True))
    return [by_name.get(str(name)) for name in names]


def _on_first_side(candidates: Sequence[Candidate]) -> int:
    """How many responses the row holds in the column of the first, or chosen, response."""
    chosen = [candidate for candidate in candidates if candidate.role == "chosen"]
    in_order = all(candidate.place == candidate.index for candidate in candidates)
    return len(chosen) if in_order and chosen else 1  # a pair that was swapped or tied has one on each side


def _listed(value: Any, count: int, path: str) -> list[Any]:
    """The values of `count` responses."""
    if isinstance(value, str) and value.strip().casefold() in _MISSING:
        value = None
    if value is None:
        return [None] * count
    if isinstance(value, list):
        if len(value) != count:
            raise UnreadableError(f"{path}: {len(value)} values for {count} responses")
        return value
    if count != 1:
        raise UnreadableError(f"{path}: one value for {count} responses, expected a list")
    return [value]


def _number_or_error(value: Any, path: str) -> float | UnreadableError | None:
    try:
        return number_of(value, path)
    except UnreadableError as error:
        return error


def number_of(value: Any, path: str) -> float | None:
    """A label as a number, None if it is missing. Raises UnreadableError."""
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        value = value.strip()
        if value.casefold() in _MISSING:
            return None
        if not _NUMBER.fullmatch(value):
            raise UnreadableError(f"{path}: {value!r:.50} is not a number")
    elif value is None:
        return None
    elif not isinstance(value, bool | int | float | Decimal):
        raise UnreadableError(f"{path}: found {kind_of(value)}, expected a number")
    try:
        number = float(value)
    except (OverflowError, ValueError):  # a signaling NaN
        number = math.inf
    if math.isnan(number):
        return None
    if abs(number) > _LARGEST:
        raise UnreadableError(f"{path}: {value!r:.50} is not a finite number of 32 bits")
    return number
