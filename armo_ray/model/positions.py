"""The tokens of a conversation that a head reads. Needs no torch."""

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.model.families import Family

Ids = npt.NDArray[np.int32]


# In the ids of a response: not a token, but the end of a step, of which the tokens do not tell. A family that sums over
# tokens reads the response up to there.
STEP_END = -1


def without_ends(ids: Ids, start: int = 0) -> tuple[Ids, list[int]]:
    """The token ids, and for every end of a step, how many of them are between `start` and it."""
    places = np.flatnonzero(ids == STEP_END)
    if not len(places):
        return ids, []
    return np.delete(ids, places), (places - np.arange(len(places)) - start).tolist()


def read_positions(ids: Ids, family: Family, pattern: Ids, start: int = 0) -> list[int]:
    """The positions that the head reads; an empty list if the conversation lacks the tokens that mark them.

    Args:
        ids: token ids (T,) of a conversation.
        pattern: token ids from the end of a user turn to the response, or the one after each step; or
            those of the marks of a question and two responses.
        start: the number of tokens before the response, in which no step ends.
    """
    last = len(ids) - 1
    if family.reads == "response":
        return list(range(max(start, 1) - 1, last))
    if family.reads in ("first", "last"):
        return [0 if family.reads == "first" else last]
    if family.reads == "before_zero":
        zeros = np.flatnonzero(ids == 0)
        return [int(zeros[0] - 1) % len(ids)] if len(zeros) else [last]
    if family.reads == "sides":
        first = [np.flatnonzero(ids == mark)[:1].tolist() for mark in pattern]
        return [at for found in first for at in found] if all(first) else []
    if family.reads == "marks":
        return [start + at for at in _occurrences(ids[start:], pattern)]
    starts = _occurrences(ids, pattern)
    if family.reads == "headers":
        return [start + len(pattern) - 1 for start in starts]
    return [starts[-1], last] if starts else []


def _occurrences(ids: Ids, pattern: Ids) -> list[int]:
    """The indices where `pattern` starts in `ids`."""
    starts = np.flatnonzero(ids[: max(0, len(ids) - len(pattern) + 1)] == pattern[0])
    return [s for s in starts.tolist() if np.array_equal(ids[s : s + len(pattern)], pattern)]


def check_keeps_hidden(family: Family) -> None:
    """Raise ConfigError unless the head reads one token of a response, beside at most one of its prompt."""
    one = family.reads in ("last", "before_zero", "gate") and family.text != "pairs"
    if not one or family.bidirectional or family.by_step:
        raise ConfigError(
            f"keep-hidden: the family {family.name} does not read one hidden state of each response, to be kept"
        )
