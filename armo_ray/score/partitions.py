"""The columns that scores get from the input: kept columns, partition columns and hive directories.

Their names must differ in more than case, because DuckDB and other readers of the output ignore case.
"""

from collections.abc import Iterable, Mapping, Sequence, Set

from armo_ray.errors import ConfigError
from armo_ray.outputs.schema import OF_QUERIES, RESERVED
from armo_ray.storage.parts import NULL
from armo_ray.storage.shards import Shard
from armo_ray.text.labels import COLUMN


def columns_to_keep(
    keep: Mapping[str, str], partition_by: Sequence[str], shards: Sequence[Shard], with_labels: bool = False
) -> dict[str, str]:
    """The input columns to store in the scores: name in the scores -> input column.

    These are the kept columns, and the partition columns that are neither kept nor a directory of the input. Scores
    with labels have a column `labels` too.

    Raises ConfigError if two names, or a name and a column of the scores, are the same or differ only in case.
    """
    reserved = RESERVED | {COLUMN} if with_labels else RESERVED
    for name in partition_by:
        if name.lower() in reserved and name != "role":
            raise ConfigError(
                f"partition-by: {name}: the only column of the scores that can be used is role; rename the column of "
                f"the input: --keep input_{name}={name} --partition-by input_{name}"
            )
    for shard in shards:
        _check_directories(shard, reserved)
    directories = [{name for name, _ in shard.partitions} for shard in shards] or [set()]
    everywhere, somewhere = set.intersection(*directories), set.union(*directories)
    if mixed := sorted((somewhere - everywhere).intersection(partition_by)):
        raise ConfigError(f"partition-by: {mixed[0]} is a directory of some shards of the input only")
    for name, column in keep.items():
        if name.lower() in reserved:
            raise ConfigError(
                f"keep: {name} is a column of the scores already{_whatever_case(name, name.lower())}; "
                f"rename it: --keep input_{name}={column}"
            )
    own = [name for name in partition_by if name not in {"role", *everywhere}]
    columns = {name: name for name in own} | dict(keep)
    for name in sorted({*somewhere, *columns}):
        if name.lower() in OF_QUERIES:
            raise ConfigError(
                f"{name}: no column or directory can have this name, which commands that read scores use themselves; "
                f"rename a column: --keep input_{name.strip('_')}={columns.get(name, name)}"
            )
    _check_distinct(somewhere, columns)
    return columns


def _check_directories(shard: Shard, reserved: Set[str]) -> None:
    """Raises ConfigError if the hive directories of a shard could not be read back from the scores."""
    seen: dict[str, str] = {}
    for name, value in shard.partitions:
        if not name or not value:
            missing = "name" if not name else "value"
            null_advice = "" if not name else f", to {name}={NULL} for a null value"
            raise ConfigError(
                f"input {shard.uri}: its directory {name}={value} has no {missing}: rename it{null_advice}"
            )
        if (lower := name.lower()) in reserved:
            raise ConfigError(
                f"input {shard.uri}: its directory {name}={value} would be a column of the scores, which already "
                f"have a column {lower}: rename the directory, for example to input_{name}={value}"
            )
        if lower in seen:
            raise ConfigError(
                f"input {shard.uri}: two of its directories are named {name}"
                f"{_whatever_case(name, seen[lower])}: rename one"
            )
        seen[lower] = name


def _check_distinct(directories: Iterable[str], columns: Mapping[str, str]) -> None:
    by_lower: dict[str, str] = {}
    for name in sorted(directories):
        if (other := by_lower.setdefault(name.lower(), name)) != name:
            raise ConfigError(f"input: its directories {other}= and {name}= differ only in case: rename one")
    for name, column in columns.items():
        other = by_lower.setdefault(name.lower(), name)
        if name in directories or other in directories:
            raise ConfigError(
                f"keep or partition-by: {name} is already a directory of the input and the scores"
                f"{_whatever_case(name, other)}; rename the column: --keep input_{name}={column}"
            )
        if other != name:
            raise ConfigError(
                f"keep or partition-by: {other} and {name} differ only in case, which many readers ignore; "
                f"rename one: --keep input_{name}={column}"
            )


def _whatever_case(name: str, other: str) -> str:
    return "" if name == other else f" ({other}: many readers ignore case)"
