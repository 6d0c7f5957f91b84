"""Judges, rows and replies for the tests of this room."""

import tomllib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from typing import Any

from armo_ray.endpoint.reply import Failure, Reply
from armo_ray.judging.calls import Call, calls_of
from armo_ray.judging.judge_file import judge_of
from armo_ray.judging.specification import Judge
from armo_ray.judging.verdicts import Judged, judged
from armo_ray.text.conversations import Candidate

RATING = """
[judge]
unit = "one"
scale = [1, 5]
[[judge.messages]]
role = "user"
text = "{prompt} | {response}"
[judge.parse]
kind = "number"
pattern = 'Score: (\\d+)'
"""
PAIR = """
[judge]
unit = "pair"
[[judge.messages]]
role = "user"
text = "{prompt} | {a} | {b}"
[judge.parse]
kind = "choice"
pattern = '\\[\\[(A|B|C)\\]\\]'
values = { A = "first", B = "second", C = "tie" }
"""
BEST = """
[judge]
unit = "list"
[[judge.messages]]
role = "user"
text = "{prompt} | {list}"
[judge.parse]
kind = "choice"
pattern = 'Best: (\\d)'
values = { 1 = 1, 2 = 2, 3 = 3 }
"""


def judge(text: str, **changes: Any) -> Judge:
    """The judge of a file's text, with these keys of [judge], [judge.parse] and [judge.sampling] changed."""
    entries = tomllib.loads(text)
    for key, value in changes.items():
        table, _, name = key.rpartition("__")
        (entries["judge"].setdefault(table, {}) if table else entries["judge"])[name] = value
    return judge_of(entries, "mine")


def built_in(name: str) -> Judge:
    """A built-in judge whose prompt is a stand-in: its rule and sampling are the real ones."""
    entries = tomllib.loads(files("armo_ray.judging").joinpath(f"built_in/{name}.toml").read_text("utf-8"))
    own = entries["judge"]
    if own.pop("origin", None):
        own["messages"] = [
            {"role": m["role"], "text": " | ".join(m.get("fields", {}).values()) or "a system prompt"}
            for m in own["messages"]
        ]
    return judge_of(entries, name)


def row(*responses: str, prompt: str = "Why?") -> list[Candidate]:
    turns = [{"role": "user", "content": prompt}]
    return [Candidate(i, "response", turns, response) for i, response in enumerate(responses)]


def reply(text: str, **changes: Any) -> Reply:
    return replace(Reply(text, "stop", "m", prompt_tokens=5, completion_tokens=2), **changes)


def ask(
    judge: Judge, candidates: Sequence[Candidate], answer: Callable[[Call], str | Reply | Failure]
) -> list[Judged]:
    """What a judge that answers each call so says of the candidates of a row."""
    calls = calls_of(judge, "row", candidates, {"rubric": "be brief", "criteria": "brief?"})
    answers = [answer(call) for call in calls]
    replies = [reply(each) if isinstance(each, str) else each for each in answers]
    return judged(judge, len(candidates), calls, replies)
