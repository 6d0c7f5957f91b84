"""Input of Math-Shepherd's model: a question and its steps as one text, with a word after each step.

Source: the model card of math-shepherd-mistral-7b-prm. The tokenizer encodes the text as a whole, as there, and the
word becomes one token. Other words of a text that begin with it give this token too, such as Russian ones with "ки":
there its letters are encoded one by one, so that no step ends.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from armo_ray.model.steps import read_pattern, spelled
from armo_ray.text import judges
from armo_ray.text.conversations import Candidate
from armo_ray.text.marked import Tools, rejected_or_steps, single_question
from armo_ray.text.tokenized import Ids, Prompt, Tokenized


def encode(candidates: Sequence[Candidate], tools: Tools) -> Tokenized:
    """Encode the candidates that have no reject reason yet; the others are returned as rejects."""
    out, writer = Tokenized(), _Writer(tools)
    places: dict[bytes, int] = {}
    for i, candidate in enumerate(candidates):
        response = rejected_or_steps(candidate, tools)
        if (rejection := response.rejection or single_question(candidate, tools)) is not None:
            out.rejects.append((i, *rejection))
            continue
        prompt = writer.prompt(candidate)
        ids, forged = writer.ids(candidate.prompt[0]["content"], response.steps)
        if ids is None or len(ids) > tools.max_length:
            out.rejects.append((i, *_why(ids, tools.max_length)))
            continue
        before, after = judges.split(prompt, ids)
        place = places.setdefault(before.tobytes(), len(out.prompts))
        if place == len(out.prompts):
            out.prompts.append(before)
        out.group.append(place)
        out.responses.append(after)
        flagged = forged or prompt.flagged or tools.renderer.has_special(response.steps)
        flags = [*response.flags, *(["special_token_text"] if flagged else [])]
        out.add(i, prompt, (len(before), len(after)), flags)
    return out


def text_of(question: str, steps: Sequence[str], mark: str) -> str:
    """The whole text that the model reads."""
    return f"{question} " + "\n".join(f"{step} {mark}" for step in steps)


class _Writer:
    def __init__(self, tools: Tools) -> None:
        self.chat, self.renderer = tools.renderer.chat, tools.renderer
        (self.mark,), self.letters = read_pattern(self.chat), spelled(self.chat)
        self._prompts: dict[str, Prompt] = {}

    def prompt(self, candidate: Candidate) -> Prompt:
        question: str = candidate.prompt[0]["content"]
        if question not in self._prompts:
            prompt = Prompt(candidate.prompt, text=question)
            prompt.ids, forged = self._encoded(question, set())
            prompt.flagged = forged or self.renderer.has_special([question])
            prompt.id = hashlib.blake2b(prompt.ids.tobytes(), digest_size=16).hexdigest()
            self._prompts[question] = prompt
        return self._prompts[question]

    def ids(self, question: str, steps: Sequence[str]) -> tuple[Ids | None, bool]:
        """The ids of the whole text, None if a mark is not a token in it; and whether other text spells a mark."""
        mark = self.chat.family.mark
        text, ends, at = text_of(question, steps, mark), set(), len(question)
        for step in steps:  # each after one character, a space or a new line
            at += len(f" {step} {mark}")
            ends.add(at - 1)
        ids, forged = self._encoded(text, ends)
        return (ids if np.count_nonzero(ids == self.mark) >= len(steps) else None), forged

    def _encoded(self, text: str, ends: set[int]) -> tuple[Ids, bool]:
        """The ids of a text in which marks end at these characters; letters in place of the marks elsewhere."""
        encoding = self.renderer.for_text.encode(text, add_special_tokens=False)
        ids, forged = list(self.chat.prefix), False
        for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
            if token != self.mark or not ends.isdisjoint(range(start, stop)):
                ids.append(token)
            else:
                forged = True
                ids += self.letters if self.renderer.plain else [token]
        return np.array(ids, np.int32), forged


def _why(ids: Ids | None, max_length: int) -> tuple[str, str]:
    if ids is None:
        return "malformed_row", "a mark after a step is not a token of its own in this text"
    return "too_long", f"{len(ids)} tokens, max_length is {max_length}"
