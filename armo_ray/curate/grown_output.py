"""`filter --append` and `reweigh --append`: the units that an output does not have yet.

A unit is a transaction of its own, as in the output of `score`: a command that was killed is run again and does the
rest.
"""

import logging
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

from armo_ray.curate.derived_output import MADE_FROM
from armo_ray.curate.options import FilterOptions, ReweighOptions
from armo_ray.errors import ConfigError
from armo_ray.outputs.dataset import check_empty, check_unclaimed, delete, names_in, new_output
from armo_ray.outputs.partitions import check_whole_shards
from armo_ray.outputs.scores import Part, Scores
from armo_ray.storage import commits, lock
from armo_ray.storage.json_files import unit_of
from armo_ray.storage.store import Store

logger = logging.getLogger(__name__)

# options that decide no row of a unit
RUNNING = ("scores", "output", "append", "partition", "date", "memory", "threads", "spill", "engine")


@contextmanager
def grown_output(options: FilterOptions | ReweighOptions, command: str) -> Iterator[Store]:
    """Lock an output that is empty, or that this command made with the same options.

    Raises ConfigError. What is written stays if the body fails: the same command goes on.
    """
    if options.format != "parquet":
        raise ConfigError("--append: only Parquet can grow")
    store = Store(options.output)
    if commits.find_run(store) is None:
        check_unclaimed(store)
    with lock.held(store, command) as held:
        run = commits.find_run(store)
        if run is None:
            check_empty(held)
        else:
            _check_same(store, run.to_dict().get("made_by") or {}, options, command)
            if commits.SUCCESS not in store.list_names(""):
                _delete_uncommitted(store)
        yield store


def _delete_uncommitted(store: Store) -> None:
    """Delete the parts that a command left when it was killed: their rows may go to parts of other names now."""
    committed = {part.path for part in commits.read_log(store).parts()}
    delete(store, [name for name in names_in(store) if unit_of(name) and name not in committed])


def _check_same(
    store: Store, made: Mapping[str, Any], options: FilterOptions | ReweighOptions, command: str
) -> None:
    if made.get("command") != command:
        by = f"armo-ray {made['command']}" if made else "armo-ray score"
        raise ConfigError(f"output {store.uri} was made by {by}: choose another output")
    before, now = (_deciding(of) for of in (made["options"], options.model_dump(mode="json")))
    for name in sorted(before.keys() | now.keys()):
        if before.get(name) != now.get(name):
            raise ConfigError(
                f"output {store.uri}: --{name.replace('_', '-')} was {before.get(name)!r}, now {now.get(name)!r}: "
                f"--append adds rows made with the same options. Use them, or another output"
            )


def _deciding(options: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in options.items() if name not in RUNNING}


def lacking_units(
    options: FilterOptions | ReweighOptions, scores: Scores, store: Store
) -> tuple[Scores, frozenset[str]] | None:
    """The scores of the units that an output lacks, and the names of those that it has; None if it lacks none.

    Without --append, it lacks all.

    Raises ConfigError if the output has units that the scores no longer hold, or would get part of a shard.
    """
    if not options.append:
        return scores, frozenset()
    if scores.partitions:
        for output in scores.outputs:
            check_whole_shards(commits.read_commits(Store(output)), scores.partitions)
    log = commits.read_log(store)
    made_from = {extra.get(MADE_FROM) for extra in log.extras()} - {None}
    if made_from - {run.checksum for run in scores.runs}:
        raise ConfigError(
            f"output {store.uri} has rows from scores that were made anew since, or are not among "
            f"{', '.join(scores.outputs)}: give all the scores that it was made of, or make it anew, in another output"
        )
    done = log.read_units()
    there = {unit for output in scores.outputs for unit in commits.read_log(Store(output)).read_units()}
    if gone := sorted(done - there):
        raise ConfigError(
            f"output {store.uri} has rows from {len(gone)} units that {', '.join(scores.outputs)} no longer holds, "
            f"such as {gone[0]}: give all the scores that it was made of, or make it anew, in another output"
        )

    def is_new(part: Part) -> bool:
        output = scores.outputs[part.output].rstrip("/")
        return unit_of(part.uri.removeprefix(f"{output}/")) not in done

    parts, rejects = (tuple(filter(is_new, of)) for of in (scores.parts, scores.rejects))
    if not parts and not rejects and commits.SUCCESS in store.list_names(""):
        logger.info("%s: no new scores; left unchanged", store.uri)
        return None
    return replace(scores, parts=parts, rejects=rejects), done


def output_of(options: FilterOptions | ReweighOptions, command: str) -> AbstractContextManager[Store]:
    """The locked output of a command, empty unless it grows. Raises ConfigError."""
    if options.append:
        return grown_output(options, command)
    return new_output(options.output, command, options.engine)
