"""What models read that judge an answer inside the user's turn: a whole answer, its steps, or two answers.

Sources: math-rm and pair-pm of RLHFlow/RLHF-Reward-Modeling. In each case the model's own template is rendered
up to the header of its next turn, whose last token predicts the verdict.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np

from armo_ray.model.chat import Messages
from armo_ray.model.families import Family
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenized import Ids, Prompt, Tokenized

Render = Callable[
    [Sequence[Messages]], list[Prompt]
]  # conversations as text and ids, None where far too long
Count = Callable[[str], int]  # the tokens of a text

# Most others that an answer is compared with: what one row costs grows with its answers, not with their square.
MAX_OPPONENTS = 16


def outcome(prompt: Messages, answer: str, family: Family) -> Messages:
    """The question and its answer in one turn."""
    return _said(prompt, answer.replace(family.step_end, "") if family.step_end else answer)


def steps(prompt: Messages, parts: Sequence[str]) -> Messages:
    """The question and the first step in one turn, every other step in one of its own, each but the last praised."""
    first, *others = parts
    turns = _said(prompt, first)
    for step in others:
        turns += [{"role": "assistant", "content": "+"}, {"role": "user", "content": step}]
    return turns


def steps_of(answer: str, family: Family) -> tuple[list[str], list[str]]:
    """The steps of an answer, and flags: no_step_marker where nothing cuts it, empty_steps where some say nothing.

    A marker cuts before an end of line of either kind. The authors' code scores empty steps as well, such as one
    after a marker that ends the answer; here they are left out.
    """
    found = re.split("\r?\n".join(map(re.escape, family.step_end.split("\n"))), answer)
    told = [step.strip() for step in found if step.strip()]
    mark, whole = family.step_end.strip(), answer.rstrip()
    bare = whole.removesuffix(mark)  # what ends in a marker is one step with it, unless it holds more of them
    unmarked = len(found) == 1 and (bare == whole or mark in bare)
    flags = {"no_step_marker": unmarked, "empty_steps": len(told) < len(found)}
    return told, [flag for flag, holds in flags.items() if holds]


def pair(prompt: Messages, first: str, second: str) -> Messages:
    """Two answers in one turn, after what was said before."""
    said = (f"\n<turn> {'assistant' if i % 2 else 'user'}\n {m['content']}" for i, m in enumerate(prompt))
    context = "\n" + "".join(said) + "\n"
    content = f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
    return [{"role": "user", "content": content}]


def _said(prompt: Messages, answer: str) -> Messages:
    return [*prompt[:-1], {"role": "user", "content": f"{prompt[-1]['content']} {answer}"}]


def encode(
    candidates: Sequence[Candidate], family: Family, max_length: int, render: Render, count: Count
) -> Tokenized:
    """Encode the candidates that carry no reason yet; the others come back as rejects."""
    out = Tokenized()
    fit: list[int] = []
    for i, candidate in enumerate(candidates):
        verdict = _unfit(candidate, family)
        if verdict is None:
            fit.append(i)
        else:
            out.rejects.append((i, *verdict))
    alone = dict(zip(fit, render([candidates[i].prompt for i in fit]), strict=True))
    if family.text == "pairs":
        for row in _rows(candidates, fit):
            _Contest(out, candidates, row, alone[row[0]], max_length).play(render, count)
        return out
    written = [judged(candidates[i].prompt, candidates[i].answer, family) for i in fit]
    places: dict[bytes, int] = {}
    for i, whole, (_, flags) in zip(fit, render([messages for messages, _ in written]), written, strict=True):
        if (verdict := _too_long(whole, max_length)) is not None:
            out.rejects.append((i, *verdict))
            continue
        before, after = _split(alone[i], whole)
        out.group.append(places.setdefault(before.tobytes(), len(out.prompts)))
        if out.group[-1] == len(out.prompts):
            out.prompts.append(before)
        out.responses.append(after)
        special = ["special_token_text"] if whole.flagged else []
        out.add(i, alone[i], (len(before), len(after)), [*candidates[i].flags, *flags, *special])
    return out


def judged(prompt: Messages, answer: str, family: Family) -> tuple[Messages, list[str]]:
    """What a model that judges an answer, or its steps, reads of it, and flags."""
    if family.text != "steps":
        return outcome(prompt, answer, family), []
    parts, flags = steps_of(answer, family)
    return steps(prompt, parts), flags


def _unfit(candidate: Candidate, family: Family) -> tuple[str, str] | None:
    """Why a candidate is not judged, as reason and detail."""
    prompt = candidate.prompt
    if candidate.reason is not None:
        return candidate.reason, candidate.detail or ""
    if candidate.is_structured:
        return "unsupported_content", (
            "tools, tool calls or reasoning: an answer is judged by its text; --tool-calls text writes them into it"
        )
    if family.text != "pairs" and prompt[-1]["role"] != "user":
        told = f"the prompt ends with the {prompt[-1]['role']}'s"
        return "malformed_row", f"the answer is judged in the user's last turn, but {told}"
    if family.text == "steps" and any(m["role"] == "assistant" for m in prompt):
        told = "the prompt has turns of an assistant"
        return "malformed_row", f"steps of an answer to one question are judged, but {told}"
    if family.text == "steps" and not steps_of(candidate.answer, family)[0]:
        return "empty_response", "the answer has no step that says anything"
    if family.text == "pairs" and "odd_roles" in candidate.flags:
        return "malformed_row", "roles out of order: who speaks is told by the order of the turns"
    return None


def _too_long(whole: Prompt, max_length: int) -> tuple[str, str] | None:
    if whole.error is not None:
        return whole.error
    if whole.ids is None:
        return "too_long", f"{len(whole.text)} characters, max_length is {max_length} tokens"
    if len(whole.ids) > max_length:
        return "too_long", f"{len(whole.ids)} tokens, max_length is {max_length}"
    return None


def _split(prompt: Prompt, whole: Prompt) -> tuple[Ids, Ids]:
    """A conversation's ids where they cease to be those of its prompt alone."""
    assert whole.ids is not None, "_too_long lets encoded texts through only"
    shared = 0 if prompt.ids is None else _common(prompt.ids, whole.ids)
    return whole.ids[:shared], whole.ids[shared:]


def _common(a: Ids, b: Ids) -> int:
    """The length of the common beginning, less than that of `b`."""
    size = min(len(a), len(b) - 1)
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if len(differs) else size


def _rows(candidates: Sequence[Candidate], fit: Sequence[int]) -> list[list[int]]:
    """The candidates of each row that have one prompt; a row's first has index 0."""
    starts = np.cumsum([not candidate.index for candidate in candidates]).tolist()
    rows: dict[str, list[int]] = {}
    for i in fit:
        rows.setdefault(f"{starts[i]} {candidates[i].prompt}", []).append(i)
    return list(rows.values())


class _Contest:
    """Comparisons between the answers to one prompt, each pair in both orders.

    Up to MAX_OPPONENTS + 1 answers play a round-robin. More stand in a ring, in an order that hashes of the prompt
    and their indices give, and each meets its MAX_OPPONENTS nearest, half on either side: as many for every
    answer, and the same in every run.
    """

    def __init__(
        self, out: Tokenized, candidates: Sequence[Candidate], row: list[int], prompt: Prompt, max_length: int
    ) -> None:
        self.out, self.candidates, self.row = out, candidates, row
        self.prompt, self.max_length = prompt, max_length

    def play(self, render: Render, count: Count) -> None:
        """Add the candidates that can be compared, and the sequences that do so, or the reason why not."""
        if (verdict := _too_long(self.prompt, self.max_length)) is not None:
            self.out.rejects += [(i, *verdict) for i in self.row]
            return
        answers = {i: self.candidates[i].answer for i in self.row}
        wholes: dict[tuple[int, int], Prompt] = {}
        left, why = list(self.row), ("malformed_row", "two answers to one prompt are compared, this has one")
        while len(left) > 1:
            pairs = self._pairs(left)
            new = [both for both in pairs if both not in wholes]
            told = [pair(self.prompt.messages, answers[a], answers[b]) for a, b in new]
            wholes |= zip(new, render(told), strict=True)
            if (verdict := self._worst([wholes[both] for both in pairs])) is None:
                self._add({both: wholes[both] for both in pairs}, {i: count(answers[i]) for i in left})
                return
            longest = max(left, key=lambda i: len(answers[i]))
            left.remove(longest)
            self.out.rejects.append((longest, *verdict))
            why = verdict[0], f"with the other answers: {verdict[1]}"
        self.out.rejects += [(i, *why) for i in left]

    def _pairs(self, left: list[int]) -> list[tuple[int, int]]:
        """Who meets whom, in both orders."""
        if len(left) <= MAX_OPPONENTS + 1:
            return list(permutations(left, 2))
        ring = sorted(left, key=self._drawn)
        return [
            both
            for step in range(1, MAX_OPPONENTS // 2 + 1)
            for a, b in zip(ring, ring[step:] + ring[:step], strict=True)
            for both in ((a, b), (b, a))
        ]

    def _drawn(self, i: int) -> bytes:
        told = f"{self.prompt.id} {self.candidates[i].role} {self.candidates[i].index}"
        return hashlib.blake2b(told.encode(), digest_size=16).digest()

    def _worst(self, wholes: list[Prompt]) -> tuple[str, str] | None:
        verdicts = (_too_long(whole, self.max_length) for whole in wholes)
        return next((verdict for verdict in verdicts if verdict is not None), None)

    def _add(self, wholes: dict[tuple[int, int], Prompt], left: dict[int, int]) -> None:
        """Add what was compared, and the tokens of each answer."""
        out = self.out
        assert self.prompt.ids is not None, "play lets encoded prompts through only"
        ids = [whole.ids for whole in wholes.values() if whole.ids is not None]
        shared = min(_common(ids[0], other) for other in ids[1:])
        place = {i: len(out.source) + k for k, i in enumerate(left)}
        out.prompts.append(ids[0][:shared])
        out.group += [len(out.prompts) - 1] * len(wholes)
        out.responses += [own[shared:] for own in ids]
        out.contests += [(place[a], place[b]) for a, b in wholes]
        flagged = {a for (a, _), whole in wholes.items() if whole.flagged}
        for i, num_tokens in left.items():
            special = ["special_token_text"] if i in flagged else []
            flags = [*self.candidates[i].flags, *special]
            out.add(i, self.prompt, (len(self.prompt.ids), num_tokens), flags)
