"""The first rows of an input, read and tokenized before any replica starts: a wrong layout, role or length is told
then, and not when the GPUs have worked.

They are tokenized in a process of their own, about 1 s for a thousand rows: a row that kills it costs no more here
than it does later.
"""

import logging
import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from math import ceil
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from armo_ray.errors import ConfigError
from armo_ray.score.config import ScoreConfig
from armo_ray.score.job import Job
from armo_ray.score.stages.read import load_encoder, row_candidates, units_of
from armo_ray.storage import commits
from armo_ray.storage.readers import BadRow, Row
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span
from armo_ray.text.column_roles import content_of
from armo_ray.text.conversations import Candidate
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import unread_keys
from armo_ray.text.paths import Rejected, value_at

logger = logging.getLogger(__name__)

ROWS = 1000
_CHARACTERS = 1 << 22  # of the candidates' texts, about a million tokens
# parts that may be text
_TEXTS = ("prompt", "chosen", "rejected", "responses", "response", "first", "second")
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
_SECONDS = 300.0  # for what takes about one
_ADVICE = {
    "malformed_row": "--layout and --column say where the parts of a row lie, --role NAME=ROLE what a role is",
    "too_long": "--max-length raises the limit where the model allows it, --truncate cuts prompts",
    "empty_prompt": "--column prompt=COLUMN names the column of the prompt",
    "empty_response": "--layout and --column say where the answers lie",
    "no_answer_turn": "--layout and --column say where the answers lie",
}


class Place(NamedTuple):
    """A row of a shard."""

    uri: str
    number: int
    row: Row


class Trial(NamedTuple):
    """What became of some rows."""

    rows: int
    candidates: int
    rejects: list[tuple[str, int, str, str]]  # shard, row, reason and detail
    encoded: Mapping[str, str]  # parts all of whose texts are messages that are written as text; their paths


def check(job: Job, spans: Sequence[Span], config: ScoreConfig) -> None:
    """Raise ConfigError where too many of the first rows would be rejected, unless the output has commits.

    What was accepted once is so when the run goes on.
    """
    if not commits.list_commits(Store(job.output)):
        trial = take(job, spans)
        if trial is not None and (told := refusal(trial, config)):
            raise ConfigError(told)


def take(job: Job, spans: Sequence[Span]) -> Trial | None:
    """Read and tokenize the first rows of the spans; None where that kills a process, or takes too long."""
    places, candidates, owners = list(first_rows(job, spans, ROWS)), [], []
    size = rows = 0
    for place in places:
        found = row_candidates(place.row, job)
        size += sum(map(_size, found))
        candidates += found
        owners += [place] * len(found)
        rows += 1
        if size > _CHARACTERS:
            break
    if unread := sorted({key for place in places[:rows] for key in _unread(place.row, job)}):
        logger.info("keys of messages that are not read: %s", ", ".join(unread))
    encoder = load_encoder(job)
    rejects = _apart(lambda: encoder.encode(candidates).rejects)
    if rejects is None:
        return None
    told = [(owners[i].uri, owners[i].number, reason, detail) for i, reason, detail in rejects]
    return Trial(rows, len(candidates), told, _encoded([place.row for place in places[:rows]], job.layout))


def first_rows(job: Job, spans: Sequence[Span], most: int) -> Iterator[Place]:
    """The first rows of the spans, in their order."""
    few = replace(job, unit_rows=min(job.unit_rows, most))
    rows = (
        Place(span.shard.uri, number, row)
        for span in spans
        for unit in units_of(span, few)
        for number, row in unit.rows
    )
    return islice(rows, most)


def refusal(trial: Trial, config: ScoreConfig) -> str | None:
    """Why a run whose first rows became this is not begun, None where it may begin."""
    for part, path in trial.encoded.items():
        if part not in config.column:
            return (
                f"input: every text of {path} in the first {trial.rows} rows is a list of messages that is written as "
                f"text: read JSON with --column {part}={path}[] (Python's own form is to be written as JSON first), or "
                f"score the text as it is with --column {part}={path}"
            )
    most = config.max_reject_fraction
    rejects = [reject for reject in trial.rejects if reject[2] != "skipped"]  # which --winner asks for
    fraction = len(rejects) / max(trial.candidates, 1)
    if fraction <= most:
        return None
    reasons = Counter(reason for _, _, reason, _ in rejects)
    named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    first = reasons.most_common(1)[0][0]
    uri, row, _, detail = next(reject for reject in rejects if reject[2] == first)
    advice = f"{_ADVICE[first]}; " if first in _ADVICE else ""
    return (
        f"input: {len(rejects)} of the {trial.candidates} candidates in the first {trial.rows} rows would be "
        f"rejected ({named}), more than --max-reject-fraction {most:g}. For example {uri} row {row}: {first}: "
        f"{detail}. {advice}--max-reject-fraction {ceil(fraction * 100) / 100:g} accepts that; armo-ray plan "
        f"--show 3 prints what would be read"
    )


def _encoded(rows: Sequence[Row], layout: Layout) -> dict[str, str]:
    """The parts all of whose texts are lists of messages, and where they lie."""
    found = {}
    for part, path in layout.columns.items():
        if part in _TEXTS and layout.shape is None:
            texts = [text for row in rows if isinstance(row, dict) for text in _texts(row, path)]
            if texts and all(map(_MESSAGES.match, texts)):
                found[part] = path
    return found


def _texts(row: Mapping[str, Any], path: str) -> Iterator[str]:
    """The texts at a path that are not empty."""
    try:
        found = value_at(row, path)
    except Rejected:
        return
    for value in found if isinstance(found, list) else [found]:
        if value and isinstance(value, str):
            yield value


def _size(candidate: Candidate) -> int:
    return len(candidate.response) + sum(len(message["content"]) for message in candidate.prompt)


def _unread(row: Row, job: Job) -> set[str]:
    if isinstance(row, BadRow):
        return set()
    try:
        content = content_of(row, job.layout)
    except Rejected:
        return set()
    return unread_keys([content.prompt, *(response for _, response in content.responses)])


def _apart(task: Callable[[], Any]) -> Any:
    """What a task returns in a process of its own, or None where it dies or does not end."""
    context = get_context("fork")  # with all that is loaded; it uses neither threads nor files of its own
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(task, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if receiver.poll(_SECONDS):
            return receiver.recv()
        logger.warning("the first rows were not tried out: tokenizing them takes more than %g s", _SECONDS)
    except EOFError:
        child.join()
        logger.warning(
            "the first rows were not tried out: tokenizing them ends with status %s", child.exitcode
        )
    finally:
        child.kill()
        child.join()
    return None


def _send(task: Callable[[], Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sender.send(task())
