"""What the tasks of `mine` and `label` share: which parts each reads, and the prompts of which it makes rows.

A bucket is a range of prompt ids: it holds all candidates of its prompts, whichever shards and parts they came from,
and consecutive buckets are in order of prompt id. A piece is a smaller range, of which one task writes the rows.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from armo_ray.curate.scratch_files import DIGITS, NOTHING, PAST_ALL, PromptRange, Written
from armo_ray.outputs.scores import Part, Scores

_PIECE_BYTES = 64 << 20  # of the text in a piece's rows, of which its task holds several copies
Item = TypeVar("Item")


@dataclass(frozen=True)
class CurationJob:
    """What every task of `mine` or `label` needs to know."""

    scores: Scores
    options: Any  # MineOptions or LabelOptions
    scratch: str  # folder or URI of the files that tasks write for other tasks
    select: str  # SQL expressions of a candidate's columns
    part_groups: tuple[tuple[Part, ...], ...]  # the parts of each reading task
    rows: int  # candidates that are read
    increment: int | None = None  # number of the increment of a dataset that grows
    num_new: int | None = None  # groups that are read whole, the first ones; of the others only some prompts
    known: str = ""  # SQL relation of the MinHash digests of earlier increments
    first_part: int = 0  # number of the first part
    screened: bool = False  # whether it is known already that no prompt is to be left out
    late: tuple[str, ...] = ()  # columns that are read for the selected candidates, with their text
    skipped: tuple[str, ...] = ()  # columns that are read only then
    text_at_once: bool = False  # whether the text of all candidates is read with their other columns
    candidates: Written = NOTHING  # the candidates that were read
    pieces: int = 1  # of every bucket

    @property
    def num_buckets(self) -> int:
        return -(-self.rows // int(self.options.task_rows))

    @property
    def num_pieces(self) -> int:
        return self.num_buckets * self.pieces

    def bucket(self, number: int) -> PromptRange:
        return _range(number, self.num_buckets)

    def piece(self, number: int) -> PromptRange:
        return _range(number, self.num_pieces)

    def part_name(self, piece: int) -> str:
        """The name of a piece's part in every split."""
        number = f"{self.first_part + piece:05d}"
        return f"part-{number}" if self.increment is None else f"part-{self.increment:05d}-{number}"


def in_pieces(job: CurationJob, texts: Written, uses: int) -> CurationJob:
    """The job with as many pieces as its text needs, if rows have the text of a candidate this often in all."""
    num_bytes = texts.text_bytes * max(uses, texts.rows) // max(texts.rows, 1)
    return replace(job, pieces=max(1, -(-num_bytes // (max(job.num_buckets, 1) * _PIECE_BYTES))))


def _range(number: int, count: int) -> PromptRange:
    """One of as many ranges of equal width that hold all prompts."""
    low, high = (f"{edge * 16**DIGITS // count:0{DIGITS}x}" for edge in (number, number + 1))
    return PromptRange(low, high if number + 1 < count else PAST_ALL)


def whole_job(scores: Scores, options: Any, scratch: str, select: str) -> CurationJob:
    """A job that reads all scores."""
    groups = batched_by_rows(scores.parts, lambda part: part.rows, options.task_rows)
    return CurationJob(scores, options, scratch, select, tuple(groups), scores.rows)


def batched_by_rows(
    items: Iterable[Item], rows_of: Callable[[Item], int], rows: int
) -> list[tuple[Item, ...]]:
    """Consecutive items in batches of at most `rows` rows; an item with more is a batch of its own."""
    batches: list[list[Item]] = [[]]
    batch_rows = 0
    for item in items:
        if batches[-1] and batch_rows + rows_of(item) > rows:
            batches.append([])
            batch_rows = 0
        batches[-1].append(item)
        batch_rows += rows_of(item)
    return [tuple(batch) for batch in batches]
