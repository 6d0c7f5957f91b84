"""Whether the shards of an output still exist and are unchanged."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.content import is_unchanged
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.records import CommitRecord, RunFile
from armo_ray.storage.retries import describe_error
from armo_ray.storage.shards import stat_shard

logger = logging.getLogger(__name__)

THERE, GONE, CHANGED, UNKNOWN = "unchanged", "gone", "changed", "unknown"

# armo_ray.text.labels.columns_read: the columns that a run with this identity reads
ColumnsRead = Callable[[Mapping[str, Any]], Sequence[str]]


def find_states(
    records: Iterable[CommitRecord], run: RunFile | None, columns_read: ColumnsRead
) -> tuple[dict[str, str], list[str]]:
    """The state of each shard in the records, by URI, and a line for each storage that cannot be reached.

    A local shard of the same size but with a different modification time is read to compare its content.
    """
    of_shard: dict[str, list[CommitRecord]] = {}
    for record in records:
        of_shard.setdefault(record.source, []).append(record)
    columns = columns_read(run.identity) if run is not None and "layout" in run.identity else ()
    unreachable: dict[str, str] = {}

    def state_of(uri: str) -> str:
        storage = uri.partition("://")[0] + "://" + uri.partition("://")[2].partition("/")[0]
        if storage in unreachable:  # wait for each storage only once
            return UNKNOWN
        try:
            shard = stat_shard(uri)
            if shard is None:
                return GONE
            return THERE if is_unchanged(shard, of_shard[uri], columns) else CHANGED
        except (OSError, RuntimeError, ConfigError) as error:
            if "://" in uri:
                unreachable[storage] = f"{storage}: {describe_error(error)}"
            return UNKNOWN

    states = dict(zip(of_shard, in_parallel(state_of, of_shard), strict=True))
    return states, sorted(unreachable.values())


def tell_states(records: Iterable[CommitRecord], run: RunFile | None, columns_read: ColumnsRead) -> None:
    """Log the states of the shards, and where the text of the scores can be read."""
    states, unreachable = find_states(records, run, columns_read)
    for line in unreachable:
        logger.warning("%s", line)
    logger.info("%s", describe(states, run is not None and run.keep_text))


def describe(states: Mapping[str, str], keep_text: bool) -> str:
    """One line about the shards, and about where the text of the scores can be read."""
    counts = Counter(states.values())
    named = ", ".join(
        f"{counts[state]} {state}" for state in (THERE, GONE, CHANGED, UNKNOWN) if counts[state]
    )
    if keep_text:
        text = "their text is kept with the scores"
    elif counts[THERE] == len(states):
        text = "their text can be read again"
    else:
        text = "text can be read again only from unchanged ones: it was not kept (--keep-text)"
    return f"of {len(states)} shards, {named or 'none'}; {text}"
