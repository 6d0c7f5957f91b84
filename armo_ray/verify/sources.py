"""Whether the shards that an output was scored from are still there as they were."""

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

THERE, GONE, CHANGED, UNKNOWN = "as they were scored", "gone", "changed since", "unknown"

ColumnsRead = Callable[[Mapping[str, Any]], Sequence[str]]  # of the input: armo_ray.text.layouts.columns_read


def find_states(
    records: Iterable[CommitRecord], run: RunFile | None, columns_read: ColumnsRead
) -> tuple[dict[str, str], list[str]]:
    """The state of each shard that records name, and why some storages cannot be asked.

    A local shard of the same size with another modification time is read: its content decides.
    """
    of_shard: dict[str, list[CommitRecord]] = {}
    for record in records:
        of_shard.setdefault(record.source, []).append(record)
    columns = columns_read(run.identity) if run is not None and "layout" in run.identity else ()
    away: dict[str, str] = {}

    def state_of(uri: str) -> str:
        storage = uri.partition("://")[0] + "://" + uri.partition("://")[2].partition("/")[0]
        if storage in away:  # one wait for a storage is enough
            return UNKNOWN
        try:
            shard = stat_shard(uri)
            if shard is None:
                return GONE
            return THERE if is_unchanged(shard, of_shard[uri], columns) else CHANGED
        except (OSError, RuntimeError, ConfigError) as error:
            if "://" in uri:
                away[storage] = f"{storage}: {describe_error(error)}"
            return UNKNOWN

    states = dict(zip(of_shard, in_parallel(state_of, of_shard), strict=True))
    return states, sorted(away.values())


def tell_states(records: Iterable[CommitRecord], run: RunFile | None, columns_read: ColumnsRead) -> None:
    """Log how many shards are as they were, and where the text of the scores can be read."""
    states, away = find_states(records, run, columns_read)
    for line in away:
        logger.warning("%s", line)
    logger.info("%s", describe(states, run is not None and run.keep_text))


def describe(states: Mapping[str, str], keep_text: bool) -> str:
    """One line about the shards, and about where the text of the scores can be read."""
    counts = Counter(states.values())
    named = ", ".join(
        f"{counts[state]} {state}" for state in (THERE, GONE, CHANGED, UNKNOWN) if counts[state]
    )
    if keep_text:
        text = "its text is kept with the scores"
    elif counts[THERE] == len(states):
        text = "its text can be read again from them"
    else:
        text = "text can be read again only from those as they were: it was not kept (--keep-text)"
    return f"of {len(states)} shards {named or 'none'}; {text}"
