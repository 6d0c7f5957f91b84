"""The first step, on a CPU: turns rows of a shard into token ids."""

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import resolve
from armo_ray.model.families import Family
from armo_ray.model.positions import without_ends
from armo_ray.model.reference import Reference
from armo_ray.outputs.schema import CANDIDATE_FIELDS, TEXT_FIELDS
from armo_ray.score import kept_columns
from armo_ray.score.job import ModelJob
from armo_ray.score.run import Job
from armo_ray.score.stages.unit_block import NO_SHARD, Header, nest, one, ragged, reject_table, to_raw
from armo_ray.storage import parts, readers
from armo_ray.storage.models import local_model
from armo_ray.storage.readers import BadRow, Row, UnitRows
from armo_ray.storage.shards import Shard
from armo_ray.storage.units import Span, Unit
from armo_ray.text import labels
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.tokenization import Encoder
from armo_ray.text.tokenized import Tokenized

if TYPE_CHECKING:
    from armo_ray.outputs.selection import Selection  # imports duckdb


@lru_cache(maxsize=4)
def _directory(model: str, revision: str | None) -> Path:
    copy, _ = local_model(model, revision)
    return resolve(copy, revision if copy == model else None)[0]


@lru_cache(maxsize=2)
def _loaded(
    model: str, revision: str | None, family: Family, max_length: int, truncate: str, special_tokens: str
) -> Encoder:
    return Encoder(Chat.load(_directory(model, revision), family), max_length, truncate, special_tokens)


def model_directory(job: ModelJob) -> Path:
    """The directory of the job's model on this node; the model is copied there first if it is missing."""
    return _directory(job.model, job.revision)


def reference_on_node(job: ModelJob) -> Reference | None:
    """The job's reference model, if it has one, in its directory on this node, as `model_directory`."""
    given = job.reference
    return given and replace(given, model=str(_directory(given.model, given.revision)), revision=None)


def load_encoder(job: ModelJob) -> Encoder:
    """The job's encoder, loaded once per process."""
    return _loaded(job.model, job.revision, job.family, job.max_length, job.truncate, job.special_tokens)


def read_and_tokenize(span: Span, job: ModelJob) -> Iterator[pa.Table]:
    """A one-row table for every uncommitted unit of a span."""
    encoder = load_encoder(job)

    started = time.perf_counter()
    for unit in units_of(span, job):
        yield tokenized(unit, span.shard, encoder, job, started)
        started = time.perf_counter()


def units_of(span: Span, job: Job) -> Iterator[UnitRows]:
    """The rows of every uncommitted unit of a span."""

    def count(row: Row) -> int:
        return 1 if isinstance(row, BadRow) else job.layout.count(row)

    units = readers.read_units(span, job.columns, count, job.unit_rows, job.fingerprint)
    return units if job.selection is None else (_selected(unit, span.shard, job.selection) for unit in units)


def _selected(unit: UnitRows, shard: Shard, selection: "Selection") -> UnitRows:
    """The rows of a unit that are selected, and those that cannot be read."""
    from armo_ray.outputs.selection import selected_rows

    numbers = selected_rows(selection, shard.hash)
    rows = [(number, row) for number, row in unit.rows if number in numbers or isinstance(row, BadRow)]
    return replace(unit, rows=rows, unselected=len(unit.rows) - len(rows))


def extra_of(unit: UnitRows, columns: Mapping[str, pa.Array], job: Job) -> tuple[tuple[str, Any], ...]:
    """What the commit record of a unit tells besides its counts; `columns` are those of `row_columns`."""
    of_rows = columns["scored"].values.field("flags").to_pylist() if job.labels else []
    flags = Counter(flag for own in of_rows for flag in own)
    lost = {name: flags[flag] for name in job.labels if flags[flag := f"{labels.LOST}:{name}"]}
    extra = {"unselected": unit.unselected, labels.LOST: lost}
    return tuple((name, value) for name, value in extra.items() if value)


def tokenize_rows(rows: list[dict[str, Any]], job: ModelJob) -> pa.Table:
    """The one-row table for rows that belong to no shard."""
    encoder = load_encoder(job)
    unit = UnitRows(Unit("", 0), list(enumerate(rows)))
    return tokenized(unit, NO_SHARD, encoder, job, time.perf_counter())


def tokenized(done: UnitRows, shard: Shard, encoder: Encoder, job: ModelJob, started: float) -> pa.Table:
    """The one-row table for the rows of a unit. `started`: when reading them began, by time.perf_counter."""
    read = candidates_in(done, job)
    began = time.perf_counter()
    tokens = encoder.encode(read.candidates)
    tokenize = time.perf_counter() - began
    columns = {
        "prompts": ragged(tokens.prompts),
        "group": one(pa.array(tokens.group, pa.int32())),
        "responses": ragged(tokens.responses),
        "contests": one(pa.array(np.array(tokens.contests, np.int32).ravel())),
        **row_columns(tokens, read, shard, job),
    }
    num_tokens = sum(len(tokens.prompts[g]) for g in tokens.group)
    num_tokens += sum(len(without_ends(ids)[0]) for ids in tokens.responses)
    seconds = {"read": time.perf_counter() - started - tokenize, "tokenize": tokenize}
    header = Header(
        shard,
        done.unit,
        len(read.candidates),
        seconds,
        num_tokens,
        content=done.content,
        extra=extra_of(done, columns, job),
    )
    return pa.table({"header": header.to_array(), **columns})


class Read(NamedTuple):
    """The candidates of a unit, with the row of each and its number in the shard."""

    numbers: list[int]
    rows: list[Row]
    candidates: list[Candidate]


def candidates_in(done: UnitRows, job: Job) -> Read:
    """The candidates of the rows of a unit, in order."""
    read = Read([], [], [])
    for number, row in done.rows:
        own = row_candidates(row, job)
        read.numbers.extend([number] * len(own))
        read.rows.extend([row] * len(own))
        read.candidates.extend(own)
    return read


def row_columns(tokens: Tokenized, read: Read, shard: Shard, job: Job) -> dict[str, pa.Array]:
    """The columns `scored`, of what the scores hold besides the model's numbers, and `rejects`, of a unit's table."""
    return {
        "scored": nest(_scored_rows(tokens, read, job)),
        "rejects": nest(_reject_rows(tokens, read, shard)),
    }


def row_candidates(row: Row, job: Job) -> list[Candidate]:
    """The candidates of a row. The row is malformed if its partition values are too long for directory names."""
    if isinstance(row, BadRow):
        return [Candidate(None, None, [], "", row.reason, row.detail)]
    candidates = candidates_of(row, job.layout, job.reading)
    columns = {name: column for name, column in job.carried.items() if name in job.partition_by}
    values, _ = kept_columns.values_of(row, columns, job.scores, job.as_json)
    if not parts.fit_directories(values.items()):
        detail = f"partition columns hold {values!r:.200}, which is too long for directory names"
        return [replace(c, reason="malformed_row", detail=detail) for c in candidates]
    return candidates


def _scored_rows(tokens: Tokenized, read: Read, job: Job) -> pa.Table:
    """The columns of the scores that do not come from the model."""
    chosen = [read.candidates[i] for i in tokens.source]
    numbers = [read.numbers[i] for i in tokens.source]
    kept_of = _kept_values(numbers, [read.rows[i] for i in tokens.source], job)
    labelled = _labels(read, job)
    columns: dict[str, list[Any]] = {
        "prompt_id": tokens.prompt_id,
        "source_row": numbers,
        "candidate": [c.index for c in chosen],
        "role": [c.role for c in chosen],
        "num_prompt_tokens": tokens.num_prompt_tokens,
        "num_response_tokens": tokens.num_response_tokens,
        "flags": [
            own + lost + labelled[i][1]
            for own, (_, lost), i in zip(tokens.flags, kept_of, tokens.source, strict=True)
        ],
    }
    fields = list(CANDIDATE_FIELDS)
    if job.labels:
        columns[labels.COLUMN] = [labelled[i][0] for i in tokens.source]
        fields.append(job.scores.field(labels.COLUMN))
    for name in job.carried:
        columns[name] = [values[name] for values, _ in kept_of]
        fields.append(job.scores.field(name))
    if job.keep_text:
        shown = [c.shown() for c in chosen]
        columns["prompt"] = [prompt for prompt, _ in shown]
        columns["response"] = [response for _, response in shown]
        fields += TEXT_FIELDS
    return pa.table([pa.array(columns[f.name], f.type) for f in fields], schema=pa.schema(fields))


def _kept_values(numbers: list[int], rows: list[Row], job: Job) -> list[tuple[dict[str, Any], list[str]]]:
    """For every scored candidate, its row's kept values and flags. Each row is converted once."""
    by_number: dict[int, tuple[dict[str, Any], list[str]]] = {}
    for number, row in zip(numbers, rows, strict=True):
        if number not in by_number and not isinstance(row, BadRow):
            by_number[number] = kept_columns.values_of(row, job.carried, job.scores, job.as_json)
    return [by_number[number] for number in numbers]


def _labels(read: Read, job: Job) -> list[tuple[dict[str, float | None], list[str]]]:
    """The labels of every candidate that was read, and its flags."""
    found: list[tuple[dict[str, float | None], list[str]]] = []
    for _, group in groupby(range(len(read.numbers)), key=read.numbers.__getitem__):
        own = list(group)
        row = read.rows[own[0]]
        candidates = [read.candidates[i] for i in own]
        found += labels.labels_of({} if isinstance(row, BadRow) else row, job.labels, candidates)
    return found


def _reject_rows(tokens: Tokenized, read: Read, shard: Shard) -> pa.Table:
    entries = []
    raw: set[int] = set()  # numbers of rows whose text is stored: a row with many rejects is stored once
    for i, reason, detail in tokens.rejects:
        number, candidate = read.numbers[i], read.candidates[i]
        text = None if number in raw else to_raw(read.rows[i])
        entries.append((number, candidate.index, candidate.role, reason, detail, text))
        raw.add(number)
    return reject_table(shard, entries)
