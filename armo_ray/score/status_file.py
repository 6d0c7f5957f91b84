"""status.json in an output: how its last run ended. Ray tells of a job only whether its exit status is 0.

While a run lasts there is no such file. Whether it can be written changes nothing else.
"""

import logging
from contextlib import suppress

from armo_ray.score.status import Status, of_error
from armo_ray.storage import commits
from armo_ray.storage.json_files import to_json
from armo_ray.storage.records import Totals
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

STATUS = "status.json"


def write(store: Store, command: str, status: Status, totals: Totals | None) -> None:
    """Write how a run ended, with the totals of the whole output, None if they cannot be read.

    Logs a warning if it cannot be written.
    """
    content = {
        "command": command,
        "status": status.code,
        "meaning": status.meaning,
        "scored": totals and totals.scored,
        "rejected": totals and totals.num_rejected,
        "units": totals and totals.units,
        "finished_at": commits.now(),
    }
    try:
        store.write(STATUS, to_json(content))
    except Exception as error:
        logger.warning("%s/%s cannot be written: %s", store.uri, STATUS, error)


def write_error(store: Store, command: str, error: BaseException, totals: Totals | None) -> None:
    """Write that this error or stop ended a run, with the first line of its message."""
    status, (message, *_) = of_error(error), [*str(error).splitlines(), ""]
    whole = status._replace(meaning=f"{status.meaning}: {message}".removesuffix(": "))
    write(store, command, whole, totals)


def remove(store: Store) -> None:
    """Remove the file of an earlier run, if it is there and can be removed."""
    with suppress(Exception):
        store.delete(STATUS)
