"""The steps of a unit: read the calls of its rows, ask for their replies, write and commit what they say."""

import asyncio
import hashlib
import json
import pickle
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from armo_ray.endpoint.client import Client
from armo_ray.endpoint.journal import Entry, Journal, request_key
from armo_ray.endpoint.limits import Allowance, Gate, Stopped, Usage, keep
from armo_ray.endpoint.reply import EndpointRefused, Failure, Reply
from armo_ray.judge.job import JudgeJob, whole_text
from armo_ray.judging.calls import Call, calls_of
from armo_ray.judging.verdicts import Judged, judged, parse
from armo_ray.outputs.schema import JUDGE_FIELDS
from armo_ray.score.passes import Committed
from armo_ray.score.stages.read import Read, candidates_in, extra_of, row_columns, units_of
from armo_ray.score.stages.unit_block import FAILURES, Header, nest, one, unnest
from armo_ray.score.stages.write import write_and_commit
from armo_ray.storage.readers import BadRow, UnitRows
from armo_ray.storage.shards import Shard
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span
from armo_ray.text.conversations import Candidate
from armo_ray.text.paths import Rejected, value_at
from armo_ray.text.tokenized import Prompt, Tokenized

_ROWS = "rows"  # column of the calls of a unit, pickled
_STOPPED = "stopped"  # column of why a unit was left
Renew = Callable[[str, int, int, Usage, float], Awaitable[Allowance]]


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


class Asker:
    """Asks for the replies of one unit after the other. Each reply is in the journal before it counts.

    Args:
        renew: `Shares.renew` of the whole run.
    """

    def __init__(self, job: JudgeJob, renew: Renew) -> None:
        self.job, self.renew = job, renew
        self.loop = asyncio.new_event_loop()
        self.gate = Gate()
        self.client: Client | None = None
        self.name = uuid.uuid4().hex
        self.ended: float | None = None  # end of the previous unit, by time.perf_counter

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace a unit's calls by scores, or by why it is left."""
        try:
            return self.loop.run_until_complete(self._judge(table))
        except Stopped:
            halt = Halt(
                "cost", "--max-cost is reached"
            )  # or the run ends for a reason that another asker told
        except EndpointRefused as error:
            halt = Halt("refused", str(error))
        return pa.table({"header": table["header"], _STOPPED: [pickle.dumps(halt)]})

    async def _judge(self, table: pa.Table) -> pa.Table:
        started, header = time.perf_counter(), Header.of(table)
        header.began = time.time()
        header.seconds |= {"wait": started - (self.ended or started), "pack": 0.0}
        rows: list[Row] = pickle.loads(table[_ROWS][0].as_py())
        calls = [call for row in rows for call in row.calls]
        replies = await self._replies(header.unit.id, calls)
        self.ended = time.perf_counter()
        header.seconds["model"] = self.ended - started
        answered = list({id(reply): reply for reply in replies if isinstance(reply, Reply)}.values())
        header.extra += (("asked", _asked(answered, self.job.prices)),)
        header.num_tokens = sum(r.prompt_tokens + r.completion_tokens for r in answered)
        header.computed_tokens = header.num_tokens
        results, at = list[Judged](), 0
        for row in rows:
            own = judged(self.job.judge, len(row.numbers), row.calls, replies[at : at + len(row.calls)])
            for verdict in (verdict for result in own for verdict in result.verdicts):
                if verdict["opponent"] is not None:  # so far its place among those that are judged
                    verdict["opponent"] = row.numbers[verdict["opponent"]]
            results += own
            at += len(row.calls)
        return _with_results(table, header, results, len(self.job.judge.reward_names))

    async def _replies(self, unit: str, calls: Sequence[Call]) -> list[Reply | Failure]:
        """The replies to calls, in their order; those in the journal are not asked for again."""
        client, journal = await self._entered(), Journal(Store(self.job.output), unit)
        known = journal.read()
        keys = [_key(self.job.endpoint.model, call) for call in calls]
        by_key = dict(zip(keys, calls, strict=True))
        self.gate.reopen()
        asks = (self._ask(client, journal, known.get(key), key, call) for key, call in by_key.items())
        work = asyncio.gather(*asks, return_exceptions=True)
        keeper = asyncio.ensure_future(keep(self.gate, partial(self.renew, self.name)))
        try:
            await asyncio.wait(set[Any]({work, keeper}), return_when=asyncio.FIRST_COMPLETED)
            if keeper.done():
                self.gate.stop()  # the shares are lost for good
            replies = await work  # if the run must stop, those in flight are waited for
        finally:
            await asyncio.to_thread(journal.flush)
            keeper.cancel()
            (lost,) = await asyncio.gather(keeper, return_exceptions=True)
        errors = [reply for reply in replies if isinstance(reply, BaseException)]
        if errors and isinstance(lost, Exception):
            raise lost
        for error in sorted(errors, key=lambda error: isinstance(error, Stopped)):
            raise error
        found = dict(zip(by_key, replies, strict=True))
        return [found[key] for key in keys]  # type: ignore[misc]

    async def _ask(
        self, client: Client, journal: Journal, entry: Entry | None, key: str, call: Call
    ) -> Reply | Failure:
        """The reply to a call; `entry` is what the journal has of it. An error stops the other calls, too."""
        if entry is not None and entry.reply is not None:
            return entry.reply
        options = dict(call.options)
        if entry is not None and "seed" in options:
            options["seed"] += entry.retried  # else the answer would be the same
        try:
            if self.job.tokenizer is None:
                reply = await client.send(call.messages, options)
            else:
                reply = await client.send_text(options["text"], options["num_tokens"])
            if isinstance(reply, Reply):
                finding = parse(self.job.judge, call, reply)
                journal.add(key, reply, finding.reason if isinstance(finding, Failure) else None)
        except BaseException:
            self.gate.stop()
            raise
        return reply

    async def _entered(self) -> Client:
        """The client, whose connections are kept from unit to unit."""
        if self.client is None:
            self.client = await Client(self.job.endpoint, self.gate, self.job.served).__aenter__()
        return self.client


def _key(model: str, call: Call) -> str:
    return request_key(model, call.messages, call.options, call.order, call.sample)


def _asked(replies: Sequence[Reply], prices: tuple[float, float]) -> dict[str, Any]:
    """What a unit's replies took, as its commit record holds it."""
    prompt, completion = sum(r.prompt_tokens for r in replies), sum(r.completion_tokens for r in replies)
    cost = (prompt * prices[0] + completion * prices[1]) / 1e6
    served = {"model": replies[0].model} if replies else {}
    return {
        **served,
        "requests": len(replies),
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "cost": cost,
        "finish_reasons": dict(Counter(reply.finish_reason for reply in replies)),
    }


def _with_results(table: pa.Table, header: Header, results: Sequence[Judged], num_rewards: int) -> pa.Table:
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


def write_verdicts(table: pa.Table, job: JudgeJob) -> Committed | Halt:
    """Write and commit a unit, unless it was left."""
    if _STOPPED in table.column_names:
        halt: Halt = pickle.loads(table[_STOPPED][0].as_py())
        return halt
    return write_and_commit(table, job)
