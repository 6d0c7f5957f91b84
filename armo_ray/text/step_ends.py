"""Responses whose steps are paragraphs, with the ends of steps up to which EurusPRM sums.

Source: eval/processbench.py of PRIME-RL/ImplicitPRM, and public copies of the code in the model card of EurusPRM. To
find the end of a step, the authors encode the conversation up to there, with the end of the turn and a blank
line, and take the place of its last token in the ids of the whole. So the sum of a step has one or two tokens of the
next one in it. The sums of the model card begin with the last token of the header. Both are the same here.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from armo_ray.model.chat import Chat
from armo_ray.model.positions import STEP_END
from armo_ray.model.steps import BLANK_LINE, header_end
from armo_ray.text.tokenized import Ids, Prompt

_CUT = "unsupported_content", "the chat template begins the response to this prompt in another way"


def cut_headers(prompts: Iterable[Prompt], chat: Chat) -> None:
    """Move the last token of the header, where the sums begin, from the ids of each prompt to its responses."""
    opening = np.array(chat.encode(chat.response_start), np.int32)
    last = header_end(chat)
    for prompt in prompts:
        if prompt.ids is not None:
            header = np.concatenate((prompt.ids, opening))
            prompt.ids = header[:-1]
            prompt.error = prompt.error or (None if header[-1] == last else _CUT)


def written(
    responses: Sequence[Sequence[str]], chat: Chat, encode: Callable[[list[str]], list[Ids]]
) -> list[Ids]:
    """The ids of each response from the last token of the header on, with STEP_END after the last token of a step."""
    first, end = np.array([header_end(chat)], np.int32), np.array(chat.encode(chat.response_end), np.int32)
    beyond = 1 + len(chat.encode(BLANK_LINE))  # the end of the turn and the line, which the authors add
    followed = iter(encode([step + BLANK_LINE for steps in responses for step in steps[:-1]]))
    alone = iter(encode([step for steps in responses for step in steps]))
    out = []
    for steps in responses:
        parts, ends, size = [first], [], 1
        for _ in steps[:-1]:
            ends.append(size + len(next(alone)) + beyond)
            parts.append(next(followed))
            size += len(parts[-1])
        parts += [next(alone), end]
        ends.append(size + len(parts[-2]) + 1)
        out.append(np.insert(np.concatenate(parts), np.minimum(ends, ends[-1]), STEP_END))
    return out
