"""The conversation of a row once more, as the model read it: its tokens, and those that its head reads."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.explain.find import Found
from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import resolve
from armo_ray.model.families import FAMILIES
from armo_ray.model.positions import read_positions
from armo_ray.storage.content import is_unchanged
from armo_ray.storage.filesystem import is_remote
from armo_ray.storage.models import TOKENIZER_FILES, copy_tokenizer
from armo_ray.storage.readers import BadRow
from armo_ray.storage.retries import describe_error
from armo_ray.storage.shard_rows import read_shard
from armo_ray.storage.shards import stat_shard
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.layouts import columns_read, layout_and_reading
from armo_ray.text.tokenization import Encoder
from armo_ray.text.tokenized import Ids


@dataclass(frozen=True)
class Trace:
    """What the model read for a candidate; of answers that are compared, the first comparison with this one first."""

    candidate: Candidate
    text_from: str
    ids: Ids
    pieces: list[str]  # the text of each token
    num_before: int  # tokens before the answer
    marks: dict[int, str]  # positions that are read, and what for
    num_tokens: tuple[int, int]  # of prompt and response, as a run counts them
    comparisons: int


def trace(found: Found, model: str | None) -> Trace:
    """Read the conversation of a scored row again and encode it as its run did.

    Raises ConfigError where its text or the model's tokenizer is not what it was, or not there.
    """
    identity = found.run.identity
    if "chat_fingerprint" not in identity:
        raise ConfigError("the output says nothing of a tokenizer: no model made its scores")
    candidates, where = _candidates(found)
    try:
        chat = _chat(found, model)
    except ConfigError as error:
        if model is not None:
            raise
        raise ConfigError(f"{error}. With --model DIR a tokenizer is read from elsewhere") from error
    encoder = Encoder(chat, identity["max_length"], identity["truncate"], identity["special_tokens"])
    done = encoder.encode(candidates)
    (at,) = [k for k, candidate in enumerate(candidates) if candidate.index == found.candidate]
    if at not in done.source:
        why = next(f"{reason}: {detail}" for i, reason, detail in done.rejects if i == at)
        raise ConfigError(f"it would be rejected now, as {why}")
    place = done.source.index(at)
    those = [k for k, (first, _) in enumerate(done.contests) if first == place] or [place]
    prompt, ids = done.prompts[done.group[those[0]]], done.responses[those[0]]
    whole = np.concatenate((prompt, ids))
    return Trace(
        candidate=candidates[at],
        text_from=where,
        ids=whole,
        pieces=[_piece(chat, i) for i in whole.tolist()],
        num_before=len(prompt),
        marks=_marks(whole, chat),
        num_tokens=(done.num_prompt_tokens[place], done.num_response_tokens[place]),
        comparisons=sum(place in both for both in done.contests),
    )


def _candidates(found: Found) -> tuple[list[Candidate], str]:
    """The candidates of the row, and where their text is from: kept with the scores, or the shard as it was."""
    assert found.scores is not None, "rejects are not traced"
    (row,) = found.scores.to_pylist()
    compared = found.run.identity["family"] == "pairwise"  # which takes the row's other answers
    whole = not compared and "structured" not in row["flags"]  # else the text kept is not all that was read
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
            raise ConfigError(f"{uri} is gone, or changed since it was scored: put it back as it was")
        batches = read_shard(shard, layout.sources, layout.candidate_columns, {found.row})
        row = next((row for batch in batches for number, row in batch if number == found.row), None)
    except OSError as error:
        raise ConfigError(f"{uri}: cannot be read: {describe_error(error)}") from error
    if row is None or isinstance(row, BadRow):
        raise ConfigError(f"{uri}: its row {found.row} cannot be read any more")
    return candidates_of(row, layout, reading)


def _chat(found: Found, model: str | None) -> Chat:
    """The tokenizer and template that the run used; none of the model's weights is fetched."""
    identity, config, revision = found.run.identity, found.run.config or {}, None
    family = FAMILIES[identity["family"]]
    if model is None:
        model, revision = str(config["model"]), config["revision"] or found.about["model_revision"]
    if is_remote(model):
        with tempfile.TemporaryDirectory() as folder:
            copy_tokenizer(model, Path(folder))
            chat = Chat.load(Path(folder), family)
    else:
        chat = Chat.load(resolve(model, revision, TOKENIZER_FILES)[0], family)
    if chat.fingerprint != identity["chat_fingerprint"]:
        raise ConfigError(f"{model}: its tokenizer or chat template is not the one that the run used")
    return chat


def _piece(chat: Chat, token: int) -> str:
    """The text of a token, quoted; of one that is part of a character, as the vocabulary has it."""
    text: str = chat.tokenizer.decode([token], skip_special_tokens=False)
    if "\ufffd" in text or not text:
        text = str(chat.tokenizer.id_to_token(token))
    return repr(text)


def _marks(ids: Ids, chat: Chat) -> dict[int, str]:
    family = chat.family
    positions = read_positions(ids, family, np.array(chat.answer_pattern, np.int32))
    if family.reads == "headers":
        return {at: f"read: step {k}" for k, at in enumerate(positions, 1)}
    if family.reads == "gate":
        gate, last = positions
        return {
            gate: "read: gate, at the end of the last user turn",
            last: "read: rewards, at the last token",
        }
    what = "rewards and gate" if family.gated else "verdict" if family.text != "answer" else "rewards"
    where = "before the first token of id 0" if family.reads == "before_zero" else "at the last token"
    return dict.fromkeys(positions, f"read: {what}, {where}")
