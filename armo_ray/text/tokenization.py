"""Candidates become token ids: special-token safety, the length policy, one encoding per prompt.

Reaches the speed of the tokenizer itself, about 500k tokens/s on a core with the Llama-3 vocabulary; a prompt
is rendered and encoded once for all its candidates.
"""

import hashlib
import re
from collections.abc import Sequence

import jinja2
import numpy as np
from tokenizers import Tokenizer

from armo_ray.chat import Chat, Messages
from armo_ray.text import judges
from armo_ray.text.conversations import Candidate, candidates_of
from armo_ray.text.layouts import Layout
from armo_ray.text.tokenized import Ids, Prompt, Tokenized

# An encoding holds about 100 bytes per token besides its ids: batches bound that.
_BATCH_CHARS = 1 << 20
# Noncharacters, never meant for text, then private use: the first that a text lacks can mark a place in it.
_MARKS = (*range(0xFDD0, 0xFDF0), *range(0xF0000, 0xFFFFE))
_GROUP = Layout("rollouts", {"prompt": "prompt", "responses": "responses"})


class Encoder:
    """Turns candidates into token ids as one model reads them.

    Args:
        chat: the model's tokenizer and template.
        max_length: most tokens of a conversation; longer ones are rejected as too_long.
        truncate: "none", or which part of a too long prompt to drop: its "left" (after BOS) or its "middle".
        special_tokens: "plain" encodes special-token texts in messages as ordinary text; "reference" as the
            released code does, as control tokens.
    """

    def __init__(
        self, chat: Chat, max_length: int, truncate: str = "none", special_tokens: str = "plain"
    ) -> None:
        self.chat = chat
        self.max_length = max_length
        self.truncate = truncate
        self.plain = special_tokens == "plain"
        self._text_only = Tokenizer.from_str(chat.tokenizer.to_str())
        self._text_only.encode_special_tokens = True
        special = [t.content for t in chat.tokenizer.get_added_tokens_decoder().values() if t.special]
        self._special = re.compile(
            "|".join(re.escape(t) for t in sorted(special, key=len, reverse=True)) or r"(?!)"
        )
        self._openings = sorted({t[:2] for t in special})  # two searches instead of one for each of 257
        self._max_chars = max_length * max(map(len, chat.tokenizer.get_vocab()), default=1)

    def group(self, prompt: Messages, answers: Sequence[str]) -> tuple[Ids, list[Ids]]:
        """Token ids of one prompt and its answers, as RewardModel.score takes them.

        Raises ValueError with the reason where a candidate cannot be scored, or only in comparison with others.
        """
        if self.chat.family.text == "pairs":
            raise ValueError(
                f"the family {self.chat.family.name} compares answers: use encode, or score_dataset"
            )
        done = self.encode(candidates_of({"prompt": prompt, "responses": list(answers)}, _GROUP))
        if done.rejects:
            index, reason, detail = done.rejects[0]
            raise ValueError(f"answer {index}: {reason}: {detail}")
        first = min(done.prompts, key=len)  # one cut that leaves room for every answer
        if self.chat.family.text == "answer":
            return first, done.responses
        return first, [np.concatenate((p, *ids))[len(first) :] for p, ids in done.sequences()]

    def encode(self, candidates: Sequence[Candidate]) -> Tokenized:
        """Encode the candidates that carry no reason yet; the others come back as rejects."""
        if self.chat.family.text != "answer":
            return judges.encode(
                candidates, self.chat.family, self.max_length, self._rendered, self._num_tokens
            )
        out = Tokenized()
        prompts: dict[int, Prompt] = {}
        prompt: Prompt | None = None
        for i, candidate in enumerate(candidates):
            if candidate.reason is None:
                if prompt is None or prompt.messages != candidate.prompt:
                    prompt = self._render(candidate.prompt)
                prompts[i] = prompt
        self._encode_prompts(list(prompts.values()))
        flagged = {i: self._has_special(candidates[i].answer) for i in prompts}
        answers, refused = self._render_answers({i: candidates[i].answer for i in prompts})
        ids = self._encode_answers(answers, flagged)
        for i, candidate in enumerate(candidates):
            if candidate.reason is not None:
                out.rejects.append((i, candidate.reason, candidate.detail or ""))
            elif i in refused:
                out.rejects.append((i, "malformed_row", refused[i]))
            elif (detail := self._unfit(prompts[i], answers[i])) is not None:
                out.rejects.append((i, *detail))
            else:
                self._place(out, i, prompts[i], ids[i], flagged[i])
        return out

    def _rendered(self, conversations: Sequence[Messages]) -> list[Prompt]:
        prompts = [self._render(messages) for messages in conversations]
        self._encode_prompts(prompts)
        return prompts

    def _num_tokens(self, text: str) -> int:
        return len(self._encode_text(text) if self.plain else self.chat.encode(text))

    def _render(self, messages: Messages) -> Prompt:
        prompt = Prompt(messages)
        prompt.flagged = any(self._has_special(m["content"]) for m in messages)
        try:
            if prompt.flagged and self.plain:
                prompt.text, prompt.ids = self._render_plain(messages)
            else:
                prompt.text = self.chat.render_prompt(messages)
        except jinja2.TemplateError as error:
            prompt.error = f"the chat template refuses the messages: {error}"
        # a text with marks could be another prompt's own: its ids cannot
        told = prompt.text.encode() if prompt.ids is None else prompt.ids.tobytes()
        prompt.id = hashlib.blake2b(told, digest_size=16).hexdigest()
        return prompt

    def _render_answers(self, answers: dict[int, str]) -> tuple[dict[int, str], dict[int, str]]:
        """The answers as the template writes them, and why it does not write others."""
        rendered, refused = {}, {}
        for i, answer in answers.items():
            try:
                rendered[i] = self.chat.render_answer(answer)
            except jinja2.TemplateError as error:
                refused[i] = f"the chat template refuses the answer: {error}"
        return rendered, refused

    def _render_plain(self, messages: Messages) -> tuple[str, Ids]:
        """Encode a prompt whose messages hold special-token texts, as text.

        Each such text is broken by a mark before the template sees it, so what then matches is the
        template's own. Special tokens cut a text before anything else does, so the pieces between them
        encode alone as they do together.
        """
        said = "".join(m["content"] for m in messages)
        mark = next(chr(code) for code in _MARKS if chr(code) not in said)
        broken = [
            m | {"content": self._special.sub(lambda hit: hit[0][0] + mark + hit[0][1:], m["content"])}
            for m in messages
        ]
        text = self.chat.render_prompt(broken)
        ids: list[int] = []
        at = 0
        for hit in self._special.finditer(text):
            ids += self._encode_text(text[at : hit.start()].replace(mark, ""))
            ids += self.chat.encode(hit[0])
            at = hit.end()
        ids += self._encode_text(text[at:].replace(mark, ""))
        return text, np.array(ids, np.int32)

    def _encode_text(self, text: str) -> list[int]:
        ids: list[int] = self._text_only.encode(text, add_special_tokens=False).ids
        return ids

    def _encode_prompts(self, prompts: list[Prompt]) -> None:
        waiting = {id(p): p for p in prompts if p.ids is None and p.error is None and self._encodes(p)}
        texts = [prompt.text for prompt in waiting.values()]
        for prompt, ids in zip(waiting.values(), self._encode_batch(texts), strict=True):
            prompt.ids = ids

    def _encode_answers(self, answers: dict[int, str], flagged: dict[int, bool]) -> dict[int, Ids]:
        """Ids of each answer with its end of turn; equal texts are encoded once."""
        fit = {i: answer for i, answer in answers.items() if self._may_fit(answer)}
        texts = sorted({answer for i, answer in fit.items() if not (flagged[i] and self.plain)})
        known = dict(zip(texts, self._encode_batch(texts), strict=True))
        end = self.chat.encode(self.chat.answer_end)
        return {
            i: np.array([*self._encode_text(answer.removesuffix(self.chat.answer_end)), *end], np.int32)
            if flagged[i] and self.plain
            else known[answer]
            for i, answer in fit.items()
        }

    def _may_fit(self, text: str) -> bool:
        """Whether a text could be within max_length: a hundred megabytes need no encoding to be too long."""
        return len(text) <= self._max_chars

    def _encodes(self, prompt: Prompt) -> bool:
        return self.truncate != "none" or self._may_fit(prompt.text)

    def _encode_batch(self, texts: list[str]) -> list[Ids]:
        done: list[Ids] = []
        start = size = 0
        for stop, text in enumerate(texts, 1):
            size += len(text)
            if size >= _BATCH_CHARS or stop == len(texts):
                batch = self.chat.tokenizer.encode_batch_fast(texts[start:stop], add_special_tokens=False)
                done += [np.array(encoding.ids, np.int32) for encoding in batch]
                start, size = stop, 0
        return done

    def _has_special(self, text: str) -> bool:
        return any(o in text for o in self._openings) and self._special.search(text) is not None

    def _unfit(self, prompt: Prompt, answer: str) -> tuple[str, str] | None:
        """Why a candidate was not encoded."""
        if prompt.error is not None:
            return "malformed_row", prompt.error
        if self._encodes(prompt) and self._may_fit(answer):
            return None
        return (
            "too_long",
            f"{len(prompt.text) + len(answer)} characters, max_length is {self.max_length} tokens",
        )

    def _place(self, out: Tokenized, i: int, prompt: Prompt, response: Ids, flagged: bool) -> None:
        """Add a candidate to the scored ones, or to the rejects if it is too long."""
        assert prompt.ids is not None, "_unfit lets encoded prompts through only"
        flags = ["special_token_text"] if flagged or prompt.flagged else []
        num_tokens = len(prompt.ids) + len(response)
        if num_tokens <= self.max_length:
            if prompt.place is None:
                prompt.place = len(out.prompts)
                out.prompts.append(prompt.ids)
            group = prompt.place
        elif (cut := self._truncated(prompt.ids, self.max_length - len(response))) is not None:
            flags.append("truncated")
            group = len(out.prompts)
            out.prompts.append(cut)
        else:
            out.rejects.append((i, "too_long", f"{num_tokens} tokens, max_length is {self.max_length}"))
            return
        out.group.append(group)
        out.responses.append(response)
        out.add(i, prompt, (len(out.prompts[group]), len(response)), flags)

    def _truncated(self, prompt: Ids, room: int) -> Ids | None:
        """A prompt cut to `room` tokens; its first token and the end of its last turn always stay."""
        tail = len(self.chat.answer_pattern)
        if self.truncate == "none" or room < tail + 1:
            return None
        head = 1 if self.truncate == "left" else max(1, min(room // 2, room - tail))
        return np.concatenate((prompt[:head], prompt[len(prompt) - (room - head) :]))
