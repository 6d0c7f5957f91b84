"""Outputs of judges without Ray: the stages of a run in this process, with replies from a server in a thread."""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from armo_ray.endpoint.limits import Allowance, Shares
from armo_ray.judge.asker import Asker
from armo_ray.judge.job import prepare
from armo_ray.judge.options import JudgeOptions
from armo_ray.judge.stages import Halt, read_calls, write_verdicts
from armo_ray.storage import commits, resume
from armo_ray.storage.store import Store

Answer = Callable[
    [str], Mapping[str, Any]
]  # from the last message, the fields that differ from a plain reply

RATING = """[judge]
unit = "one"
scale = [1, 10]
[[judge.messages]]
role = "user"
text = "{prompt} | {response}"
[judge.parse]
kind = "number"
pattern = 'Rating: (\\d+)'
"""
PAIR = """[judge]
unit = "pair"
[[judge.messages]]
role = "user"
text = "{prompt} | {a} | {b}"
[judge.parse]
kind = "choice"
pattern = 'Better: (A|B|tie)'
values = { A = "first", B = "second", tie = "tie" }
"""
LIST = """[judge]
unit = "list"
[[judge.messages]]
role = "user"
text = "{prompt} | {a} | {b} | {c} | {d}"
[judge.parse]
kind = "choice"
pattern = '\\[\\[([A-D])\\]\\]'
values = { A = 1, B = 2, C = 3, D = 4 }
"""


def drawn(text: str, size: int) -> int:
    """A number below size that the text decides."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16) % size


def rates(text: str) -> dict[str, Any]:
    """A rating from 1 to 10."""
    return {"text": f"Fine. Rating: {1 + drawn(text, 10)}"}


def rates_mostly(text: str) -> dict[str, Any]:
    """A rating, or one of the ways to give none."""
    failures: list[dict[str, Any]] = [
        {"text": "no idea"},
        {"refusal": "I will not."},
        {"text": "Rating", "finish_reason": "length"},
    ]
    at = drawn(text, 24)
    return failures[at] if at < len(failures) else rates(text)


def prefers(text: str) -> dict[str, Any]:
    """One of two responses, mostly the same in both orders; sometimes neither."""
    _, a, b = text.split(" | ")[-3:]
    ours = drawn(a, 97) - drawn(b, 97)
    if drawn(text, 7) == 0:
        return {"text": "Better: A"}
    return {"text": "Better: " + ("A" if ours > 0 else "B" if ours < 0 else "tie")}


def picks(text: str) -> dict[str, Any]:
    """One of four responses."""
    return {"text": f"[[{'ABCD'[drawn(text, 4)]}]]"}


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """The URL of a chat endpoint that answers in a thread of this process until the context ends."""

    async def chat(request: web.Request) -> web.Response:
        body = await request.json()
        reply = answer(body["messages"][-1]["content"])
        message = {"role": "assistant", "content": reply.get("text", ""), "refusal": reply.get("refusal")}
        choice = {
            "message": message,
            "finish_reason": reply.get("finish_reason", "stop"),
            "logprobs": reply.get("logprobs"),
        }
        usage = {"prompt_tokens": 10, "completion_tokens": 3}
        return web.json_response({"model": "served", "choices": [choice], "usage": usage})

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "served"}]})

    loop = asyncio.new_event_loop()
    app = web.Application(client_max_size=1 << 26)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/v1/models", models)
    runner = web.AppRunner(app, access_log=None)
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    def run(work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, loop).result(30)

    try:
        run(runner.setup())
        run(web.TCPSite(runner, "127.0.0.1", 0).start())
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    finally:
        run(runner.cleanup())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def judge_locally(
    judge: str, answer: Answer, inputs: Any, output: Path | str, **options: Any
) -> dict[str, Any]:
    """Judge what is not committed yet by the text of a judge file, or a built-in judge; returns the manifest."""
    with serving(answer) as url:
        if "\n" in judge:
            file = Path(f"{output}.judge.toml")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(judge, "utf-8")
            judge = str(file)
        given = {"judge": judge, "endpoint": url, "model": "served", "input": str(inputs)}
        return run_locally(JudgeOptions.model_validate({**given, "output": str(output), **options}))


def run_locally(options: JudgeOptions) -> dict[str, Any]:
    """`armo-ray judge` with its stages one after the other; returns the manifest."""
    job, spans = prepare(options)
    store = Store(job.output)
    shares = Shares(
        options.in_flight, prompt_price=options.input_price, completion_price=options.output_price
    )

    async def renew(client: str, holds: int, wants: int, used: Any, pause_s: float) -> Allowance:
        return shares.renew(client, holds, wants, time.monotonic(), used, pause_s)

    asker = Asker(job, renew)
    standing = resume.standing(store, spans, job.fingerprint, options.redo, options.forget)
    resume.drop(store, standing.dropped)
    for span in standing.left:
        for table in read_calls(span, job):
            written = write_verdicts(asker(table), job)
            assert not isinstance(written, Halt), written
    asker.close()
    assert resume.to_do(store, spans, job.fingerprint) == []
    commits.finish(store)
    return store.read_json(commits.SUCCESS) or {}


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
