"""A trial of the first rows: read and tokenized before any replica starts, to report a wrong layout, role or length.

The rows are tokenized in a separate process, so that a row that kills the tokenizer does not end the run: about 1 s
for a thousand rows.
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
from armo_ray.score.config import ModelOptions
from armo_ray.score.job import ModelJob
from armo_ray.score.run_options import RunOptions
from armo_ray.score.stages.read import load_encoder, row_candidates, units_of
from armo_ray.storage import commits
from armo_ray.storage.readers import BadRow, Row
from armo_ray.storage.store import Store
from armo_ray.storage.units import Span
from armo_ray.text.column_roles import content_of
from armo_ray.text.conversations import Candidate
from armo_ray.text.labels import Label, UnreadableError, values_of
from armo_ray.text.layouts import Layout
from armo_ray.text.messages import unread_keys
from armo_ray.text.paths import Rejected, value_at

logger = logging.getLogger(__name__)

ROWS = 1000
_CHARACTERS = 1 << 22  # of the candidates' texts, about a million tokens
# roles of columns that may hold text
_TEXTS = ("prompt", "chosen", "rejected", "responses", "response", "first", "second")
_MESSAGES = re.compile(r"""\s*\[\s*\{\s*["'](role|from|content|value)["']\s*:""")
_SECONDS = 300.0  # time limit; about 1 s is normal
_ADVICE = {
    "malformed_row": "--layout and --column say which columns to read, --role NAME=ROLE what a role means",
    "too_long": "--max-length raises the limit if the model allows it, --truncate shortens prompts",
    "empty_prompt": "--column prompt=COLUMN names the column of the prompt",
    "empty_response": "--layout and --column say which columns hold the responses",
    "no_answer_turn": "--layout and --column say which columns hold the responses",
}


class Place(NamedTuple):
    """A row of a shard."""

    uri: str
    number: int
    row: Row


class LabelTrial(NamedTuple):
    """How often a label was found, and how often it could not be read, with an example."""

    found: int = 0
    lost: int = 0
    example: str = ""  # shard, row and reason


class Trial(NamedTuple):
    """The result of a trial."""

    rows: int
    candidates: int
    rejects: list[tuple[str, int, str, str]]  # shard, row, reason and detail
    encoded: Mapping[str, str]  # by role: path of a column whose texts are all serialized messages
    labels: Mapping[str, "LabelTrial"] = {}  # by name


def check(job: ModelJob, spans: Sequence[Span], config: ModelOptions) -> None:
    """Raises ConfigError if too many of the first rows would be rejected.

    An output that has commits is not tried again, so that a resumed run cannot be refused.
    """
    if not commits.list_commits(Store(job.output)):
        trial = take(job, spans)
        if trial is not None and (reason := refusal(trial, config)):
            raise ConfigError(reason)
        for name, label in trial.labels.items() if trial is not None else ():
            if label.lost:
                logger.warning("%s", _lost(name, label))


def take(job: ModelJob, spans: Sequence[Span]) -> Trial | None:
    """Read and tokenize the first rows of the spans. Returns None if that kills the process or takes too long."""
    places, candidates, owners = list(first_rows(job, spans, ROWS)), [], []
    given = dict.fromkeys(job.labels, LabelTrial())
    size = rows = 0
    for place in places:
        own = row_candidates(place.row, job)
        size += sum(map(_size, own))
        candidates += own
        given = {name: _counted(given[name], place, label, own) for name, label in job.labels.items()}
        owners += [place] * len(own)
        rows += 1
        if size > _CHARACTERS:
            break
    if unread := sorted({key for place in places[:rows] for key in _unread(place.row, job)}):
        logger.info("keys of messages that are not read: %s", ", ".join(unread))
    encoder = load_encoder(job)
    rejects = _in_process(lambda: encoder.encode(candidates).rejects)
    if rejects is None:
        return None
    located = [(owners[i].uri, owners[i].number, reason, detail) for i, reason, detail in rejects]
    encoded = _encoded([place.row for place in places[:rows]], job.layout)
    return Trial(rows, len(candidates), located, encoded, given)


def _counted(trial: LabelTrial, place: Place, label: Label, candidates: Sequence[Candidate]) -> LabelTrial:
    """The counts with those of a row."""
    values = [] if isinstance(place.row, BadRow) else values_of(place.row, label, candidates)
    errors = [value for value in values if isinstance(value, UnreadableError)]
    found = trial.found + sum(isinstance(value, float) for value in values)
    example = trial.example or (f"{place.uri} row {place.number}: {errors[0]}" if errors else "")
    return LabelTrial(found, trial.lost + len(errors), example)


def _lost(name: str, label: LabelTrial) -> str:
    return (
        f"label {name}: {label.lost} of the {label.lost + label.found} values in the first rows cannot be read, for "
        f"example {label.example}"
    )


def first_rows(job: ModelJob, spans: Sequence[Span], most: int) -> Iterator[Place]:
    """The first `most` rows of the spans, in order."""
    few = replace(job, unit_rows=min(job.unit_rows, most))
    rows = (
        Place(span.shard.uri, number, row)
        for span in spans
        for unit in units_of(span, few)
        for number, row in unit.rows
    )
    return islice(rows, most)


def refusal(trial: Trial, config: RunOptions) -> str | None:
    """Why a run with this trial must not begin, or None if it may."""
    for role, path in trial.encoded.items():
        if role not in config.column:
            return (
                f"input: every text of {path} in the first {trial.rows} rows is a list of messages serialized as text: "
                f"to parse JSON use --column {role}={path}[] (convert Python literals to JSON first), to score the "
                f"text as it is use --column {role}={path}"
            )
    for name, label in trial.labels.items():
        if label.lost and not label.found:
            return f"{_lost(name, label)}. --label {name}=COLUMN says where the numbers are"
    most = config.max_reject_fraction
    rejects = [reject for reject in trial.rejects if reject[2] != "skipped"]  # requested by --winner
    fraction = len(rejects) / max(trial.candidates, 1)
    if fraction <= most:
        return None
    reasons = Counter(reason for _, _, reason, _ in rejects)
    named = ", ".join(f"{count} {reason}" for reason, count in reasons.most_common())
    first = reasons.most_common(1)[0][0]
    uri, row, _, detail = next(reject for reject in rejects if reject[2] == first)
    advice = f"{_ADVICE[first]}; " if first in _ADVICE else ""
    if first == "empty_prompt" and config.ignore:
        advice = f"--ignore {' '.join(config.ignore)} must not leave out the only prompt; {advice}"
    return (
        f"input: {len(rejects)} of the {trial.candidates} candidates in the first {trial.rows} rows would be "
        f"rejected ({named}), more than --max-reject-fraction {most:g}. For example {uri} row {row}: {first}: "
        f"{detail}. {advice}--max-reject-fraction {ceil(fraction * 100) / 100:g} accepts them; armo-ray plan "
        f"--show 3 prints conversations as they would be read"
    )


def _encoded(rows: Sequence[Row], layout: Layout) -> dict[str, str]:
    """The roles of columns whose texts are all serialized lists of messages, and the paths of the columns."""
    encoded = {}
    for role, path in layout.columns.items():
        if role in _TEXTS and layout.shape is None:
            texts = [text for row in rows if isinstance(row, dict) for text in _texts(row, path)]
            if texts and all(map(_MESSAGES.match, texts)):
                encoded[role] = path
    return encoded


def _texts(row: Mapping[str, Any], path: str) -> Iterator[str]:
    """The texts at a path of a row that are not empty."""
    try:
        value = value_at(row, path)
    except Rejected:
        return
    for text in value if isinstance(value, list) else [value]:
        if text and isinstance(text, str):
            yield text


def _size(candidate: Candidate) -> int:
    return len(candidate.response) + sum(len(message["content"]) for message in candidate.prompt)


def _unread(row: Row, job: ModelJob) -> set[str]:
    if isinstance(row, BadRow):
        return set()
    try:
        content = content_of(row, job.layout)
    except Rejected:
        return set()
    return unread_keys([content.prompt, *(response for _, response in content.responses)])


def _in_process(task: Callable[[], Any]) -> Any:
    """The result of a task in a separate process, or None if the process dies or does not end in time."""
    context = get_context("fork")  # inherits what is loaded; the task uses no threads and no open files
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_send, args=(task, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if receiver.poll(_SECONDS):
            return receiver.recv()
        logger.warning("the first rows were not checked: tokenizing them takes more than %g s", _SECONDS)
    except EOFError:
        child.join()
        logger.warning(
            "the first rows were not checked: tokenizing them ended with status %s", child.exitcode
        )
    finally:
        child.kill()
        child.join()
    return None


def _send(task: Callable[[], Any], sender: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    sender.send(task())
