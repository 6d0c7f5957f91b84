"""The first conversations of an input as the model will read them."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from armo_ray.model.positions import without_ends
from armo_ray.score.job import ModelJob
from armo_ray.score.stages.read import load_encoder, row_candidates
from armo_ray.score.trial import ROWS, Place, first_rows
from armo_ray.storage.readers import BadRow
from armo_ray.storage.units import Span
from armo_ray.text.labels import labels_of
from armo_ray.text.tokenized import Tokenized

Json = dict[str, Any]


def preview(job: ModelJob, spans: Sequence[Span], most: int) -> Json:
    """The columns read and not read, and up to `most` candidates with the text of their tokens or the reject reason."""
    shown: list[Json] = []
    for place in first_rows(job, spans, ROWS):
        shown += _conversations(job, place)
        if len(shown) >= most:
            break
    return {
        "read": dict(job.layout.columns),
        "kept": dict(job.carried),
        "labels": {name: label.column for name, label in job.labels.items()},
        "unread": list(job.unread),
        "conversations": shown[:most],
    }


def lines(shown: Json) -> Iterator[str]:
    """A preview, line by line."""
    kept = f"; kept {', '.join(shown['kept'].values())}" if shown["kept"] else ""
    yield f"read        {', '.join(f'{role}={column}' for role, column in shown['read'].items())}{kept}"
    if shown["labels"]:
        yield f"labels      {', '.join(f'{name}={column}' for name, column in shown['labels'].items())}"
    yield f"not read    {', '.join(shown['unread']) or 'nothing'}"
    for one in shown["conversations"]:
        answer = "" if one["candidate"] is None else f" candidate {one['candidate']} ({one['role']})"
        flags = f", {', '.join(one['flags'])}" if one["flags"] else ""
        given = ", ".join(f"{name} {value}" for name, value in one["labels"].items() if value is not None)
        flags += f"; labels: {given or 'none'}" if one["labels"] else ""
        fate = f"rejected, {one['reason']}" if one["reason"] else f"{one['tokens']:,} tokens{flags}"
        yield f"\n--- {one['source']} row {one['source_row']}{answer}: {fate}"
        yield one["text"]


def _conversations(job: ModelJob, place: Place) -> Iterator[Json]:
    candidates, encoder = row_candidates(place.row, job), load_encoder(job)
    done = encoder.encode(candidates)
    rejects = {i: (reason, detail) for i, reason, detail in done.rejects}
    given = labels_of({} if isinstance(place.row, BadRow) else place.row, job.labels, candidates)
    for i, candidate in enumerate(candidates):
        about = {"source": place.uri, "source_row": place.number, "candidate": candidate.index}
        about |= {"role": candidate.role, "flags": [], "labels": {}, "tokens": None, "reason": None}
        if i in rejects:
            reason, detail = rejects[i]
            yield about | {"reason": reason, "text": detail}
        else:
            at = done.source.index(i)
            ids = _sequence(done, at)
            text = encoder.chat.tokenizer.decode(ids, skip_special_tokens=False)
            numbers, lost = given[i]
            flags = [*done.flags[at], *lost]
            yield about | {"flags": flags, "labels": numbers, "tokens": len(ids), "text": text}


def _sequence(done: Tokenized, at: int) -> list[int]:
    """The token ids that the model reads for a candidate; for one that is compared, those of its first comparison."""
    first = next((k for k, (a, _) in enumerate(done.contests) if a == at), at)
    ids, _ = without_ends(np.concatenate((done.prompts[done.group[first]], done.responses[first])))
    return list(ids.tolist())
