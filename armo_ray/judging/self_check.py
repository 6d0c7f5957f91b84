"""How a judge behaves on a small set of answers, before it is used on data: what it can tell apart, and its biases.

Each prompt of the set has a right answer, a wrong one, and the right one padded with words that say nothing (a few
cannot be padded; they are left out of that measure).
"""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from typing import Any

from armo_ray.endpoint.client import Client, Endpoint
from armo_ray.endpoint.limits import Gate
from armo_ray.endpoint.reply import Failure, Reply
from armo_ray.errors import ConfigError
from armo_ray.judging.calls import Call, calls_of
from armo_ray.judging.specification import Judge
from armo_ray.judging.verdicts import Judged, Verdict, judged, parse
from armo_ray.text.conversations import Candidate

CHECKED = "judge_check.json"  # in the output of a run that was checked before
_SAMPLES = 2  # at least, of each request, to see whether the judge agrees with itself
_IN_FLIGHT = 8
_RUBRIC = "The response is correct, and does exactly what the prompt asks for."


@dataclass(frozen=True)
class SelfCheck:
    """What was measured; a share is None if nothing was counted.

    parsed: of all replies, those that have a verdict; `failures` counts the others by reason.
    right: of the prompts, those whose right answer scores above the wrong one; a tie counts half.
    agrees: of the requests that were sent again with another seed, those with the same verdict.
    first: of the verdicts on two answers, those for the one shown first, without ties; 0.5 is no bias.
    flips: of the pairs, those that the two orders decide differently.
    longer: of the prompts, those whose padded answer scores above the plain one; a tie counts half, 0.5 is no bias.
    """

    requests: int
    parsed: float
    failures: dict[str, int]
    right: float | None
    agrees: float | None
    first: float | None
    flips: float | None
    longer: float | None


def self_check(judge: Judge, endpoint: Endpoint) -> SelfCheck:
    """Ask a judge about the set. Raises ConfigError if the judge cannot be checked, EndpointRefused as the client."""
    judge = replace(judge, samples=max(judge.samples, _SAMPLES))
    items = [json.loads(line) for line in _set().splitlines()]
    if judge.unit == "list" and judge.size not in (None, 2):
        raise ConfigError(
            f"judge {judge.name} compares {judge.size} responses; the set to check judges has two"
        )
    told = [_asked(judge, item, "good", "bad") for item in items]
    padded = [_asked(judge, item, "good", "padded") for item in items if item["good"] != item["padded"]]
    calls = [call for of_item in (*told, *padded) for call in of_item]
    replies = asyncio.run(_replies(endpoint, calls))
    return _measures(judge, told, padded, replies)


def _set() -> str:
    return (files("armo_ray.judging") / "built_in" / "check.jsonl").read_text("utf-8")


def _asked(judge: Judge, item: dict[str, str], *answers: str) -> list[Call]:
    prompt = [{"role": "user", "content": item["prompt"]}]
    candidates = [Candidate(i, "response", prompt, item[name]) for i, name in enumerate(answers)]
    columns = dict.fromkeys(judge.columns, _RUBRIC)
    return calls_of(judge, item["prompt"], candidates, columns)


async def _replies(endpoint: Endpoint, calls: Sequence[Call]) -> list[Reply | Failure]:
    async with Client(endpoint, Gate(_IN_FLIGHT)) as client:
        return await asyncio.gather(*(client.send(call.messages, call.options) for call in calls))


def _measures(
    judge: Judge, told: list[list[Call]], padded: list[list[Call]], replies: Sequence[Reply | Failure]
) -> SelfCheck:
    verdicts, results, at = list[tuple[Call, Verdict | Failure]](), list[list[Judged]](), 0
    for calls in (*told, *padded):
        own = replies[at : at + len(calls)]
        at += len(calls)
        results.append(judged(judge, 2, calls, own))
        verdicts += [
            (call, parse(judge, call, reply) if isinstance(reply, Reply) else reply)
            for call, reply in zip(calls, own, strict=True)
        ]
    failures = [verdict.reason for _, verdict in verdicts if isinstance(verdict, Failure)]
    of_told = results[: len(told)]
    flips = [pair[0].order_flips for pair in of_told if pair[0].order_flips is not None]
    return SelfCheck(
        requests=len(replies),
        parsed=1 - len(failures) / max(len(replies), 1),
        failures={reason: failures.count(reason) for reason in sorted(set(failures))},
        right=_share([_wins(good, bad) for good, bad in of_told]),
        agrees=_agreement(verdicts),
        first=_first(judge, verdicts),
        flips=_share([float(flip > 0) for flip in flips]),
        longer=_share([_wins(longer, plain) for plain, longer in results[len(told) :]]),
    )


def _share(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _wins(one: Judged, other: Judged) -> float | None:
    """1 if the first scores above the second, 0.5 if both are equal, None if one has no score."""
    if one.score is None or other.score is None:
        return None
    return float(one.score > other.score) + 0.5 * (one.score == other.score)


def _agreement(verdicts: Sequence[tuple[Call, Verdict | Failure]]) -> float | None:
    """Of the requests with the same messages, the share whose verdict equals that of the first of them."""
    firsts: dict[Any, Verdict] = {}
    same = []
    for call, verdict in verdicts:
        if isinstance(verdict, Failure):
            continue
        key = json.dumps(call.messages)
        if key in firsts:
            same.append(float(firsts[key].values == verdict.values))
        firsts.setdefault(key, verdict)
    return _share(same)


def _first(judge: Judge, verdicts: Sequence[tuple[Call, Verdict | Failure]]) -> float | None:
    if judge.unit == "one":
        return None
    pairs = [verdict.values for _, verdict in verdicts if isinstance(verdict, Verdict)]
    return _share([float(first > second) for first, second in pairs if first != second])


def lines(check: SelfCheck) -> list[str]:
    """What was measured, to be read."""
    named = {
        "right answer above the wrong one": check.right,
        "agrees with itself (another seed)": check.agrees,
        "prefers the one shown first": check.first,
        "order decides the pair": check.flips,
        "prefers the padded answer": check.longer,
    }
    failures = ", ".join(f"{count} {reason}" for reason, count in check.failures.items())
    told = f"{check.parsed:.0%} of {check.requests}" + (f"; {failures}" if failures else "")
    rows = [("replies with a verdict", told)]
    rows += [(name, f"{value:.0%}") for name, value in named.items() if value is not None]
    return [f"{name:<36}{value}" for name, value in rows]
