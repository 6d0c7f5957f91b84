"""Encodes the conversation of a row again as the model read it, and marks the tokens that the head reads."""

from dataclasses import dataclass

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.explain.find import Found
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import resolve
from armo_ray.model.family_file import recorded
from armo_ray.model.positions import read_positions, without_ends
from armo_ray.model.steps import read_pattern
from armo_ray.storage.content import is_unchanged
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.models import TOKENIZER_FILES, copy_tokenizer
from armo_ray.storage.readers import BadRow
from armo_ray.storage.retries import describe_error
from armo_ray.storage.scratch import scratch_directory
from armo_ray.storage.shard_rows import read_shard
from armo_ray.storage.shards import stat_shard
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.labels import columns_read
from armo_ray.text.layouts import layout_and_reading
from armo_ray.text.tokenization import Encoder
from armo_ray.text.tokenized import Ids


@dataclass(frozen=True)
class Trace:
    """The tokens that the model read for a candidate; for a pairwise model, its first comparison as response A."""

    candidate: Candidate
    text_from: str  # the shard, or a phrase for text kept with the scores
    ids: Ids
    pieces: list[str]  # the text of each token
    num_before: int  # tokens before the response or comparison
    marks: dict[int, str]  # positions that the head reads, and what it reads there
    num_tokens: tuple[int, int]  # tokens of prompt and of response, as in the scores
    comparisons: int  # with other responses; 0 unless the model is pairwise


def trace(found: Found, model: str | None) -> Trace:
    """Read the conversation of a scored row again and encode it as the run did.

    `model` is where to read the tokenizer; None means the run's model. Raises ConfigError if the text or the
    tokenizer is gone or changed.
    """
    identity = found.run.identity
    if "chat_fingerprint" not in identity:
        raise ConfigError("the output names no tokenizer: its scores were not made by a model")
    candidates, where = _candidates(found)
    try:
        chat = _chat(found, model)
    except ConfigError as error:
        if model is not None:
            raise
        raise ConfigError(f"{error}. Give another location of the tokenizer with --model DIR") from error
    encoder = Encoder(chat, identity["max_length"], identity["truncate"], identity["special_tokens"])
    encoded = encoder.encode(candidates)
    (at,) = [k for k, candidate in enumerate(candidates) if candidate.index == found.candidate]
    if at not in encoded.source:
        cause = next(f"{reason}: {detail}" for i, reason, detail in encoded.rejects if i == at)
        raise ConfigError(f"it would now be rejected: {cause}")
    place = encoded.source.index(at)
    sequences = [k for k, (first, _) in enumerate(encoded.contests) if first == place] or [place]
    prompt, ids = encoded.prompts[encoded.group[sequences[0]]], encoded.responses[sequences[0]]
    whole, ends = without_ends(np.concatenate((prompt, ids)), len(prompt))
    return Trace(
        candidate=candidates[at],
        text_from=where,
        ids=whole,
        pieces=[_piece(chat, i) for i in whole.tolist()],
        num_before=len(prompt),
        marks=_steps_summed(ends, len(prompt)) if ends else _marks(whole, chat, len(prompt)),
        num_tokens=(encoded.num_prompt_tokens[place], encoded.num_response_tokens[place]),
        comparisons=sum(place in both for both in encoded.contests),
    )


def _candidates(found: Found) -> tuple[list[Candidate], str]:
    """The candidates of the row, and where their text is from: the scores, if they have all of it, or the shard."""
    assert found.scores is not None, "rejects are not traced"
    (row,) = found.scores.to_pylist()
    compared = recorded(found.run.identity).text == "pairs"  # which reads the row's other responses too
    whole = not compared and "structured" not in row["flags"]  # else the model read more than the kept text
    if "response" in row and "prompt" in row and found.run.keep_text and whole:
        answer = row["response"][-1]["content"]
        return [Candidate(row["candidate"], row["role"], row["prompt"], answer)], "kept with the scores"
    return _read_again(found), found.record.source


def _read_again(found: Found) -> list[Candidate]:
    uri, identity = found.record.source, found.run.identity
    layout, reading = layout_and_reading(identity)
    try:
        shard = stat_shard(uri)
        if shard is None or not is_unchanged(shard, [found.record], columns_read(identity)):
            raise ConfigError(f"{uri} is gone or has changed since it was scored: put the original back")
        batches = read_shard(shard, layout.sources, layout.candidate_columns, {found.row})
        row = next((row for batch in batches for number, row in batch if number == found.row), None)
    except OSError as error:
        raise ConfigError(f"{uri}: cannot be read: {describe_error(error)}") from error
    if row is None or isinstance(row, BadRow):
        raise ConfigError(f"{uri}: row {found.row} can no longer be read")
    return candidates_of(row, layout, reading)


def _chat(found: Found, model: str | None) -> Chat:
    """The tokenizer and chat template that the run used. Does not fetch the model's weights."""
    identity, config, revision = found.run.identity, found.run.config or {}, None
    family = recorded(identity)
    if model is None:
        model, revision = str(config["model"]), config["revision"] or found.about["model_revision"]
    if is_remote(model):
        with scratch_directory() as folder:
            copy_tokenizer(model, folder)
            chat = Chat.load(folder, family)
    else:
        chat = Chat.load(resolve(model, revision, TOKENIZER_FILES)[0], family)
    if chat.fingerprint != identity["chat_fingerprint"]:
        raise ConfigError(f"{model}: its tokenizer or chat template is not the one that the run used")
    return chat


def _piece(chat: Chat, token: int) -> str:
    """The text of a token, quoted. Bytes that are not a whole character are shown as in the vocabulary."""
    text: str = chat.tokenizer.decode([token], skip_special_tokens=False)
    if "\ufffd" in text or not text:
        text = str(chat.tokenizer.id_to_token(token))
    return repr(text)


def _steps_summed(ends: list[int], start: int) -> dict[int, str]:
    places = [start + end - 1 for end in ends]
    marks = dict.fromkeys(places, "summed up to here, by both models: step")
    for k, at in enumerate(places, 1):  # two short steps may end at one token
        marks[at] += f" {k}"
    return marks


def _marks(ids: Ids, chat: Chat, start: int) -> dict[int, str]:
    family = chat.family
    positions = read_positions(ids, family, np.array(read_pattern(chat), np.int32), start)
    if family.by_step:
        return {at: f"read: step {k}" for k, at in enumerate(positions, 1)}
    if family.reads == "response":
        return dict.fromkeys(positions, "read: log-probability of the next token, by both models")
    if family.reads == "gate":
        gate, last = positions
        return {
            gate: "read: gate, at the end of the last user turn",
            last: "read: rewards, at the last token",
        }
    judged = ("outcome", "steps", "pairs")
    what = "rewards and gate" if family.gated else "verdict" if family.text in judged else "rewards"
    places = {
        "before_zero": "before the first token with id 0",
        "first": "at the first token",
        "sides": "at the marks of the texts",
    }
    where = places.get(family.reads, "at the last token")
    return dict.fromkeys(positions, f"read: {what}, {where}")
