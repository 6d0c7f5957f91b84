"""Reads the hidden states of outputs of `armo-ray embed` and of `armo-ray score --keep-hidden`, a unit at a time.

Only complete outputs are read, and of these only the parts that the manifest lists, whose digests are checked.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.outputs.schema import HIDDEN_GATE, HIDDEN_LAST, footer
from armo_ray.storage import commits
from armo_ray.storage.json_files import unit_of
from armo_ray.storage.local_files import Opened
from armo_ray.storage.parts import HIDDEN, PROMPTS, SCORES, read_part, with_directories
from armo_ray.storage.records import Manifest, PartEntry, RunFile
from armo_ray.storage.store import Store

Floats = npt.NDArray[np.float32]

_KINDS: dict[str, type[np.generic]] = {
    "bfloat16": np.uint16,
    "float16": np.float16,
    "float32": np.float32,
}
_MODEL = ("model_fingerprint", "hidden")  # of the metadata
# what of a run's identity says how text became the tokens that were read
_TEXT = ("chat_fingerprint", "special_tokens", "truncate", "tool_calls")


@dataclass(frozen=True)
class HiddenUnit:
    """The parts of one unit: of its candidates, and of its prompts if the gate's states are kept."""

    output: str
    rows: tuple[PartEntry, ...]
    prompts: tuple[PartEntry, ...]


@dataclass(frozen=True)
class HiddenOutputs:
    """Complete outputs with hidden states of one model."""

    outputs: tuple[str, ...]
    metadata: Mapping[str, Any]  # from a footer: model, model_fingerprint, dtype, hidden, labels, ...
    size: int  # of a hidden state: H
    label_names: tuple[str, ...]
    scales: Mapping[str, tuple[float, float] | None]  # the declared range of each label
    units: tuple[HiddenUnit, ...]  # in the order of the outputs, and of their manifests
    rows: int  # of candidates, as the manifests count them
    read_by: Mapping[str, Any]  # the model, and how text became tokens; see check_same

    @property
    def has_gates(self) -> bool:
        """Whether the gate's hidden states are kept, too."""
        return bool(self.metadata["hidden"]["gates"])


class Hidden(NamedTuple):
    """The candidates of a unit, n, and its prompts, P."""

    table: pa.Table  # all other columns, in the order of the rows
    last: Floats  # (n, H)
    gate: Floats  # (P, H); (0, H) if they were not asked for
    gate_of: npt.NDArray[np.int64]  # (n,) the row of `gate` of each candidate; empty if not asked for


def open_hidden(uris: Iterable[str]) -> HiddenOutputs:
    """Read the manifests of outputs, and a footer of each.

    Outputs may have different labels: a label is missing in all rows of an output that lacks it.

    Raises ConfigError if an output does not exist, is damaged or incomplete or holds no hidden states, and if two are
    of different models or ways to read text, declare different ranges of a label, or hold the same unit.
    """
    stores = list({store.uri: store for store in map(Store, uris)}.values())
    if not stores:
        raise ConfigError("no output was given")
    opened = list(map(_open, stores))
    for other in opened[1:]:
        _check_same(opened[0].uri, opened[0].read_by, other.uri, other.read_by)
    _check_once(opened)
    metadata, units = opened[0].metadata, [unit for one in opened for unit in one.units]
    scales = _scales(opened)
    return HiddenOutputs(
        outputs=tuple(one.uri for one in opened),
        metadata=metadata,
        size=int(metadata["hidden"]["size"]),
        label_names=tuple(scales),
        scales=scales,
        units=tuple(units),
        rows=sum(part.rows for unit in units for part in unit.rows),
        read_by=opened[0].read_by,
    )


def check_same(first: HiddenOutputs, other: HiddenOutputs) -> None:
    """Raise ConfigError if they are of different models or ways to read text."""
    _check_same(first.outputs[0], first.read_by, other.outputs[0], other.read_by)


class _Opened(NamedTuple):
    """One output: its run, its units, and the metadata in a footer."""

    uri: str
    run: RunFile
    units: list[HiddenUnit]
    metadata: dict[str, Any]

    @property
    def read_by(self) -> dict[str, Any]:
        """What must be equal to that of another output."""
        of_model = {key: self.metadata.get(key) for key in _MODEL}
        return of_model | {key: self.run.identity.get(key) for key in _TEXT}


def _open(store: Store) -> _Opened:
    run, manifest = _complete(store)
    units = _units(store, manifest)
    return _Opened(store.uri, run, units, _footer(store, units[0]))


def _complete(store: Store) -> tuple[RunFile, Manifest]:
    with commits.reading(store):
        run = commits.read_run(store)
        manifest = commits.find_manifest(store, run)
    if manifest is None:
        raise ConfigError(
            f"{store.uri}: no {commits.SUCCESS}: its run is not complete. Run the same command again until it ends "
            f"with status 0 or 3"
        )
    return run, manifest


def _units(store: Store, manifest: Manifest) -> list[HiddenUnit]:
    """The units that have candidates. Raises ConfigError if there are none."""
    of_unit: dict[str | None, list[PartEntry]] = {}
    for part in manifest.parts:
        of_unit.setdefault(unit_of(part.path), []).append(part)
    units = []
    for parts in of_unit.values():
        rows, prompts = (
            tuple(part for part in parts if any(map(part.is_in, folders)))
            for folders in ((HIDDEN, SCORES), (PROMPTS,))
        )
        if rows:
            units.append(HiddenUnit(store.uri, rows, prompts))
    if not units:
        raise ConfigError(f"{store.uri}: no candidate has a hidden state there: all were rejected")
    return units


def _footer(store: Store, unit: HiddenUnit) -> dict[str, Any]:
    uri = f"{store.uri}/{unit.rows[0].path}"
    try:
        with Opened().open(uri) as stream:
            metadata = footer(pq.ParquetFile(stream).schema_arrow)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ConfigError(f"{uri}: cannot be read: {error}. Check it with armo-ray verify") from error
    if "hidden" not in metadata:
        raise ConfigError(
            f"{store.uri}: holds no hidden states: make it with armo-ray embed, or with armo-ray score --keep-hidden"
        )
    return metadata


def _check_same(uri: str, read_by: Mapping[str, Any], other: str, other_by: Mapping[str, Any]) -> None:
    for key, before in read_by.items():
        after = other_by[key]
        if (before or None) != (after or None):
            raise ConfigError(
                f"hidden states of different runs cannot be used together: {key} is {before!r} in {uri}, "
                f"{after!r} in {other}"
            )


def _check_once(opened: Sequence[_Opened]) -> None:
    """Raise ConfigError if two outputs, one of which may be a copy of the other, hold the rows of one unit."""
    first_in: dict[str | None, str] = {}
    for one in opened:
        for unit in one.units:
            name = unit_of(unit.rows[0].path)
            first = first_in.setdefault(name, one.uri)
            if first != one.uri:
                raise ConfigError(
                    f"{one.uri}: it holds the unit {name}, as {first} does: its rows would be counted twice. Name one "
                    f"of these outputs"
                )


def _scales(opened: Sequence[_Opened]) -> dict[str, tuple[float, float] | None]:
    """The declared range of each label of any output. Raises ConfigError if two declare different ones."""
    scales: dict[str, tuple[float, float] | None] = {}
    declared_by: dict[str, str] = {}
    for one in opened:
        for name, entry in (one.metadata.get("labels") or {}).items():
            low, high = entry.get("low"), entry.get("high")
            scale = None if low is None or high is None else (float(low), float(high))
            first = declared_by.setdefault(name, one.uri)
            if scales.setdefault(name, scale) != scale:
                raise ConfigError(
                    f"label {name}: its range is {scales[name]} in {first}, but {scale} in {one.uri}: give one of them "
                    f"another name, with armo-ray embed --label NEW=COLUMN"
                )
    return scales


def read_hidden(unit: HiddenUnit, gates: bool = True, columns: Collection[str] | None = None) -> Hidden:
    """The hidden states of a unit, as float32. Columns that are directories are read from a part's path, as text.

    columns: those of `table` besides `row_id` and `prompt_id`; default: all. Those that are not there are
        left out.

    Raises RuntimeError if a part is not the one that was committed, if a hidden state is not finite, or if a prompt has
    none; ConfigError if `gates` are asked for and none were kept.
    """
    store = Store(unit.output)
    if columns is not None:
        columns = {*columns, "row_id", "prompt_id", HIDDEN_LAST}
    table = pa.concat_tables([_read_rows(store, part, columns) for part in unit.rows])
    metadata = footer(table.schema)
    last = numbers_of(table[HIDDEN_LAST], metadata["hidden"])
    table, ids = table.drop_columns([HIDDEN_LAST]), table["row_id"]
    _check_finite(last, ids, unit)
    if not gates:
        return Hidden(table, last, last[:0], np.empty(0, np.int64))
    if not unit.prompts:
        raise ConfigError(
            f"{unit.output}: the model there has no gate, so no hidden state of prompts was kept"
        )
    prompts = pa.concat_tables([read_part(store, part) for part in unit.prompts])
    gate = numbers_of(prompts[HIDDEN_GATE], metadata["hidden"])
    _check_finite(gate, prompts["prompt_id"], unit)
    place = pc.index_in(table["prompt_id"], value_set=prompts["prompt_id"])
    if place.null_count:
        lost = ids.filter(place.is_null())[0].as_py()
        raise RuntimeError(f"{unit.output}/{unit.prompts[0].path}: lacks the prompt of row {lost}")
    return Hidden(table, last, gate, place.to_numpy().astype(np.int64))


def _read_rows(store: Store, part: PartEntry, columns: Collection[str] | None) -> pa.Table:
    table = read_part(store, part, None if columns is None else sorted(columns))
    return with_directories(table, part.path, columns)


def numbers_of(column: pa.ChunkedArray, hidden: Mapping[str, Any]) -> Floats:
    """A column of hidden states as float32 (n, H); `hidden` says their size and dtype, as the footer does."""
    size, dtype = int(hidden["size"]), str(hidden["dtype"])
    raw = np.concatenate([_bytes(chunk) for chunk in column.chunks] or [np.empty(0, np.uint8)])
    return as_float32(raw.view(_KINDS[dtype]).reshape(-1, size))


def _bytes(chunk: pa.FixedSizeBinaryArray) -> npt.NDArray[np.uint8]:
    if chunk.null_count:
        raise RuntimeError("a hidden state is null")
    width = chunk.type.byte_width
    flat = np.frombuffer(chunk.buffers()[1], np.uint8)
    return flat[chunk.offset * width : (chunk.offset + len(chunk)) * width]


def as_float32(states: npt.NDArray[Any]) -> Floats:
    """Hidden states as float32; those of uint16 are bfloat16."""
    if states.dtype == np.uint16:
        return (states.astype(np.uint32) << 16).view(np.float32)
    return states.astype(np.float32, copy=False)


def _check_finite(states: Floats, names: pa.ChunkedArray, unit: HiddenUnit) -> None:
    wrong = np.flatnonzero(~np.isfinite(states).all(axis=1))
    if len(wrong):
        raise RuntimeError(
            f"{unit.output}/{unit.rows[0].path}: {len(wrong)} hidden states are not finite, the first is that of "
            f"{names[int(wrong[0])].as_py()}"
        )


def labels_of(table: pa.Table, names: Sequence[str]) -> npt.NDArray[np.float64]:
    """The labels (n, K) of the rows of a unit; NaN where one is missing, as of an output that lacks it."""
    labels = np.full((table.num_rows, len(names)), np.nan)
    present = (
        [field.name for field in table.schema.field("labels").type] if "labels" in table.column_names else []
    )
    for k, name in enumerate(names):
        if name not in present:
            continue
        column = pc.struct_field(table["labels"], name).cast(pa.float64())
        labels[:, k] = column.to_numpy()
    return labels
