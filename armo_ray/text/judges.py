"""Input of judging models, which read a response inside the user's turn: a whole response, its steps, or two responses.

Sources: math-rm and pair-pm of RLHFlow/RLHF-Reward-Modeling. In each case the model's own template is rendered
up to the header of its next turn, whose last token predicts the verdict.
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from itertools import permutations

import numpy as np

from armo_ray.model.families import Family
from armo_ray.model.messages import Messages
from armo_ray.text.conversations import Candidate
from armo_ray.text.tokenized import Ids, Prompt, Tokenized

# Renders and tokenizes conversations; the ids of a text that is far too long are None.
Render = Callable[[Sequence[Messages]], list[Prompt]]
Count = Callable[[str], int]  # the number of tokens in a text

# Limit of the comparisons per response, so that the cost of a row grows with its responses and not their square.
MAX_OPPONENTS = 16


def outcome(prompt: Messages, response: str, family: Family) -> Messages:
    """The question and the response in one turn."""
    return _in_last_turn(prompt, response.replace(family.step_end, "") if family.step_end else response)


def steps(prompt: Messages, step_texts: Sequence[str]) -> Messages:
    """The question and the first step in one turn, then each further step in a turn after the verdict "+"."""
    first, *others = step_texts
    turns = _in_last_turn(prompt, first)
    for step in others:
        turns += [{"role": "assistant", "content": "+"}, {"role": "user", "content": step}]
    return turns


def steps_of(response: str, family: Family) -> tuple[list[str], list[str]]:
    """The steps of a response, and flags: no_step_marker if it has no marker, empty_steps if a step is blank.

    A newline in a marker also matches CRLF. The authors' code scores empty steps too, such as one after a marker
    that ends the response; here they are left out. White space around a step is left out, but not around a line.
    """
    pieces = re.split("\r?\n".join(map(re.escape, family.step_end.split("\n"))), response)
    step_texts = [step if family.text == "lines" else step.strip() for step in pieces if step.strip()]
    mark, whole = family.step_end.strip(), response.rstrip()
    bare = whole.removesuffix(mark)  # a response with one marker, at its end, is one marked step
    unmarked = len(pieces) == 1 and (bare == whole or mark in bare)
    flags = {"no_step_marker": unmarked, "empty_steps": len(step_texts) < len(pieces)}
    return step_texts, [flag for flag, is_set in flags.items() if is_set]


def compared(prompt: Messages, first: str, second: str, family: Family) -> Messages:
    """What a model reads to compare two responses: one turn with all, or the question and each by itself."""
    if family.bidirectional:
        return [*prompt, *({"role": "assistant", "content": text} for text in (first, second))]
    return _pair(prompt, first, second)


def _pair(prompt: Messages, first: str, second: str) -> Messages:
    """Two responses in one turn, after the conversation that they continue."""
    said = (f"\n<turn> {'assistant' if i % 2 else 'user'}\n {m['content']}" for i, m in enumerate(prompt))
    context = "\n" + "".join(said) + "\n"
    content = f"[CONTEXT] {context} [RESPONSE A] {first} [RESPONSE B] {second} \n"
    return [{"role": "user", "content": content}]


def _in_last_turn(prompt: Messages, text: str) -> Messages:
    return [*prompt[:-1], {"role": "user", "content": f"{prompt[-1]['content']} {text}"}]


def encode(
    candidates: Sequence[Candidate], family: Family, max_length: int, render: Render, count: Count
) -> Tokenized:
    """Encode the candidates that have no reject reason yet; the others are returned as rejects."""
    out = Tokenized()
    fit: list[int] = []
    for i, candidate in enumerate(candidates):
        rejection = _unfit(candidate, family)
        if rejection is None:
            fit.append(i)
        else:
            out.rejects.append((i, *rejection))
    alone = dict(zip(fit, render([candidates[i].prompt for i in fit]), strict=True))
    if family.text == "pairs":
        for row in _rows(candidates, fit):
            _Contest(out, candidates, row, alone[row[0]], max_length).play(render, count, family)
        return out
    written = [judged(candidates[i].prompt, candidates[i].response, family) for i in fit]
    places: dict[bytes, int] = {}
    for i, whole, (_, flags) in zip(fit, render([messages for messages, _ in written]), written, strict=True):
        if (rejection := _too_long(whole, max_length)) is not None:
            out.rejects.append((i, *rejection))
            continue
        assert whole.ids is not None, "_too_long passes only encoded texts"
        before, after = split(alone[i], whole.ids)
        out.group.append(places.setdefault(before.tobytes(), len(out.prompts)))
        if out.group[-1] == len(out.prompts):
            out.prompts.append(before)
        out.responses.append(after)
        special = ["special_token_text"] if whole.flagged else []
        out.add(i, alone[i], (len(before), len(after)), [*candidates[i].flags, *flags, *special])
    return out


def judged(prompt: Messages, response: str, family: Family) -> tuple[Messages, list[str]]:
    """The messages that a model reads for a response, or to judge it or its steps, and the candidate's flags."""
    if family.text == "whole":
        return [*prompt, {"role": "assistant", "content": response}], []
    if family.text != "steps":
        return outcome(prompt, response, family), []
    step_texts, flags = steps_of(response, family)
    return steps(prompt, step_texts), flags


def rejected(candidate: Candidate) -> tuple[str, str] | None:
    """Reason and detail if a candidate is rejected already, or has more than text; otherwise None."""
    if candidate.reason is not None:
        return candidate.reason, candidate.detail or ""
    if candidate.is_structured:
        return "unsupported_content", (
            "tools, tool calls or reasoning: this model judges only the text of a response; --tool-calls text writes "
            "them into the text"
        )
    return None


def _unfit(candidate: Candidate, family: Family) -> tuple[str, str] | None:
    """Reason and detail if a candidate cannot be judged, otherwise None."""
    prompt = candidate.prompt
    if (rejection := rejected(candidate)) is not None:
        return rejection
    if family.text != "pairs" and prompt[-1]["role"] != "user":
        last = f"the prompt ends with a turn of the {prompt[-1]['role']}"
        return "malformed_row", f"the response is judged inside the user's last turn, but {last}"
    if family.text == "steps" and any(m["role"] == "assistant" for m in prompt):
        return "malformed_row", "steps are judged after a single question, but the prompt has assistant turns"
    if family.text == "steps" and not steps_of(candidate.response, family)[0]:
        return "empty_response", "every step of the response is blank"
    if family.text == "pairs" and "odd_roles" in candidate.flags:
        return (
            "malformed_row",
            "roles out of order: this model infers the speaker from the order of the turns",
        )
    return None


def _too_long(whole: Prompt, max_length: int) -> tuple[str, str] | None:
    if whole.error is not None:
        return whole.error
    if whole.ids is None:
        return "too_long", f"{len(whole.text)} characters, max_length is {max_length} tokens"
    if len(whole.ids) > max_length:
        return "too_long", f"{len(whole.ids)} tokens, max_length is {max_length}"
    return None


def split(prompt: Prompt, whole: Ids) -> tuple[Ids, Ids]:
    """A conversation's ids, split where they begin to differ from those of its prompt alone."""
    shared = 0 if prompt.ids is None else _common(prompt.ids, whole)
    return whole[:shared], whole[shared:]


def _common(a: Ids, b: Ids) -> int:
    """The length of the longest common prefix, at most len(b) - 1."""
    size = min(len(a), len(b) - 1)
    differs = np.flatnonzero(a[:size] != b[:size])
    return int(differs[0]) if len(differs) else size


def _rows(candidates: Sequence[Candidate], fit: Sequence[int]) -> list[list[int]]:
    """The candidates of each row, grouped by prompt; the first candidate of a row has index 0."""
    starts = np.cumsum([not candidate.index for candidate in candidates]).tolist()
    rows: dict[str, list[int]] = {}
    for i in fit:
        rows.setdefault(f"{starts[i]} {candidates[i].prompt}", []).append(i)
    return list(rows.values())


class _Contest:
    """Comparisons between the responses to one prompt, each pair in both orders.

    Up to MAX_OPPONENTS + 1 responses are compared all with all. More are put in a ring, ordered by a hash of the
    prompt and their indices, and each is compared with its MAX_OPPONENTS nearest, half on either side. So every
    response has the same number of comparisons, and the same ones in every run.
    """

    def __init__(
        self, out: Tokenized, candidates: Sequence[Candidate], row: list[int], prompt: Prompt, max_length: int
    ) -> None:
        self.out, self.candidates, self.row = out, candidates, row
        self.prompt, self.max_length = prompt, max_length

    def play(self, render: Render, count: Count, family: Family) -> None:
        """Add the candidates that can be compared with their sequences, and reject the others.

        While a comparison is too long, the longest response is rejected.
        """
        if (rejection := _too_long(self.prompt, self.max_length)) is not None:
            self.out.rejects += [(i, *rejection) for i in self.row]
            return
        responses = {i: self.candidates[i].response for i in self.row}
        wholes: dict[tuple[int, int], Prompt] = {}
        left = list(self.row)
        why = "malformed_row", "this model compares two responses to one prompt, but there is only one"
        while len(left) > 1:
            pairs = self._pairs(left)
            new = [both for both in pairs if both not in wholes]
            turns = [compared(self.prompt.messages, responses[a], responses[b], family) for a, b in new]
            wholes |= zip(new, render(turns), strict=True)
            if (rejection := self._first_too_long([wholes[both] for both in pairs])) is None:
                self._add({both: wholes[both] for both in pairs}, {i: count(responses[i]) for i in left})
                return
            longest = max(left, key=lambda i: len(responses[i]))
            left.remove(longest)
            self.out.rejects.append((longest, *rejection))
            why = rejection[0], f"compared with the other responses: {rejection[1]}"
        self.out.rejects += [(i, *why) for i in left]

    def _pairs(self, left: list[int]) -> list[tuple[int, int]]:
        """The pairs to compare, in both orders."""
        if len(left) <= MAX_OPPONENTS + 1:
            return list(permutations(left, 2))
        ring = sorted(left, key=self._ring_key)
        return [
            both
            for step in range(1, MAX_OPPONENTS // 2 + 1)
            for a, b in zip(ring, ring[step:] + ring[:step], strict=True)
            for both in ((a, b), (b, a))
        ]

    def _ring_key(self, i: int) -> bytes:
        text = f"{self.prompt.id} {self.candidates[i].role} {self.candidates[i].index}"
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def _first_too_long(self, wholes: list[Prompt]) -> tuple[str, str] | None:
        rejections = (_too_long(whole, self.max_length) for whole in wholes)
        return next((rejection for rejection in rejections if rejection is not None), None)

    def _add(self, wholes: dict[tuple[int, int], Prompt], left: dict[int, int]) -> None:
        """Add the comparisons, and the candidates with the number of tokens of their responses."""
        out = self.out
        assert self.prompt.ids is not None, "play passes only encoded prompts"
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
