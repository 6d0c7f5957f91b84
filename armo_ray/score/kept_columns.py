"""Input columns kept in the scores: a type that fits all shards, and whether that type holds a value.

Types are widened without loss. A value that its column cannot hold becomes null, and its candidate gets a flag.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice

LOST = "kept_value_lost"  # prefix of a flag; a colon and the name of the column follow
_UNITS = ("s", "ms", "us", "ns")  # from coarse to fine
_NAMED = 3  # shards per type that a message names
Types = dict[pa.DataType, list[str]]  # by type: URIs of the shards that have it, in the order of the input


class Seen(NamedTuple):
    """The columns of a shard or block: its Arrow schema, and its first rows if the schema is not enough."""

    uri: str
    names: Sequence[str]
    schema: pa.Schema | None
    rows: Sequence[Mapping[str, Any]] = ()


def unify(columns: Mapping[str, str], as_json: Iterable[str], seen: Sequence[Seen]) -> pa.Schema:
    """The type of every kept column that fits all shards, by its name in the scores.

    Args:
        columns: name in the scores -> column of the input.
        as_json: names in the scores whose values are stored as JSON text.

    Raises:
        ConfigError: no shard has the column, or no type holds its values in all shards.
    """
    as_json = frozenset(as_json)
    kinds = {name: pa.string() if name in as_json else _unified(c, seen) for name, c in columns.items()}
    for column in columns.values():
        if not any(column in shard.names for shard in seen):
            names = dict.fromkeys(name for shard in seen for name in shard.names)
            where = seen[0].uri if len(seen) == 1 else f"any of {len(seen)} shards"
            raise ConfigError(f"keep or partition-by: no column {column} in {where}; {advice(column, names)}")
    for name, kind in kinds.items():
        _check_written(columns[name], kind)
    return pa.schema(list(kinds.items()))


def check(
    recorded: pa.Schema, columns: Mapping[str, str], as_json: Iterable[str], seen: Sequence[Seen]
) -> None:
    """Raises ConfigError if a shard has a column that its type in `recorded`, from the first run, cannot hold."""
    for name, column in columns.items():
        if name in as_json:
            continue
        first = recorded.field(name).type
        for shard in seen:
            if shard.schema is None or column not in shard.names:
                continue
            (kind,) = _types_in(column, shard)
            if kind != first and _plain(_common(first, kind)) != _plain(first):
                raise ConfigError(
                    f"keep: column {column} is {kind} in {shard.uri}, but {first} in the output since its first "
                    f"run: choose another output, or keep it as text: --keep-json {column}"
                )


def _unified(column: str, seen: Sequence[Seen]) -> pa.DataType:
    types: Types = {}
    for shard in seen:
        if column in shard.names:
            for kind in _types_in(column, shard):
                types.setdefault(kind, []).append(shard.uri)
    if not types:
        return pa.null()
    if types.keys() == {pa.null()} and not any(shard.schema for shard in seen):
        rows = sum(len(shard.rows) for shard in seen)
        raise ConfigError(
            f"keep: column {column} is null in the first {rows} rows of {seen[0].uri}, so its type is unknown; "
            f"keep it as text: --keep-json {column}"
        )
    common = _folded(types)
    if common is None:
        raise ConfigError(_conflict(column, types))
    return common


def _types_in(column: str, shard: Seen) -> list[pa.DataType]:
    try:
        if shard.schema is not None and not (shard.rows and is_unclear(shard.schema.field(column).type)):
            return [_of_field(shard.schema.field(column))]
        return list(dict.fromkeys(json_type(row.get(column)) for row in shard.rows))
    except ValueError as error:
        raise ConfigError(
            f"keep: column {column} of {shard.uri} holds {error}; keep it as text: --keep-json {column}"
        ) from None


def is_unclear(kind: pa.DataType) -> bool:
    """Whether the type in one block says nothing about other blocks: null, or pickled Python objects."""
    pickled = getattr(kind, "extension_name", "") == "ray.data.arrow_pickled_object"
    return pickled or bool(pa.types.is_null(kind))


def _of_field(field: pa.Field) -> pa.DataType:
    """The type of a column; for a tensor, lists nested like its dimensions.

    Raises ValueError if the extension type is not supported. Unless ray.data is imported, Ray's extension types are
    recognized by the metadata of the field only; then tensors of several dimensions are not supported.
    """
    kind = field.type
    if not isinstance(kind, pa.BaseExtensionType):
        name = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode()
        if name.startswith("ray.data.") and not pa.types.is_list(kind) and not pa.types.is_large_list(kind):
            raise ValueError(f"values of the extension type {name}")
        if name.startswith("ray.data.") and field.metadata[b"ARROW:extension:metadata"].count(b","):
            raise ValueError("tensors of several dimensions")
        return kind
    name = kind.extension_name
    if name in ("arrow.uuid", "arrow.json"):
        return kind
    if name == "arrow.bool8":
        return pa.bool_()
    if name == "arrow.fixed_shape_tensor" and len(kind.shape) == 1:
        return pa.list_(kind.value_type)
    if name.startswith("ray.data.") and "tensor" in name:
        nested = kind.value_type
        for _ in kind.shape:
            nested = pa.list_(nested)
        return nested
    raise ValueError(f"values of the extension type {name}")


def _conflict(column: str, types: Types) -> str:
    places = "; ".join(
        f"{kind} in {', '.join(uris[:_NAMED])}" + (f" and {len(uris) - _NAMED} more" if uris[_NAMED:] else "")
        for kind, uris in types.items()
    )
    return (
        f"keep: no type holds all values of column {column}: {places}. Keep it as text: --keep-json {column}"
    )


def _check_written(column: str, kind: pa.DataType) -> None:
    try:
        pq.write_table(pa.schema([(column, kind)]).empty_table(), pa.BufferOutputStream())
    except pa.ArrowException as error:
        raise ConfigError(
            f"keep: column {column} is {kind}, which Parquet cannot hold ({error}); "
            f"keep it as text: --keep-json {column}"
        ) from None


def json_type(value: Any) -> pa.DataType:
    """The Arrow type of a JSON or Python value. Raises ValueError if no type holds it."""
    if value is None:
        return pa.null()
    if isinstance(value, dict):
        return pa.struct([(str(name), json_type(entry)) for name, entry in value.items()])
    if isinstance(value, list):
        kinds = list(dict.fromkeys(map(json_type, value)))
        entry_type = _folded(kinds)
        if entry_type is None:
            raise ValueError(f"a list of {' and '.join(map(str, kinds))}")
        return pa.list_(entry_type)
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(2**63) <= value < 2**64:
            raise ValueError(f"{str(value)[:40]}, an integer of more than 64 bits")
        return pa.int64() if value < 2**63 else pa.uint64()
    simple = {bool: pa.bool_(), float: pa.float64(), str: pa.string()}
    try:
        return simple.get(type(value)) or pa.scalar(value).type
    except (pa.ArrowException, TypeError) as error:
        raise ValueError(f"a {type(value).__name__}: {error}") from None


def _folded(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """The type that holds the values of all these types, or None. Floats come first: integers are widened to them."""
    first, *others = sorted(kinds, key=lambda kind: not pa.types.is_floating(kind)) or [pa.null()]
    for kind in others:
        if first is not None and first != kind:
            first = _common(first, kind)
    return first


def _common(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    """The narrowest type that holds the values of both, or None if there is none.

    Integers and floats become a double; an integer that a double cannot hold is flagged when it is read.
    """
    a, b = _storage(a), _storage(b)
    if pa.types.is_null(a) or pa.types.is_null(b):
        return b if pa.types.is_null(a) else a
    for join in (_nested, _numbers, _times, _texts):
        if (common := join(a, b)) is not None:
            return common
    return a if a == b else None


def _plain(kind: pa.DataType | None) -> pa.DataType | None:
    """A type without details that do not affect values: the names of list entries, and nullability."""
    return kind if kind is None else _common(kind, kind)


def _storage(kind: pa.DataType) -> pa.DataType:
    """The value type of a dictionary, and the plain type of a view; any other type as it is."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    if pa.types.is_string_view(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def _nested(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        ours, theirs = ({field.name: field.type for field in kind} for kind in (a, b))
        joined = {
            name: _common(ours.get(name, pa.null()), theirs.get(name, pa.null())) for name in ours | theirs
        }
        return None if None in joined.values() else pa.struct(list(joined.items()))
    if pa.types.is_map(a) and pa.types.is_map(b):
        key, item = _common(a.key_type, b.key_type), _common(a.item_type, b.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if not (_is_list(a) and _is_list(b)):
        return None
    entry = _common(a.value_type, b.value_type)
    if entry is None:
        return None
    if all(map(pa.types.is_fixed_size_list, (a, b))) and a.list_size == b.list_size:
        return pa.list_(entry, a.list_size)
    return pa.large_list(entry) if any(map(_is_large, (a, b))) else pa.list_(entry)


def _is_list(kind: pa.DataType) -> bool:
    views = pa.types.is_list_view(kind) or pa.types.is_large_list_view(kind)
    return bool(views or pa.types.is_list(kind) or _is_large(kind) or pa.types.is_fixed_size_list(kind))


def _is_large(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind))


def _numbers(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_integer(a) and pa.types.is_integer(b):
        return _integers(a, b)
    if pa.types.is_floating(a) and pa.types.is_floating(b):
        return max(a, b, key=lambda kind: kind.bit_width)
    ours, theirs = _digits(a), _digits(b)
    if (pa.types.is_decimal(a) or pa.types.is_decimal(b)) and ours and theirs:
        whole, fraction = max(ours[0], theirs[0]), max(ours[1], theirs[1])
        if whole + fraction > 76:
            return None
        return (pa.decimal128 if whole + fraction <= 38 else pa.decimal256)(whole + fraction, fraction)
    for integer, floating in ((a, b), (b, a)):
        if pa.types.is_integer(integer) and pa.types.is_floating(floating):
            return (
                floating if integer.bit_width < {16: 11, 32: 24, 64: 64}[floating.bit_width] else pa.float64()
            )
    return None


def _integers(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """The narrowest integer type that holds both; for uint64 and a signed type, a decimal."""
    if pa.types.is_signed_integer(a) == pa.types.is_signed_integer(b):
        return max(a, b, key=lambda kind: kind.bit_width)
    signed, unsigned = (a, b) if pa.types.is_signed_integer(a) else (b, a)
    width = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(width, pa.decimal128(20, 0))


def _digits(kind: pa.DataType) -> tuple[int, int] | None:
    """The digits of a decimal or integer type before and after the point; None for other types."""
    if pa.types.is_decimal(kind):
        return max(kind.precision - kind.scale, 0), max(kind.scale, 0)
    return (len(str(2**kind.bit_width)), 0) if pa.types.is_integer(kind) else None


def _times(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if pa.types.is_date(a) and pa.types.is_date(b):
        return pa.date32()
    if pa.types.is_time(a) and pa.types.is_time(b):
        unit = _finest(a, b)
        return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)
    if pa.types.is_duration(a) and pa.types.is_duration(b):
        return pa.duration(_finest(a, b))
    if not (pa.types.is_timestamp(a) and pa.types.is_timestamp(b)) or (a.tz is None) != (b.tz is None):
        return None
    return pa.timestamp(_finest(a, b), a.tz if a.tz == b.tz else "UTC")


def _finest(a: pa.DataType, b: pa.DataType) -> str:
    return _UNITS[max(_UNITS.index(a.unit), _UNITS.index(b.unit))]


def _texts(a: pa.DataType, b: pa.DataType) -> pa.DataType | None:
    if all(pa.types.is_string(kind) or pa.types.is_large_string(kind) for kind in (a, b)):
        return pa.large_string() if any(map(pa.types.is_large_string, (a, b))) else pa.string()
    if a != b and all(map(_is_binary, (a, b))):
        return pa.large_binary() if any(map(pa.types.is_large_binary, (a, b))) else pa.binary()
    return None


def _is_binary(kind: pa.DataType) -> bool:
    fixed = pa.types.is_fixed_size_binary(kind)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or fixed)


def holds(kind: pa.DataType, value: Any) -> bool:
    """Whether a type holds a value unchanged. Arrow alone would truncate 1.5 to an int64 of 1."""
    try:
        return _same(pa.scalar(value, kind).as_py(), value)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return False


def _same(kept: Any, value: Any) -> bool:
    """Whether two values are equal. Absent and null fields of a struct are the same, and NaN equals itself."""
    if isinstance(value, dict) and isinstance(kept, dict):
        return all(_same(kept.get(name), entry) for name, entry in value.items())
    if isinstance(value, list) and isinstance(kept, list):
        return len(kept) == len(value) and all(map(_same, kept, value))
    return bool(kept == value or value != value)


def values_of(
    row: Mapping[str, Any], columns: Mapping[str, str], schema: pa.Schema, as_json: Iterable[str]
) -> tuple[dict[str, Any], list[str]]:
    """The kept values of a row by name in the scores, and a flag for each value that its column cannot hold."""
    values, flags = {}, []
    for name, column in columns.items():
        value = plain(row.get(column))
        if name in as_json:
            value = None if value is None else json.dumps(value, default=_text)
        elif not holds(schema.field(name).type, value):
            value = None
            flags.append(f"{LOST}:{name}")
        values[name] = value
    return values, flags


def plain(value: Any) -> Any:
    """A value with numpy arrays and numbers converted to Python lists and numbers."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):
        return {name: plain(entry) for name, entry in value.items()}
    if isinstance(value, list) and value and not isinstance(value[0], str | int | float):
        return [plain(entry) for entry in value]
    return value


def _text(value: Any) -> Any:
    """The text of a value that JSON has no type for."""
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
