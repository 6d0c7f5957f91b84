"""`armo-ray nightly`: runs the steps of a night, judges them and publishes them. Checks the night before any work."""

import json
import logging
from typing import TYPE_CHECKING, Any

from armo_ray.errors import ConfigError
from armo_ray.exit_status import COMPLETE, DRIFTED, FAILED
from armo_ray.nightly.night import Night, load_night
from armo_ray.nightly.options import NightlyOptions
from armo_ray.score.status import Status, of_error
from armo_ray.signals import limited

if TYPE_CHECKING:
    from armo_ray.nightly.gate import Condition
    from armo_ray.nightly.steps import Done

logger = logging.getLogger(__name__)


class _Ending:
    """What a night has come to so far, of which its last line on stdout tells."""

    def __init__(self, night: Night) -> None:
        self.night = night
        self.done: dict[str, Done] = {}
        self.conditions: list[Condition] | None = None
        self.published: dict[str, Any] | None = None

    def status(self) -> Status:
        if failed := [condition for condition in self.conditions or () if not condition.passed]:
            return Status(DRIFTED, f"kept, but not published: {'; '.join(map(str, failed))}")
        return Status(COMPLETE, "complete")

    def tell(self, status: Status) -> None:
        """Print the summary as a line of JSON, and log the status, of which Ray tells only whether it is 0."""
        steps = {name: _told(done) for name, done in self.done.items()}
        missing = {
            step.name: {"status": "not reached"} for step in self.night.steps if step.name not in steps
        }
        gate = None if self.conditions is None else [condition._asdict() for condition in self.conditions]
        summary = {
            "date": self.night.date,
            "status": status.code,
            "meaning": status.meaning,
            "steps": steps | missing,
            "gate": gate,
            "published": self.published,
            "home": self.night.home,
        }
        print(json.dumps(summary))
        logger.log(logging.ERROR if status.code else logging.INFO, "night %s: %s", self.night.date, status)


def run(options: NightlyOptions) -> int:
    """Do what is left of a night. Returns DRIFTED if it does not pass its gate.

    Raises ConfigError before any work, RuntimeError if a step cannot go on, and OutOfTime.
    """
    night = load_night(options)
    ending = _Ending(night)
    with limited(night.max_runtime):
        try:
            _run(night, ending)
        except BaseException as error:
            ending.tell(_status_of(error))
            raise
    status = ending.status()
    ending.tell(status)
    return status.code


def _run(night: Night, ending: _Ending) -> None:
    from armo_ray.nightly import steps
    from armo_ray.nightly.publish import find_published
    from armo_ray.nightly.record import Record
    from armo_ray.storage import lock
    from armo_ray.storage.store import Store

    store = Store(night.home)
    steps.check_inputs(night)
    steps.check_outputs(night, Record(store))
    with lock.held(store, "nightly"):
        record = Record(store)  # as the last to have the lock left it
        steps.run_steps(night, record, ending.done)
        earlier = find_published(night, ending.done)
        if earlier is not None:  # later nights may have replaced rows since it was judged
            ending.conditions, ending.published = earlier
        else:
            _judge(night, ending)
        _write_page(store, ending)


def _judge(night: Night, ending: _Ending) -> None:
    """Measure the conditions of the gate, and publish the night if it meets them."""
    from armo_ray.nightly import gate
    from armo_ray.nightly.publish import publish

    ending.conditions = gate.measure(night, ending.done)
    for condition in ending.conditions:
        if not condition.passed:
            logger.error("gate: %s", condition)
    if night.publish is not None and all(condition.passed for condition in ending.conditions):
        try:
            ending.published = publish(night, ending.done, ending.conditions)
        except ConfigError as error:  # the work is done
            raise RuntimeError(f"[publish] {error}") from error


def _write_page(store: Any, ending: _Ending) -> None:
    """Write the night's page, unless nothing was done since it was written."""
    from armo_ray.nightly.page import page
    from armo_ray.nightly.publish import PAGE
    from armo_ray.nightly.steps import SKIPPED

    same = all(done.status == SKIPPED for done in ending.done.values())
    published = ending.published
    if same and published and not published["new"] and PAGE in store.list_names(""):
        return
    store.write(PAGE, page(ending.night, ending.done, ending.conditions or [], published).encode())


def _status_of(error: BaseException) -> Status:
    """The status of a night that this error or stop ended, with the first line of its message."""
    status, (message, *_) = of_error(error), [*str(error).splitlines(), ""]
    advises = isinstance(error.__cause__, ConfigError)  # its message says what to do first
    if status.code == FAILED and advises:
        status = status._replace(meaning="failed")
    return status._replace(meaning=f"{status.meaning}: {message}".removesuffix(": "))


def _told(done: "Done") -> dict[str, Any]:
    return {"status": done.status, "seconds": round(done.seconds, 1), "rows": done.rows}
