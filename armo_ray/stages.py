"""The three steps of a unit of work: read and tokenize, score, write and commit.

Plain functions over one-row tables, so that they run the same in a Ray task and in a test. Each row of these
tables is a whole unit, its candidates in list columns: one task in, one block out, which is what makes a
replayed task exact.
"""

import json
import pickle
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from armo_ray.chat import Chat
from armo_ray.engine.checkpoint import resolve
from armo_ray.plan import Job
from armo_ray.schema import CANDIDATE_FIELDS, REJECTS, TEXT_FIELDS
from armo_ray.storage import commits, parts, readers
from armo_ray.storage.filesystem import Store
from armo_ray.storage.readers import BadRow, Row, UnitRows
from armo_ray.storage.shards import Shard, Span, Unit
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.tokenization import Encoder, Tokenized

MODEL_COLUMNS = ("prompts", "group", "responses")
NO_SHARD = Shard("", 0, "", ())


@dataclass
class Header:
    """What is known of a unit besides its rows; travels pickled in the column `header`."""

    shard: Shard
    unit: Unit
    candidates: int
    seconds: dict[str, float]
    num_tokens: int = 0
    computed_tokens: int = 0
    num_packs: int = 0

    def to_array(self) -> pa.Array:
        return pa.array([pickle.dumps(self)])

    @classmethod
    def of(cls, table: pa.Table) -> "Header":
        header: Header = pickle.loads(table["header"][0].as_py())
        return header


@lru_cache(maxsize=2)
def _load_encoder(
    model: str, revision: str | None, max_length: int, truncate: str, special_tokens: str
) -> Encoder:
    path, _ = resolve(model, revision)
    return Encoder(Chat.load(path), max_length, truncate, special_tokens)


def _encoder(job: Job) -> Encoder:
    """The job's encoder, loaded once by every process."""
    return _load_encoder(job.model, job.revision, job.max_length, job.truncate, job.special_tokens)


def read_and_tokenize(span: Span, job: Job) -> Iterator[pa.Table]:
    """A one-row table for every unit of a span that is to be done."""
    encoder = _encoder(job)

    def count(row: Row) -> int:
        return 1 if isinstance(row, BadRow) else job.layout.count(row)

    started = time.perf_counter()
    for done in readers.read_units(span, job.columns, count, job.unit_rows, job.fingerprint):
        yield _tokenized(done, span.shard, encoder, job, started)
        started = time.perf_counter()


def tokenize_rows(rows: list[dict[str, Any]], job: Job) -> pa.Table:
    """The one-row table of rows that belong to no shard."""
    encoder = _encoder(job)
    unit = UnitRows(Unit("", 0), list(enumerate(rows)))
    return _tokenized(unit, NO_SHARD, encoder, job, time.perf_counter())


def candidate_rows(table: pa.Table, job: Job) -> pa.Table:
    """The candidates of a scored unit, one a row: columns of the scores, and `reason` and `detail` of rejects."""
    scores, failed = _score_table(table, NO_SHARD, job)
    rejects = unnest(table["rejects"]).select(["candidate", "role", "reason", "detail"])
    failed = failed.select(["candidate", "role"]).append_column(
        "reason", pa.array(["non_finite_score"] * failed.num_rows, pa.string())
    )
    rows = scores.drop_columns(["row_id", "source", "source_row"])
    return pa.concat_tables([rows, rejects, failed], promote_options="default")


def _tokenized(done: UnitRows, shard: Shard, encoder: Encoder, job: Job, started: float) -> pa.Table:
    numbers: list[int] = []
    rows: list[Row] = []
    candidates: list[Candidate] = []
    for number, row in done.rows:
        found = _candidates(row, job)
        numbers += [number] * len(found)
        rows += [row] * len(found)
        candidates += found
    began = time.perf_counter()
    tokens = encoder.encode(candidates)
    tokenize = time.perf_counter() - began
    columns = {
        "prompts": _ragged(tokens.prompts),
        "group": _one(pa.array(tokens.group, pa.int32())),
        "responses": _ragged(tokens.responses),
        "scored": nest(_scored_rows(tokens, candidates, numbers, rows, job)),
        "rejects": nest(_reject_rows(tokens, candidates, numbers, rows, shard)),
    }
    num_tokens = sum(tokens.num_prompt_tokens) + sum(map(len, tokens.responses))
    seconds = {"read": time.perf_counter() - started - tokenize, "tokenize": tokenize}
    header = Header(shard, done.unit, len(candidates), seconds, num_tokens)
    return pa.table({"header": header.to_array(), **columns})


def _candidates(row: Row, job: Job) -> list[Candidate]:
    """The candidates of a row; a row whose kept values are not of their columns' types is malformed."""
    if isinstance(row, BadRow):
        return [Candidate(None, None, [], "", row.reason, row.detail)]
    found = candidates_of(row, job.layout)
    for name, column in job.carried.items():
        value, kind = row.get(column), job.scores.field(name).type
        if not _holds(kind, value):
            detail = f"kept column {column} holds {value!r:.100}, which is not {kind}"
            return [replace(c, reason="malformed_row", detail=detail) for c in found]
        if name in job.partition_by and not parts.fits_directory(name, value):
            detail = f"column {column} holds {value!r:.100}, which is too long for the name of a directory"
            return [replace(c, reason="malformed_row", detail=detail) for c in found]
    return found


def _holds(kind: pa.DataType, value: Any) -> bool:
    """Whether a type holds a value as it is: Arrow would cut 1.5 to an int64 of 1."""
    try:
        return _same(pa.scalar(value, kind).as_py(), value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False


def _same(kept: Any, value: Any) -> bool:
    """Equality, but for fields of a struct that are absent or null, and NaN."""
    if isinstance(value, dict) and isinstance(kept, dict):
        return all(_same(kept.get(name), entry) for name, entry in value.items())
    if isinstance(value, list) and isinstance(kept, list):
        return len(kept) == len(value) and all(map(_same, kept, value))
    return bool(kept == value or value != value)


def _scored_rows(
    tokens: Tokenized, candidates: list[Candidate], numbers: list[int], rows: list[Row], job: Job
) -> pa.Table:
    """The columns of the scores that do not come from the model."""
    chosen = [candidates[i] for i in tokens.source]
    columns: dict[str, list[Any]] = {
        "prompt_id": tokens.prompt_id,
        "source_row": [numbers[i] for i in tokens.source],
        "candidate": [c.index for c in chosen],
        "role": [c.role for c in chosen],
        "num_prompt_tokens": tokens.num_prompt_tokens,
        "num_response_tokens": [len(ids) for ids in tokens.responses],
        "flags": tokens.flags,
    }
    fields = list(CANDIDATE_FIELDS)
    for name, column in job.carried.items():
        columns[name] = [_value(rows[i], column) for i in tokens.source]
        fields.append(job.scores.field(name))
    if job.keep_text:
        columns["prompt"] = [c.prompt for c in chosen]
        columns["response"] = [[{"role": "assistant", "content": c.answer}] for c in chosen]
        fields += TEXT_FIELDS
    return pa.table([pa.array(columns[f.name], f.type) for f in fields], schema=pa.schema(fields))


def _value(row: Row, column: str) -> Any:
    return None if isinstance(row, BadRow) else row.get(column)


def _reject_rows(
    tokens: Tokenized, candidates: list[Candidate], numbers: list[int], rows: list[Row], shard: Shard
) -> pa.Table:
    entries = []
    raw: set[int] = set()  # rows that are told already: one of a thousand answers is not repeated for each
    for i, reason, detail in tokens.rejects:
        text = None if numbers[i] in raw else to_raw(rows[i])
        entries.append((numbers[i], candidates[i].index, candidates[i].role, reason, detail, text))
        raw.add(numbers[i])
    return _rejects(shard, entries)


def _rejects(shard: Shard, entries: list[tuple[Any, ...]]) -> pa.Table:
    columns = [list(column) for column in zip(*entries, strict=True)] or [[] for _ in REJECTS.names[1:]]
    arrays = [pa.array([shard.uri] * len(entries), pa.string())]
    arrays += [pa.array(column, f.type) for column, f in zip(columns, list(REJECTS)[1:], strict=True)]
    return pa.table(arrays, schema=REJECTS)


def to_raw(row: Row) -> str | None:
    """A row as JSON; what JSON cannot hold (dates, bytes) as its text."""
    return row.raw if isinstance(row, BadRow) else json.dumps(row, default=str)


class Scorer:
    """A replica of the model, loaded and tried out when it is made."""

    def __init__(self, job: Job, device: str) -> None:
        from armo_ray.engine import RewardModel

        self.model = RewardModel.load(
            job.model,
            job.revision,
            dtype=job.dtype,
            device=device,
            token_budget=job.token_budget,
            fixed_packs=job.fixed_packs,
        )
        encoder = _encoder(job)
        probe = self.model.score([encoder.group([{"role": "user", "content": "2+2?"}], ["4"])])
        if not np.isfinite(probe.score).all():
            raise RuntimeError(f"{job.model}: the model returns {probe.score} for a probe: damaged weights")

    def __call__(self, table: pa.Table) -> pa.Table:
        """The unit with `score` (C), `rewards` and `gating` (C * K, row by row) for its token ids."""
        started = time.perf_counter()
        header = Header.of(table)
        prompts, responses = _arrays(table["prompts"]), _arrays(table["responses"])
        group = table["group"].combine_chunks().flatten().to_numpy()
        found = self.model.score(
            (prompts[g], [response]) for g, response in zip(group, responses, strict=True)
        )
        header.computed_tokens, header.num_packs = found.computed_tokens, found.num_packs
        header.seconds["model"] = found.model_seconds
        header.seconds["pack"] = time.perf_counter() - started - found.model_seconds
        done = table.drop_columns([*MODEL_COLUMNS, "header"]).append_column("header", header.to_array())
        for name in ("score", "rewards", "gating"):
            done = done.append_column(name, _one(pa.array(getattr(found, name).ravel())))
        return done


def write_and_commit(table: pa.Table, job: Job) -> dict[str, Any]:
    """Write the parts of a scored unit, then its commit record, which is returned."""
    started = time.perf_counter()
    header = Header.of(table)
    shard, unit = header.shard, header.unit
    scores, failed = _score_table(table, shard, job)
    rejects = pa.concat_tables([unnest(table["rejects"]), _non_finite(failed, shard, unit, job)])
    if scores.num_rows + rejects.num_rows != header.candidates:
        raise RuntimeError(
            f"{shard.uri} rows {unit.first_row}+{unit.num_rows}: {header.candidates} candidates were read, but "
            f"{scores.num_rows} scored and {rejects.num_rows} rejected"
        )
    store = Store(job.output)
    written = parts.write_scores(store, unit.id, scores, shard.partitions, job.partition_by)
    written += parts.write_rejects(store, unit.id, rejects.replace_schema_metadata(job.scores.metadata))
    header.seconds["write"] = time.perf_counter() - started
    record = {
        "unit": unit.id,
        "source": shard.uri,
        "identity": shard.identity,
        "ordinal": unit.ordinal,
        "first_row": unit.first_row,
        "num_rows": unit.num_rows,
        "last": unit.last,
        "candidates": header.candidates,
        "scored": scores.num_rows,
        "rejected": _counts(rejects["reason"]),
        "num_tokens": header.num_tokens,
        "computed_tokens": header.computed_tokens,
        "num_packs": header.num_packs,
        "seconds": {name: round(value, 4) for name, value in header.seconds.items()},
        "run_fingerprint": job.fingerprint,
        "parts": written,
    }
    commits.commit(store, record)
    return {**record, "source_bytes": unit.source_bytes}


def _score_table(table: pa.Table, shard: Shard, job: Job) -> tuple[pa.Table, pa.Table]:
    """The rows of the scores with finite numbers, and the others."""
    rows = unnest(table["scored"])
    score, rewards, gating = (
        table[name].combine_chunks().flatten().to_numpy() for name in ("score", "rewards", "gating")
    )
    vector = job.scores.field("rewards").type
    rewards, gating = (values.reshape(len(score), vector.num_fields) for values in (rewards, gating))
    finite = np.isfinite(score) & np.isfinite(rewards).all(axis=1) & np.isfinite(gating).all(axis=1)
    keys = zip(rows["source_row"].to_pylist(), rows["candidate"].to_pylist(), strict=True)
    arrays: dict[str, Any] = {name: rows[name] for name in rows.column_names} | {
        "row_id": pa.array([f"{shard.hash}:{row}:{candidate}" for row, candidate in keys], pa.string()),
        "source": pa.repeat(pa.scalar(shard.uri), len(score)),
        "score": pa.array(score),
        "rewards": _struct(rewards, vector),
        "gating": _struct(gating, vector),
    }
    whole = pa.table([arrays[name] for name in job.scores.names], schema=job.scores)
    if finite.all():
        return whole, whole.slice(0, 0)
    return whole.filter(pa.array(finite)), whole.filter(pa.array(~finite))


def _non_finite(failed: pa.Table, shard: Shard, unit: Unit, job: Job) -> pa.Table:
    """Rejects for rows whose score is not a number; their text is read again."""
    rows = failed.select(["source_row", "candidate", "role", "score"]).to_pylist()
    raw = readers.read_rows(shard, unit, job.columns, {r["source_row"] for r in rows}) if rows else {}
    return _rejects(
        shard,
        [
            (
                r["source_row"],
                r["candidate"],
                r["role"],
                "non_finite_score",
                f"the model returned {r['score']}, or a reward or gate that is not finite",
                to_raw(raw[r["source_row"]]),
            )
            for r in rows
        ],
    )


def _counts(reasons: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in reasons.value_counts().to_pylist()}


def _struct(values: npt.NDArray[np.float32], kind: pa.DataType) -> pa.StructArray:
    return pa.StructArray.from_arrays(
        [pa.array(np.ascontiguousarray(column)) for column in values.T], fields=list(kind)
    )


def nest(table: pa.Table) -> pa.Array:
    """A table as one list of structs."""
    return _one(table.combine_chunks().to_struct_array().combine_chunks())


def unnest(column: pa.ChunkedArray) -> pa.Table:
    """The table that `nest` made a list of."""
    rows = column.combine_chunks().flatten()
    return pa.Table.from_batches([pa.RecordBatch.from_struct_array(rows)])


def _one(values: pa.Array) -> pa.Array:
    """An array as the single entry of a list array."""
    return pa.ListArray.from_arrays(pa.array([0, len(values)], pa.int32()), values)


def _ragged(arrays: list[npt.NDArray[np.int32]]) -> pa.Array:
    """Arrays of token ids as the single entry of a list of lists."""
    offsets = np.cumsum([0, *map(len, arrays)]).astype(np.int32)
    flat = np.concatenate(arrays) if arrays else np.empty(0, np.int32)
    return _one(pa.ListArray.from_arrays(pa.array(offsets), pa.array(flat)))


def _arrays(column: pa.ChunkedArray) -> list[npt.NDArray[np.int32]]:
    """The arrays that `_ragged` joined, as views."""
    lists = column.combine_chunks().flatten()
    flat, offsets = lists.values.to_numpy(), lists.offsets.to_numpy().tolist()
    return [flat[start:stop] for start, stop in pairwise(offsets)]
