"""The steps of a unit before and after its replies: read the calls of its rows, write and commit what was judged."""

import hashlib
import json
import pickle
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from armo_ray.judge.job import JudgeJob, whole_text
from armo_ray.judging.calls import Call, calls_of
from armo_ray.judging.verdicts import Judged
from armo_ray.outputs.schema import JUDGE_FIELDS
from armo_ray.score.passes import Committed
from armo_ray.score.stages.read import Read, candidates_in, extra_of, row_columns, units_of
from armo_ray.score.stages.unit_block import FAILURES, Header, nest, one, unnest
from armo_ray.score.stages.write import write_and_commit
from armo_ray.storage.readers import BadRow, UnitRows
from armo_ray.storage.shards import Shard
from armo_ray.storage.units import Span
from armo_ray.text.conversations import Candidate
from armo_ray.text.paths import Rejected, value_at
from armo_ray.text.tokenized import Prompt, Tokenized

_ROWS = "rows"  # column of the calls of a unit, pickled
_STOPPED = "stopped"  # column of why a unit was left


class Halt(NamedTuple):
    """Why no further request is sent: `cost` or `refused`, and the message."""

    kind: str
    message: str


class Row(NamedTuple):
    """The candidates of a row that are judged, by their numbers in it, and the calls that judge them."""

    numbers: tuple[int, ...]
    calls: list[Call]


def read_calls(span: Span, job: JudgeJob) -> Iterator[pa.Table]:
    """A one-row table for every uncommitted unit of a span."""
    started = time.perf_counter()
    for unit in units_of(span, job):
        yield _calls_of_unit(unit, span.shard, job, started)
        started = time.perf_counter()


def _calls_of_unit(done: UnitRows, shard: Shard, job: JudgeJob, started: float) -> pa.Table:
    read, listed, rows = listed_calls(done, shard, job)
    seconds = {"read": time.perf_counter() - started, "tokenize": 0.0}
    columns = row_columns(listed, read, shard, job)
    extra = extra_of(done, columns, job)
    header = Header(shard, done.unit, len(read.candidates), seconds, content=done.content, extra=extra)
    return pa.table({"header": header.to_array(), _ROWS: [pickle.dumps(rows)], **columns})


def listed_calls(done: UnitRows, shard: Shard, job: JudgeJob) -> tuple[Read, Tokenized, list[Row]]:
    """The candidates of a unit, those that are judged or rejected, and the calls of its rows."""
    read, listed, rows = candidates_in(done, job), Tokenized(), list[Row]()
    for number, of_row in groupby(range(len(read.candidates)), key=read.numbers.__getitem__):
        if row := _row(list(of_row), f"{shard.uri}:{number}", read, listed, job):
            rows.append(row)
    listed.rejects.sort()
    return read, listed, rows


def _row(places: list[int], key: str, read: Read, listed: Tokenized, job: JudgeJob) -> Row | None:
    """The calls of a row, whose candidates are at these places; adds them to those that are judged or rejected."""
    good = [i for i in places if read.candidates[i].reason is None]
    bad = [(i, read.candidates[i].reason, read.candidates[i].detail) for i in set(places).difference(good)]
    listed.rejects += [(i, str(reason), str(detail)) for i, reason, detail in bad]
    if not good:
        return None
    candidates, row = [read.candidates[i] for i in good], read.rows[good[0]]
    assert not isinstance(row, BadRow), "its candidates have reasons"
    try:
        columns = {name: value_at(row, name) for name in job.judge.columns}
        calls = calls_of(job.judge, key, candidates, columns)
        if job.tokenizer is not None:
            calls = [_with_text(call, candidates[call.candidates[0]], job.tokenizer) for call in calls]
    except Rejected as rejection:
        reason, detail = rejection.args
        listed.rejects += [(i, reason, detail) for i in good]
        return None
    for i, candidate in zip(good, candidates, strict=True):
        prompt = Prompt(candidate.prompt, candidate.tools, id=_prompt_id(candidate))
        listed.add(i, prompt, (None, None), list(candidate.flags))
    return Row(tuple(c.index for c in candidates if c.index is not None), calls)


def _with_text(call: Call, candidate: Candidate, tokenizer: str) -> Call:
    """The call to a server that takes text. Raises Rejected."""
    text, num_tokens = whole_text(tokenizer)(candidate)
    return replace(call, options={"text": text, "num_tokens": num_tokens})


def _prompt_id(candidate: Candidate) -> str:
    """32 hex digits, a hash of the messages before the response and of the tools."""
    text = json.dumps([candidate.prompt, candidate.tools], sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def rows_of(table: pa.Table) -> list[Row]:
    """The rows of a unit that are judged."""
    rows: list[Row] = pickle.loads(table[_ROWS][0].as_py())
    return rows


def with_results(table: pa.Table, header: Header, results: Sequence[Judged], num_rewards: int) -> pa.Table:
    """The unit with what was judged in the place of its calls."""
    nothing = (np.nan,) * num_rewards
    rewards = np.array([r.rewards if r.reason is None else nothing for r in results], np.float32)
    scored = unnest(table["scored"])
    flags = [own + list(r.flags) for own, r in zip(scored["flags"].to_pylist(), results, strict=True)]
    at = scored.schema.get_field_index("flags")
    scored = scored.set_column(at, scored.field("flags"), pa.array(flags, scored.field("flags").type))
    score = np.array([np.nan if r.score is None else r.score for r in results], np.float32)
    failures = {
        name: pa.array([getattr(r, name) for r in results], pa.string()) for name in ("reason", "detail")
    }
    columns = {
        "header": header.to_array(),
        "scored": nest(scored),
        "rejects": table["rejects"].combine_chunks(),
        "score": one(pa.array(score)),
        "rewards": one(pa.array(rewards.ravel())),
        "gating": one(pa.array([], pa.float32())),
        FAILURES: nest(pa.table(failures)),
    }
    own = {f.name: one(pa.array([getattr(r, f.name) for r in results], f.type)) for f in JUDGE_FIELDS}
    return pa.table({**columns, **own})


def left(table: pa.Table, halt: Halt) -> pa.Table:
    """The unit without scores, which are not asked for."""
    return pa.table({"header": table["header"], _STOPPED: [pickle.dumps(halt)]})


def write_verdicts(table: pa.Table, job: JudgeJob) -> Committed | Halt:
    """Write and commit a unit, unless it was left."""
    if _STOPPED in table.column_names:
        halt: Halt = pickle.loads(table[_STOPPED][0].as_py())
        return halt
    return write_and_commit(table, job)
