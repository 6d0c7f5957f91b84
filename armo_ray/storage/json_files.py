"""The JSON files of an output: writing them, and checking them when they are read.

Commit records, `_run.json` and `_SUCCESS` hold a checksum of their own content. Files of earlier versions have none;
only their values are checked.
"""

import hashlib
import json
import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, NamedTuple

import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.storage.filesystem import check_input, is_remote
from armo_ray.storage.formats import kind_of

CHECKSUM = "checksum"
_ALGORITHM = "blake2b:"  # prefix of a checksum, by which it is recognized even if its key is damaged
_UNIT = r"[0-9a-f]{32}(?:-unreadable)?"
_FOLDER = r"[\w.~%-]*=[\w.~%-]*/"  # as armo_ray.storage.parts.hive writes it
_PART = re.compile(
    rf"(?:(?:scores|hidden)/(?:{_FOLDER})*|(?:rejects|prompts)/)part-({_UNIT})\.(?:parquet|jsonl)", re.ASCII
)
_DIGEST = re.compile(r"[0-9a-f]{32}")


class Kind(NamedTuple):
    """The checks on the values of a file: `needed` for the keys that it must have, `known` for those it may have."""

    needed: Mapping[str, Callable[[Any], bool]]
    known: Mapping[str, Callable[[Any], bool]]


def digest_of(content: bytes) -> str:
    """128-bit BLAKE2b, as 32 hex digits."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def checksum_of(content: Mapping[str, Any]) -> str:
    """The checksum of all values except the checksum itself, independent of their formatting."""
    rest = {name: value for name, value in content.items() if name != CHECKSUM}
    return _ALGORITHM + digest_of(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """32 hex digits that identify the settings that rows, columns and units of a run depend on."""
    return digest_of(json.dumps(identity, sort_keys=True).encode())


def to_json(content: Mapping[str, Any]) -> bytes:
    """JSON with sorted keys and a newline at the end."""
    return json.dumps(content, indent=1, sort_keys=True, default=str).encode() + b"\n"


def sealed(content: Mapping[str, Any]) -> bytes:
    """JSON with a checksum of its own content."""
    plain = json.loads(json.dumps(content, default=str))  # as reading it back gives it
    return to_json({**plain, CHECKSUM: checksum_of(plain)})


def parse(raw: bytes, kind: Kind) -> dict[str, Any]:
    """The content of a file. Raises ValueError that says what is wrong with the file."""
    try:
        content = json.loads(raw, object_pairs_hook=_interned)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not valid JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"expected a JSON object, found {type(content).__name__}")
    if missing := sorted(kind.needed.keys() - content.keys()):
        raise ValueError(f"it lacks {', '.join(missing)}")
    _check_checksum(content)
    for name, is_right in {**kind.needed, **kind.known}.items():
        if name in content and not is_right(content[name]):
            raise ValueError(f"its {name} cannot be {shortened(content[name])}")
    return content


def unit_of(path: str) -> str | None:
    """The id of the unit that wrote a part, from its path in the output; None if it is not the path of a part."""
    match = _PART.fullmatch(path)
    return match and match[1]


def _check_checksum(content: Mapping[str, Any]) -> None:
    if CHECKSUM in content:
        if content[CHECKSUM] != checksum_of(content):
            raise ValueError("its content does not match its checksum: it was changed after it was written")
    elif any(isinstance(value, str) and value.startswith(_ALGORITHM) for value in content.values()):
        raise ValueError("the key of its checksum was changed")


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object from its keys and values. Raises ValueError if it has a key twice: one of the values would be lost."""
    content = dict(pairs)
    if len(content) < len(pairs):
        ((name, _),) = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"an object has the key {json.dumps(name, ensure_ascii=False)} twice")
    return content


def _interned(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object with interned keys: hundreds of thousands of records have the same ones."""
    return {sys.intern(name): value for name, value in pairs}


def shortened(value: Any) -> str:
    """A value for a message, cut to 100 characters."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and value >= 0


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _each(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """A check that a value is an object and that each of its values passes `is_right`."""
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def _is_unit(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(_UNIT, value) is not None


def _is_source(value: Any) -> bool:
    """Whether this can be the URI of a shard: commands open the files that records name."""
    if not isinstance(value, str) or kind_of(value) is None:
        return False
    try:
        check_input(value)
    except ConfigError:
        return False
    return is_remote(value) or value.startswith("/")


def _is_time(value: Any) -> bool:
    try:
        datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return False
    return True


def _is_part(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and isinstance(value.get("path"), str)
        and unit_of(value["path"]) is not None
        and _is_count(value.get("rows"))
        and _is_count(value.get("bytes"))
        and isinstance(digest := value.get("digest", "0" * 32), str)
        and _DIGEST.fullmatch(digest) is not None
    )


def _is_merged(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) > 1
        and all(
            isinstance(unit, dict)
            and unit.keys() <= {"unit", "first_row", "num_rows", "content"}
            and _is_unit(unit.get("unit"))
            and _is_count(unit.get("first_row"))
            and _is_count(unit.get("num_rows"))
            and isinstance(unit.get("content", ""), str)
            for unit in value
        )
    )


def _are_parts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_part, value))


def _are_parts_or_null(value: Any) -> bool:
    return value is None or _are_parts(value)


def _is_totals(value: Any) -> bool:
    return isinstance(value, dict) and _each(_is_count)(value.get("rejected"))


def _is_layout(value: Any) -> bool:
    return isinstance(value, dict) and _is_text(value.get("kind"))


def _is_identity(value: Any) -> bool:
    kinds = {"layout": _is_layout, "keep_text": _is_bool, "dtype": _is_text, "family": _is_text}
    kinds |= {"unit_rows": _is_count, "chat_fingerprint": _is_text}
    if not isinstance(value, dict) or ("chat_fingerprint" in value and kinds.keys() - value.keys()):
        return False
    return all(is_right(value[name]) for name, is_right in kinds.items() if name in value)


def _is_schema(value: Any) -> bool:
    try:
        pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(value)))
    except (TypeError, ValueError, OSError, pa.ArrowException):
        return False
    return True


RUN = Kind(
    {"identity": _is_identity},
    {"config": _is_object, "versions": _is_object, "carried": _is_schema, "made_by": _is_object},
)
OWNER = Kind({"run": _is_text, "host": _is_text, "pid": _is_count, "since": _is_text}, {})
MANIFEST = Kind(
    {"totals": _is_totals, "parts": _are_parts_or_null},
    {"run_fingerprint": _is_text, "parts_in": _is_text, "num_parts": _is_count, "parts_digest": _is_text},
)
RECORD = Kind(
    {
        "unit": _is_unit,
        "source": _is_source,
        "identity": _is_text,
        "ordinal": _is_count,
        "first_row": _is_count,
        "num_rows": _is_count,
        "last": _is_bool,
        "candidates": _is_count,
        "scored": _is_count,
        "rejected": _each(_is_count),
        "num_tokens": _is_count,
        "computed_tokens": _is_count,
        "parts": _are_parts,
    },
    {
        "run_fingerprint": _is_text,
        "seconds": _each(_is_number),
        "began": _is_number,
        "load_seconds": _is_number,
        "committed_at": _is_time,
        "merged": _is_merged,
        "packed_tokens": _is_count,
        "pack_capacity": _is_count,
        "flops": _is_number,
        "peak_flops": _is_number_or_null,
    },
)
