"""What can be checked of a model without running it: its head's tensors, its template, the tokens it makes."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from armo_ray.chat import Chat
from armo_ray.engine.checkpoint import ARMORM_OBJECTIVES, HEAD_PREFIXES, Checkpoint
from armo_ray.preflight.conversations import CONVERSATIONS
from armo_ray.text.tokenization import Encoder

_VERBOSITY = ARMORM_OBJECTIVES.index("helpsteer_verbosity")


class Check(NamedTuple):
    """One thing that was looked at, and what was found."""

    name: str
    passed: bool
    detail: str


def check_head(checkpoint: Checkpoint) -> list[Check]:
    """The types of the head's tensors and, of ArmoRM's 19 objectives, the pattern of its transform."""
    found = {
        name: t.dtype for name, t in sorted(checkpoint.tensors.items()) if name.startswith(HEAD_PREFIXES)
    }
    rounded = {name: dtype for name, dtype in found.items() if dtype not in ("F32", "F64")}
    told = "; ".join(f"{name} is stored as {dtype}" for name, dtype in list(rounded.items())[:3])
    kept = f"{len(found)} tensors of float32"
    checks = [Check("head types", not rounded, f"{told}: expected F32, scores are rounded" if told else kept)]
    if checkpoint.reward_names == ARMORM_OBJECTIVES:
        fault = _transform_fault(checkpoint.read("reward_transform_matrix"))
        checks.append(Check("head transform", not fault, fault or "only verbosity is taken from objectives"))
    return checks


def _transform_fault(transform: Any) -> str:
    """As ArmoRM is made: the unit matrix, but for a row of penalties at verbosity, whose own entry is 0."""
    others = np.delete(transform, _VERBOSITY, axis=0)
    unit = np.delete(np.eye(len(transform)), _VERBOSITY, axis=0)
    changed = np.flatnonzero(np.abs(others - unit).max(axis=1) > 1e-3)
    if len(changed):
        row = np.delete(np.arange(len(transform)), _VERBOSITY)[changed[0]]
        return (
            f"row {row} ({ARMORM_OBJECTIVES[row]}) of reward_transform_matrix is not that of the unit matrix: "
            f"rows are swapped, or it is transposed"
        )
    penalties = transform[_VERBOSITY]
    if abs(penalties[_VERBOSITY]) > 1e-3 or penalties.max() > 1e-3 or penalties.min() < -1 - 1e-3:
        return f"row {_VERBOSITY} (helpsteer_verbosity) of reward_transform_matrix holds no penalties from -1 to 0"
    return ""


def check_tokens(chat: Chat, encoder: Encoder) -> list[Check]:
    """Whether conversations are tokenized as their template renders them whole, with the gate where it belongs."""
    faults = []
    for i, (prompt, answers) in enumerate(CONVERSATIONS):
        ids, responses = encoder.group(prompt, answers)
        pattern = list(chat.answer_pattern)
        for answer, response in zip(answers, responses, strict=True):
            whole = [*ids.tolist(), *response.tolist()]
            starts = [k for k in range(len(whole)) if whole[k : k + len(pattern)] == pattern]
            gate = len(ids) - len(pattern)
            if not starts or starts[-1] != gate:
                faults.append(f"conversation {i}: its gate is at {starts[-1:]}, expected {gate}")
            text = chat.render(
                [*prompt, {"role": "assistant", "content": answer}], add_generation_prompt=False
            )
            if "<|" not in answer + prompt[-1]["content"] and not _begins(chat.encode(text), whole):
                faults.append(f"conversation {i}: its token ids are not those of the rendered template")
    told = f"{len(CONVERSATIONS)} conversations, gate at {list(chat.answer_pattern)}"
    return [Check("token ids and gate", not faults, "; ".join(faults[:3]) or told)]


def _begins(rendered: list[int], whole: list[int]) -> bool:
    """Some templates open the next answer, asked or not."""
    return rendered[: len(whole)] == whole


def check_released(checkpoint: Checkpoint, chat: Chat, published: Mapping[str, Any]) -> list[Check]:
    """Whether the config and the template's tokens are those of the released model."""
    faults = [
        f"{name} is {checkpoint.config.get(name)}, released with {value}"
        for name, value in published["config"].items()
        if checkpoint.config.get(name) != value
    ]
    if list(chat.answer_pattern) != published["answer_pattern"]:
        faults.append(
            f"the gate's tokens are {list(chat.answer_pattern)}, released with {published['answer_pattern']}"
        )
    return [Check("released configuration", not faults, "; ".join(faults) or f"that of {published['model']}")]
