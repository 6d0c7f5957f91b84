"""Whether the shards that an output was scored from are still there as they were."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import in_parallel
from armo_ray.storage.retries import explain
from armo_ray.storage.shards import stat_shard

logger = logging.getLogger(__name__)

THERE, GONE, CHANGED, UNKNOWN = "as they were scored", "gone", "changed since", "unknown"


def find_states(records: Iterable[Mapping[str, Any]]) -> tuple[dict[str, str], list[str]]:
    """What became of each shard that records name, and why a storage cannot tell of its own."""
    identities = {record["source"]: record["identity"] for record in records}
    away: dict[str, str] = {}

    def state_of(uri: str) -> str:
        storage = uri.partition("://")[0] + "://" + uri.partition("://")[2].partition("/")[0]
        if storage in away:  # one wait for a storage is enough
            return UNKNOWN
        try:
            shard = stat_shard(uri)
        except (OSError, RuntimeError, ConfigError) as error:
            if "://" in uri:
                away[storage] = f"{storage}: {explain(error)}"
            return UNKNOWN
        return GONE if shard is None else THERE if shard.identity == identities[uri] else CHANGED

    states = dict(zip(identities, in_parallel(state_of, identities), strict=True))
    return states, sorted(away.values())


def tell_states(records: Iterable[Mapping[str, Any]], run: Mapping[str, Any] | None) -> None:
    """Log how many shards are as they were, and where the text of the scores can be had."""
    states, away = find_states(records)
    for line in away:
        logger.warning("%s", line)
    logger.info("%s", describe(states, run or {}))


def describe(states: Mapping[str, str], run: Mapping[str, Any]) -> str:
    """One line about the shards, and about where the text of the scores can be had."""
    counts = Counter(states.values())
    told = ", ".join(f"{counts[state]} {state}" for state in (THERE, GONE, CHANGED, UNKNOWN) if counts[state])
    if run.get("identity", {}).get("keep_text"):
        text = "its text is kept with the scores"
    elif counts[THERE] == len(states):
        text = "its text can be read again from them"
    else:
        text = "text can be read again only from those as they were: it was not kept (--keep-text)"
    return f"of {len(states)} shards {told or 'none'}; {text}"
