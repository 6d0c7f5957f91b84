"""Verdicts of single replies, and what they say of each candidate."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from armo_ray.endpoint.reply import Failure, Reply
from armo_ray.judging.calls import Call
from armo_ray.judging.reading import Numbers, Unparsable, likely_value, shares, visible, written
from armo_ray.judging.specification import Judge

_SHOWN = 300  # characters of a reply without a verdict


@dataclass(frozen=True, slots=True)
class Verdict:
    """What one reply says: for a single response its rewards, else one number for each response in the order shown."""

    values: Numbers
    label_mass: float | None = (
        None  # the probability of all labels, if the verdict is an expectation over tokens
    )


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate with its score, or with the reason why it has none.

    agreement: the share of its verdicts that equal the most frequent one of their contest.
    order_flips: the share of its contests that the two orders decide differently; None if no contest had both.
    """

    score: float | None = None
    rewards: tuple[float, ...] = ()
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    agreement: float | None = None
    order_flips: float | None = None
    flags: tuple[str, ...] = ()
    reason: str | None = None
    detail: str | None = None


def parse(judge: Judge, call: Call, reply: Reply) -> Verdict | Failure:
    """The verdict of a reply, or the reason why it has none."""
    if judge.parse.kind == "values":
        return Verdict(tuple(reply.values[name] for name in judge.reward_names))
    if reply.refusal or reply.finish_reason == "content_filter":
        return Failure("refused", (reply.refusal or "stopped by the server's content filter")[:200])
    if _cut_off(judge, reply):
        limit = judge.sampling.get("max_tokens", judge.sampling.get("max_completion_tokens"))
        return Failure(
            "cut_off", f"the reply ends at {reply.completion_tokens} tokens, max_tokens is {limit}"
        )
    try:
        if judge.parse.kind == "tokens":
            value, mass = _expected(judge, reply)
            values = shares(judge, value, len(call.candidates))
            assert not isinstance(values, str), "only a list has places"
            return Verdict(values, mass)
        return Verdict(written(judge, _begun(judge, call) + reply.text, len(call.candidates)))
    except Unparsable as finding:
        return Failure("unparsable", str(finding))


def _cut_off(judge: Judge, reply: Reply) -> bool:
    """Whether the reply ends too early. Where tokens are read it may end after them, but not in the thinking."""
    if reply.finish_reason != "length":
        return False
    return judge.parse.kind != "tokens" or not visible(judge, reply.text).strip()


def _begun(judge: Judge, call: Call) -> str:
    """The beginning of the reply that the judge file gives; a prompt's last turn is none."""
    return call.messages[-1]["content"] if judge.messages[-1].role == "assistant" else ""


def _expected(judge: Judge, reply: Reply) -> tuple[float, float]:
    likely = [place for place in reply.likely if place]
    generated = [place[0][0] for place in likely]
    whole = "".join(generated)
    start = len(whole) - len(visible(judge, whole))
    if reply.reasoning:  # its tokens stand before those of the text, which does not hold it
        start = max(start, whole.rfind(reply.text) if reply.text else len(whole))
    ends, at = [], 0
    for token in generated:
        ends.append(at := at + len(token))
    kept = [k for k, end in enumerate(ends) if end > start]
    places = [_probabilities(likely[k]) for k in kept]
    return likely_value(judge, places, [generated[k] for k in kept])


def _probabilities(place: Sequence[tuple[str, float]]) -> Mapping[str, float]:
    """Each returned token once: the generated one is usually among the most likely too."""
    return {token: math.exp(min(logarithm, 0.0)) for token, logarithm in place}


def judged(
    judge: Judge, num_candidates: int, calls: Sequence[Call], replies: Sequence[Reply | Failure]
) -> list[Judged]:
    """What the replies, one for each call, say of each candidate of a row."""
    own: list[list[_Vote]] = [[] for _ in range(num_candidates)]
    for call, reply in zip(calls, replies, strict=True):
        verdict = parse(judge, call, reply) if isinstance(reply, Reply) else reply
        for place, i in enumerate(call.candidates):
            own[i].append(_vote(judge, call, reply, verdict, place))
    return [_judged(judge, votes) for votes in own]


@dataclass(frozen=True, slots=True)
class _Vote:
    """One call's verdict on one candidate."""

    contest: frozenset[int]
    order: int
    sample: int
    place: int
    values: Numbers | None  # None: no verdict
    failure: Failure | None
    shown: dict[str, Any]


def _vote(judge: Judge, call: Call, reply: Reply | Failure, verdict: Verdict | Failure, place: int) -> _Vote:
    failure = verdict if isinstance(verdict, Failure) else None
    values: Numbers | None = None
    if isinstance(verdict, Verdict):
        values = verdict.values if judge.unit == "one" else (verdict.values[place],)
    answered = reply if isinstance(reply, Reply) else None
    shown = {
        "text": answered.text if answered else None,
        "reasoning": (answered.reasoning or None) if answered else None,
        "finish_reason": answered.finish_reason if answered else None,
        "value": None if values is None else _weighted(judge, values),
        "opponent": call.candidates[1 - place] if judge.unit == "pair" else None,
        "place": place,
        "order": call.order,
        "sample": call.sample,
        "prompt_tokens": answered.prompt_tokens if answered else None,
        "completion_tokens": answered.completion_tokens if answered else None,
        "label_mass": verdict.label_mass if isinstance(verdict, Verdict) else None,
        "reason": failure.reason if failure else None,
    }
    return _Vote(frozenset(call.candidates), call.order, call.sample, place, values, failure, shown)


def _weighted(judge: Judge, values: Numbers) -> float:
    """The score of these rewards; what a response has won in one contest as it is."""
    if judge.unit != "one":
        return values[0]
    return sum(weight * value for weight, value in zip(judge.weights, values, strict=True))


def _judged(judge: Judge, votes: Sequence[_Vote]) -> Judged:
    shown = [vote.shown for vote in votes]
    if not votes:
        return Judged(
            reason="malformed_row",
            detail="this judge compares responses to one prompt, but there is only one",
        )
    cast = [vote for vote in votes if vote.values is not None]
    failures = [vote.failure for vote in votes if vote.failure is not None]
    rewards = _rewards(judge, cast) if cast and len(cast) / len(votes) >= judge.quorum else None
    if rewards is None:
        first = next(vote for vote in votes if vote.failure is not None)
        assert first.failure is not None, "it has one"
        several = f"{len(failures)} of {len(votes)} calls have no verdict: " if len(votes) > 1 else ""
        detail = several + first.failure.detail + _end_of(first.shown["text"], first.failure.detail)
        return Judged(verdicts=shown, reason=first.failure.reason, detail=detail)
    score = sum(weight * reward for weight, reward in zip(judge.weights, rewards, strict=True))
    flags = ("missing_verdicts",) if failures else ()
    return Judged(score, rewards, shown, _agreement(judge, cast), _order_flips(judge, cast), flags)


def _end_of(text: str | None, detail: str) -> str:
    """The end of a reply without a verdict, which tells how to change the prompt or the rule."""
    if not text or "ends with" in detail:
        return ""
    return f"; the reply ends: {text[-_SHOWN:]!r}"


def _rewards(judge: Judge, cast: Sequence[_Vote]) -> tuple[float, ...] | None:
    """The rewards; None if the verdicts that one of them needs are missing."""
    if judge.unit == "one" or len(judge.reward_names) == 1:
        return _aggregated(judge, cast)
    by_place = [[vote for vote in cast if vote.place == place] for place in (0, 1)]
    if not all(by_place):
        return None
    return tuple(_aggregated(judge, own)[0] for own in by_place)


def _aggregated(judge: Judge, cast: Sequence[_Vote]) -> tuple[float, ...]:
    """The mean over contests and orders of what their samples say together."""
    groups: dict[Any, list[Numbers]] = {}
    for vote in cast:
        assert vote.values is not None, "cast verdicts have values"
        groups.setdefault((vote.contest, vote.order), []).append(vote.values)
    said = [
        _majority(values) if judge.aggregate == "majority" else _mean(values) for values in groups.values()
    ]
    times = judge.samples if judge.aggregate == "sum" else 1
    return tuple(times * value for value in _mean(said))


def _mean(values: Sequence[Numbers]) -> Numbers:
    return tuple(math.fsum(column) / len(column) for column in zip(*values, strict=True))


def _majority(values: Sequence[Numbers]) -> Numbers:
    """The most frequent value; the mean of those that are equally frequent."""
    counts = Counter(values)
    most = max(counts.values())
    return _mean([value for value, count in counts.items() if count == most])


def _agreement(judge: Judge, cast: Sequence[_Vote]) -> float:
    contests: dict[frozenset[int], Counter[Any]] = {}
    for vote in cast:
        contests.setdefault(vote.contest, Counter())[_side(judge, vote)] += 1
    return sum(max(counts.values()) for counts in contests.values()) / len(cast)


def _order_flips(judge: Judge, cast: Sequence[_Vote]) -> float | None:
    """Compares the two orders of each contest sample by sample."""
    if judge.unit == "one" or judge.is_rating:
        return None
    sides: dict[Any, dict[int, Any]] = {}
    for vote in cast:
        sides.setdefault((tuple(sorted(vote.contest)), vote.sample), {})[vote.order] = _side(judge, vote)
    both = [own for own in sides.values() if len(own) == 2]
    return sum(own[0] != own[1] for own in both) / len(both) if both else None


def _side(judge: Judge, vote: _Vote) -> Any:
    """What a verdict says, so that two can be compared: win, tie or loss, the nearest label, or the ratings."""
    assert vote.values is not None, "cast verdicts have values"
    if not judge.is_rating:
        return (vote.values[0] > 0.5) - (vote.values[0] < 0.5)
    if judge.parse.kind == "tokens":
        return min(judge.parse.values.values(), key=lambda label: abs(label - vote.values[0]))  # type: ignore[index]
    return vote.values
