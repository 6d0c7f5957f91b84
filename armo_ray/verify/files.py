"""Checks of a model without running it: the tensors of its head, its chat template and its token ids."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from armo_ray.model.chat import Chat
from armo_ray.model.checkpoint import Checkpoint
from armo_ray.model.positions import without_ends
from armo_ray.model.recognize import ARMORM_REWARDS, HEAD_PREFIXES
from armo_ray.model.steps import with_system
from armo_ray.text import judges, marked, prose
from armo_ray.verify.conversations import CONVERSATIONS, FORGED, Sequences

_LLAMA3_END = "<|eot_id|>"
_LLAMA3_TURN = f"{_LLAMA3_END}<|start_header_id|>assistant<|end_header_id|>\n\n"
_VERBOSITY = ARMORM_REWARDS.index("helpsteer_verbosity")


class Check(NamedTuple):
    """The result of one check."""

    name: str
    passed: bool
    detail: str


def check_head(checkpoint: Checkpoint) -> list[Check]:
    """Check that the tensors of a gated head are float32 and, for ArmoRM, the pattern of its reward transform."""
    if checkpoint.family.reads != "gate":
        return []
    dtypes = {
        name: t.dtype
        for name, t in sorted(checkpoint.tensors.items())
        if name.startswith(HEAD_PREFIXES) and not t.dtype.startswith("I")
    }
    rounded = {name: dtype for name, dtype in dtypes.items() if dtype not in ("F32", "F64")}
    faults = "; ".join(f"{name} is stored as {dtype}" for name, dtype in list(rounded.items())[:3])
    passed = f"{len(dtypes)} tensors of float32"
    detail = f"{faults}: expected F32, scores are rounded" if faults else passed
    checks = [Check("head types", not rounded, detail)]
    if checkpoint.family.name == "armorm" and checkpoint.reward_names == ARMORM_REWARDS:
        fault = _transform_fault(checkpoint.read("reward_transform_matrix"))
        checks.append(
            Check("head transform", not fault, fault or "only verbosity is subtracted from objectives")
        )
    return checks


def _transform_fault(transform: Any) -> str:
    """How a transform differs from ArmoRM's, the identity matrix except for a row of penalties; "" if it does not.

    The row of verbosity holds the penalties, and 0 on the diagonal.
    """
    others = np.delete(transform, _VERBOSITY, axis=0)
    unit = np.delete(np.eye(len(transform)), _VERBOSITY, axis=0)
    changed = np.flatnonzero(np.abs(others - unit).max(axis=1) > 1e-3)
    if len(changed):
        row = np.delete(np.arange(len(transform)), _VERBOSITY)[changed[0]]
        return (
            f"row {row} ({ARMORM_REWARDS[row]}) of reward_transform_matrix is not that of the identity matrix: "
            f"rows are swapped, or the matrix is transposed"
        )
    penalties = transform[_VERBOSITY]
    if abs(penalties[_VERBOSITY]) > 1e-3 or penalties.max() > 1e-3 or penalties.min() < -1 - 1e-3:
        return f"row {_VERBOSITY} (helpsteer_verbosity) of reward_transform_matrix does not hold penalties from -1 to 0"
    return ""


def check_tokens(chat: Chat, sequences: Sequences) -> list[Check]:
    """Check that token ids are those of the conversation rendered as a whole, and that the gate is in its place."""
    faults = [fault] if (fault := _turn_fault(chat)) else []
    rejected = [f"conversation {i}, response {j}: {why}" for i, j, why in sequences.rejects]
    if chat.family.text == "response":  # some templates have no system role
        faults += [why for why in rejected if "malformed_row" not in why and "too_long" not in why]
    for place, (prompt, (response,)) in zip(sequences.places, sequences.ids, strict=True):
        whole = [*prompt.tolist(), *without_ends(response)[0].tolist()]
        if chat.family.reads == "gate" and (fault := _gate_fault(chat, len(prompt), whole)):
            faults.append(f"conversation {place[0]}: {fault}")
        if place[0] not in FORGED and whole != _rendered(chat, place)[: len(whole)]:
            faults.append(f"conversation {place[0]}: its token ids are not those of the rendered template")
    gate = f", gate at {list(chat.response_pattern)}" if chat.family.reads == "gate" else ""
    passed = f"{len(sequences.ids)} sequences as the template renders them{gate}"
    passed += f"; {len(rejected)} responses rejected, the first: {rejected[0]}" if rejected else ""
    return [Check("token ids and gate", bool(sequences.ids) and not faults, "; ".join(faults[:3]) or passed)]


def _turn_fault(chat: Chat) -> str:
    """How the turns differ from those of Llama 3, on which ArmoRM was trained; "" if they do not."""
    if chat.family.name != "armorm" or chat.tokenizer.token_to_id(_LLAMA3_END) is None:
        return ""
    if list(chat.response_pattern) == chat.encode(_LLAMA3_TURN) and chat.response_end == _LLAMA3_END:
        return ""
    turn = chat.tokenizer.decode(list(chat.response_pattern), skip_special_tokens=False)
    return (
        f"turns end in {turn!r} and {chat.response_end!r}, "
        f"but those of Llama 3 in {_LLAMA3_TURN!r} and {_LLAMA3_END!r}"
    )


def _gate_fault(chat: Chat, prompt_length: int, whole: list[int]) -> str:
    """How the place of the gate differs from the expected one, the end of the response header; "" if it does not."""
    pattern = list(chat.response_pattern)
    starts = [k for k in range(len(whole)) if whole[k : k + len(pattern)] == pattern]
    gate = prompt_length + len(chat.encode(chat.tail.rstrip("\n"))) - len(pattern)
    return "" if starts[-1:] == [gate] else f"its gate is at {starts[-1:]}, expected {gate}"


def _rendered(chat: Chat, place: tuple[int, ...]) -> list[int]:
    """The token ids of a conversation as the model's template renders it. Some templates also open the next turn."""
    prompt, responses = CONVERSATIONS[place[0]]
    response = responses[place[1]]
    if chat.family.text == "response":
        messages = [*with_system(prompt, chat.family), {"role": "assistant", "content": response}]
        return chat.encode(chat.render(messages, add_generation_prompt=False))
    if chat.family.text == "prose":
        steps, _ = judges.steps_of(response, chat.family)
        return [*chat.prefix, *chat.encode(prose.text_of(prompt[0]["content"], steps, chat.family.mark))]
    if chat.family.text == "lines":
        steps, _ = judges.steps_of(response, chat.family)
        bos = chat.special_tokens["bos_token"] + prompt[0]["content"] + "\n"
        return [*chat.encode(bos), *(i for step in steps for i in (*chat.encode(step), *chat.encode("\n")))]
    if chat.family.text == "marked":
        messages = marked.conversation(prompt, response, chat.family)
        return chat.encode(chat.render(messages, add_generation_prompt=False))
    if chat.family.text == "pairs":
        messages = judges.compared(prompt, response, responses[place[2]], chat.family)
    else:
        messages, _ = judges.judged(prompt, response, chat.family)
    return [*chat.prefix, *chat.encode(chat.render_prompt(messages))]


def check_released(checkpoint: Checkpoint, chat: Chat, published: Mapping[str, Any]) -> list[Check]:
    """Check that the config and the gate's tokens are those of the released model."""
    faults = [
        f"{name} is {checkpoint.config.get(name)}, but {value} in the released model"
        for name, value in published["config"].items()
        if checkpoint.config.get(name) != value
    ]
    if list(chat.response_pattern) != published["response_pattern"]:
        faults.append(
            f"the gate's tokens are {list(chat.response_pattern)}, "
            f"but {published['response_pattern']} in the released model"
        )
    return [
        Check("released configuration", not faults, "; ".join(faults) or f"the same as {published['model']}")
    ]
