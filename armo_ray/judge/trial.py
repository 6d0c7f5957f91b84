"""The first calls of an input, made before any request: whether its rows can be read, and what a run would ask."""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from armo_ray.endpoint.client import probe
from armo_ray.errors import ConfigError
from armo_ray.judge.job import JudgeJob
from armo_ray.judge.options import JudgeOptions
from armo_ray.judge.stages import Row, listed_calls
from armo_ray.score import trial
from armo_ray.score.stages.read import units_of
from armo_ray.storage import commits
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span

_PLACES = 16  # where rows are read
_ROWS = 1000  # in all
_PROBED = 16  # texts that a reward server is asked about first
_CHARACTERS = 4  # of a token of English text, roughly


class Sample(NamedTuple):
    """Some rows, the calls that judge them, and the part of the input that they are."""

    num_rows: int
    num_candidates: int
    rejects: list[tuple[str, int, str, str]]  # shard, row, reason and detail
    rows: list[Row]
    fraction: float


def check(job: JudgeJob, spans: Sequence[Span], options: JudgeOptions) -> None:
    """Raises ConfigError if too many of the first rows would be rejected, unless the output has commits."""
    if commits.list_commits(Store(job.output)):
        return
    sample = take(job, spans[:1], 1)
    found = trial.Trial(sample.num_rows, sample.num_candidates, sample.rejects, {})
    if reason := trial.refusal(found, options):
        raise ConfigError(reason)
    if job.tokenizer is not None:
        texts = [call.options for row in sample.rows for call in row.calls][:_PROBED]
        probe(job.endpoint, [(text["text"], text["num_tokens"]) for text in texts])


def take(job: JudgeJob, spans: Sequence[Span], places: int = _PLACES) -> Sample:
    """Read rows at the beginning of some shards, and make their calls."""
    chosen = spans[:: -(-len(spans) // places)]
    few = replace(job, unit_rows=min(job.unit_rows, max(1, _ROWS // len(chosen))))
    size = num_rows = num_candidates = 0
    rejects: list[tuple[str, int, str, str]] = []
    rows: list[Row] = []
    for span in chosen:
        for unit in units_of(span, few):
            read, listed, own = listed_calls(unit, span.shard, job)
            rejects += [
                (span.shard.uri, read.numbers[i], reason, detail) for i, reason, detail in listed.rejects
            ]
            rows += own
            size += unit.unit.source_bytes
            num_rows += len(unit.rows)
            num_candidates += len(read.candidates)
            break
    whole = sum(span.source_bytes for span in spans)
    return Sample(num_rows, num_candidates, rejects, rows, min(1.0, size / max(whole, 1)))


def estimate(job: JudgeJob, spans: Sequence[Span], options: JudgeOptions) -> list[str]:
    """Lines that tell what a run would ask and cost, from a sample of the input and the replies of earlier units."""
    sample = take(job, spans)
    calls = [call for row in sample.rows for call in row.calls]
    if not calls:
        return [f"none of {sample.num_candidates} candidates in {sample.num_rows} rows can be judged"]
    requests = len(calls) / sample.fraction
    about = "" if sample.fraction == 1 else "about "  # from the share of the bytes that was read
    characters = sum(len(message["content"]) for call in calls for message in call.messages)
    prompt = characters / len(calls) / _CHARACTERS
    limit = job.judge.sampling.get("max_tokens") or job.judge.sampling.get("max_completion_tokens") or 0
    written, source, most = (
        float(limit),
        f"about {_CHARACTERS} characters a token, max_tokens written",
        f"at most {about}",
    )
    if measured := _measured(job):
        prompt, written = measured
        source, most = "as measured in the units that are committed", ""
    rejected = len(sample.rejects) / max(sample.num_candidates, 1)
    too_many = "; --max-reject-fraction accepts fewer" if rejected > options.max_reject_fraction else ""
    cost = requests * (prompt * job.prices[0] + written * job.prices[1]) / 1e6
    return [
        f"candidates   {about}{sample.num_candidates / sample.fraction:,.0f}, of which "
        f"{rejected:.1%} would be rejected{too_many}",
        f"requests     {about}{requests:,.0f}",
        f"tokens       {requests * prompt:,.0f} in prompts, {most}{requests * written:,.0f} written: {source}",
        f"cost         {cost:,.2f}"
        if any(job.prices)
        else "cost         give --input-price and --output-price",
        "",
        "the first request:",
        *(f"[{message['role']}]\n{message['content']}" for message in calls[0].messages),
    ]


def _measured(job: JudgeJob) -> tuple[float, float] | None:
    """The mean tokens of a prompt and of what is written, of the requests of committed units."""
    asked = [dict(r.extra).get("asked", {}) for r in commits.read_log(Store(job.output)).records()]
    requests = sum(entry.get("requests", 0) for entry in asked)
    if not requests:
        return None
    prompt, written = (
        sum(entry.get(name, 0) for entry in asked) for name in ("prompt_tokens", "completion_tokens")
    )
    return prompt / requests, written / requests
