"""How a run ended: its exit status and what that means. Imports nothing slow."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from armo_ray.errors import ConfigError
from armo_ray.exit_status import COMPLETE, FAILED, MISUSED, OUT_OF_TIME, TOO_MANY_REJECTS
from armo_ray.score.run_options import RunOptions
from armo_ray.signals import OutOfTime, time_is_over

if TYPE_CHECKING:
    from armo_ray.storage.records import Totals  # imports pyarrow

logger = logging.getLogger(__name__)

_AGAIN = "run the same command again to go on"


class Status(NamedTuple):
    """An exit status and what it means, in words."""

    code: int
    meaning: str

    def __str__(self) -> str:
        return f"status {self.code}: {self.meaning}"


def of_totals(totals: "Totals", config: RunOptions) -> Status:
    """The status of a complete run, from the totals of the shards of its input."""
    share, what = reject_fraction(totals)
    if share <= config.max_reject_fraction:
        return Status(COMPLETE, "complete")
    return Status(
        TOO_MANY_REJECTS,
        f"complete, but {100 * share:.3g} % of the {what} were rejected "
        f"(--max-reject-fraction is {100 * config.max_reject_fraction:g} %): see {config.output}/rejects",
    )


def reject_fraction(totals: "Totals") -> tuple[float, str]:
    """The rejected fraction of the candidates or of the shards, whichever is larger, and the word for which it is."""
    # an unreadable shard counts as one reject, however many rows it held: compare shards with shards
    unreadable = totals.rejected.get("unreadable_shard", 0) / max(totals.shards or 0, 1)
    # --winner asks for rows to be skipped
    rejected = (totals.num_rejected - totals.rejected.get("skipped", 0)) / max(totals.candidates, 1)
    return max((rejected, "candidates"), (unreadable, "shards"))


def of_error(error: BaseException) -> Status:
    """The status of a run that this error or stop ended."""
    if isinstance(error, ConfigError):
        return Status(MISUSED, "wrong usage or configuration")
    stopped = isinstance(error, KeyboardInterrupt)
    if isinstance(error, OutOfTime) or (stopped and time_is_over()):
        return Status(OUT_OF_TIME, f"{str(error) or 'stopped by --max-runtime'}; {_AGAIN}")
    return Status(FAILED, f"{'stopped' if stopped else 'failed'}; {_AGAIN}")


@contextmanager
def errors_told() -> Iterator[None]:
    """Log the status of an error or stop that ends the body.

    It is the last line of the log: Ray tells of a status only whether it is 0.
    """
    try:
        yield
    except BaseException as error:
        logger.error("%s", of_error(error))
        raise
