"""The step of a unit between reading and writing: ask for the replies to its calls, and judge by them."""

import asyncio
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pyarrow as pa

from armo_ray.endpoint.client import Client
from armo_ray.endpoint.journal import Entry, Journal, request_key
from armo_ray.endpoint.limits import Allowance, Gate, Stopped, Usage, keep
from armo_ray.endpoint.reply import EndpointRefused, Failure, Reply
from armo_ray.judge.job import JudgeJob
from armo_ray.judge.stages import Halt, Row, left, rows_of, with_results
from armo_ray.judging.calls import Call
from armo_ray.judging.verdicts import Judged, judged, parse
from armo_ray.score.stages.unit_block import Header
from armo_ray.storage.store import Store

Renew = Callable[[str, int, int, Usage, float], Awaitable[Allowance]]
Replies = Sequence[Reply | Failure]


class Asker:
    """Asks for the replies of units. Each reply is in the journal before it counts.

    Several threads may each bring a unit: while the last replies of one are waited for, the next has the free slots.
    What ends the requests of one unit ends those of all that are asked about at that time.

    Args:
        renew: `Shares.renew` of the whole run.
    """

    def __init__(self, job: JudgeJob, renew: Renew) -> None:
        self.job = job
        self.loop = asyncio.new_event_loop()  # of all requests, in a thread of its own
        self.gate = Gate(tokens_per_slot=job.tokens_per_slot)
        self.client: Client | None = None
        self.ended = time.perf_counter()  # the last unit that ended
        self._renew = partial(renew, uuid.uuid4().hex)
        self._asked = 0  # units that are asked about
        self._changes = asyncio.Lock()  # of their number from 0, or to it
        self._keeper: asyncio.Task[None] | None = None
        self._failed: BaseException | None = None  # why the gate was stopped, if not by `Shares`
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Replace a unit's calls by scores, or by why it is left."""
        try:
            return self._judge(table)
        except Stopped:
            return left(table, Halt("cost", "--max-cost is reached"))  # or another asker told why
        except EndpointRefused as error:
            return left(table, Halt("refused", str(error)))

    def close(self) -> None:
        """Close the connections, and end the thread."""
        if self.client is not None:
            asyncio.run_coroutine_threadsafe(self.client.__aexit__(), self.loop).result()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    def _judge(self, table: pa.Table) -> pa.Table:
        header, rows = Header.of(table), rows_of(table)
        header.began = time.time()
        calls = [call for row in rows for call in row.calls]
        replies = self._replies(header, calls)
        answered = list({id(reply): reply for reply in replies if isinstance(reply, Reply)}.values())
        header.extra += (("asked", _took(answered, self.job.prices)),)
        header.num_tokens = sum(r.prompt_tokens + r.completion_tokens for r in answered)
        header.computed_tokens = header.num_tokens
        results, at = list[Judged](), 0
        for row in rows:
            results += self._judged(row, replies[at : at + len(row.calls)])
            at += len(row.calls)
        return with_results(table, header, results, len(self.job.judge.reward_names))

    def _judged(self, row: Row, replies: Replies) -> list[Judged]:
        results = judged(self.job.judge, len(row.numbers), row.calls, replies)
        for verdict in (verdict for result in results for verdict in result.verdicts):
            if verdict["opponent"] is not None:  # so far its place among those that are judged
                verdict["opponent"] = row.numbers[verdict["opponent"]]
        return results

    def _replies(self, header: Header, calls: Sequence[Call]) -> Replies:
        """The replies to a unit's calls, in their order; those in the journal are not asked for again."""
        started = time.perf_counter()
        journal = Journal(Store(self.job.output), header.unit.id)
        known = journal.read()
        keys = [_key(self.job.endpoint.model, call) for call in calls]
        by_key = dict(zip(keys, calls, strict=True))
        work = self._all(journal, known, by_key)
        found = asyncio.run_coroutine_threadsafe(work, self.loop).result()
        began, self.ended = self.ended, time.perf_counter()
        wait = max(0.0, started - began)
        header.seconds |= {"wait": wait, "pack": 0.0, "model": self.ended - max(started, began)}
        return [found[key] for key in keys]

    async def _all(
        self, journal: Journal, known: dict[str, Entry], calls: dict[str, Call]
    ) -> dict[str, Reply | Failure]:
        """The replies to calls, by key. If the run must stop, those in flight are waited for."""
        client = await self._entered()
        async with self._slots():
            asks = (self._ask(client, journal, known.get(key), key, call) for key, call in calls.items())
            replies = await asyncio.gather(*asks, return_exceptions=True)
            await asyncio.to_thread(journal.flush)  # before the driver hears that nothing is in flight
            if any(isinstance(reply, BaseException) for reply in replies):
                raise self._failed or Stopped
        return dict(zip(calls, replies, strict=True))  # type: ignore[arg-type]

    @asynccontextmanager
    async def _slots(self) -> AsyncIterator[None]:
        """Hold a share of the slots of the run while any unit is asked about."""
        async with self._changes:
            if not self._asked:
                self._failed = None
                self.gate.reopen()
                self._keeper = asyncio.ensure_future(keep(self.gate, self._renew))
                self._keeper.add_done_callback(self._lost)
            self._asked += 1
        try:
            yield
        finally:
            async with self._changes:
                self._asked -= 1
                if not self._asked and self._keeper is not None:
                    self._keeper.cancel()
                    await asyncio.wait({self._keeper})

    def _lost(self, keeper: asyncio.Task[None]) -> None:
        if not keeper.cancelled() and (error := keeper.exception()):
            self._stop(error)  # the shares are lost for good

    def _stop(self, error: BaseException) -> None:
        """Send no further request for any unit."""
        if not isinstance(error, Stopped):
            self._failed = self._failed or error
        self.gate.stop()

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
        except BaseException as error:
            self._stop(error)
            raise
        return reply

    async def _entered(self) -> Client:
        """The client, whose connections are kept from unit to unit."""
        if self.client is None:
            self.client = Client(self.job.endpoint, self.gate, self.job.served)
            await self.client.__aenter__()
        return self.client


def _key(model: str, call: Call) -> str:
    return request_key(model, call.messages, call.options, call.order, call.sample)


def _took(replies: Sequence[Reply], prices: tuple[float, float]) -> dict[str, Any]:
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
