"""The options of a command: read from a TOML file, overridden by flags, and checked before any work starts.

Each command declares its options as fields of a model derived from `Options`. The field is the only source: its type
and constraints check the value, its docstring is the text in --help, and a `Help` in its annotation gives the group and
metavar there.
"""

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
)

from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES
from armo_ray.model.family_file import SUFFIX, family_of
from armo_ray.storage.uris import check_uri

# where Ray unpacks --working-dir, and deletes it afterwards
_SUBMITTED = "/runtime_resources/working_dir_files/"

DATE = "{date}"  # in a place: the day of --date
_PLACEHOLDER = re.compile(r"\{[^{}/]*\}")

# Names that options no longer have, and what to write instead.
_RENAMED = {
    "tokens_per_second": "renamed to --computed-tokens-per-second: the tokens a replica computes, with each shared "
    "prefix counted once. The tokens/s of report and bench counts every conversation whole, so it is a larger number"
}


class Help(NamedTuple):
    """Where an option appears in --help, and how.

    group: the heading it is listed under; "required" comes first.
    metavar: stands for its value; default: N for an integer, X for a number, and the choices for a choice.
    word: whether it is given as a word instead of a flag.
    several: whether the flag takes several values, although the field holds one.
    flag: its name, if that is not the name of the field.
    """

    group: str
    metavar: str = ""
    word: bool = False
    several: bool = False
    flag: str = ""


def stripped(value: Any) -> Any:
    """A text without the white space around it; anything else as it is."""
    return value.strip() if isinstance(value, str) else value


@cache  # so that all places of a command that runs over midnight are of one day
def _yesterday() -> date:
    return datetime.now(UTC).date() - timedelta(1)


def day_of(value: Any) -> date:
    """The day that a date option gives; None stands for yesterday, UTC. Raises ValueError."""
    try:
        return _yesterday() if value is None else date.fromisoformat(str(value).strip())
    except ValueError:
        raise ValueError("expected YYYY-MM-DD") from None


def _dated(uri: str, info: ValidationInfo) -> str:
    """A place with its {date} replaced. Raises ConfigError if another placeholder is in it."""
    check_uri(uri)
    uri = uri.replace(DATE, str(day_of((info.data or {}).get("date"))))
    if left := _PLACEHOLDER.search(uri):
        raise ConfigError(f"unknown placeholder {left[0]} in {uri}; the only one is {DATE}")
    return uri


def _absolute(uri: str) -> str:
    """A URI as it is, a local path as an absolute one: workers run in other directories."""
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _lasting(path: str) -> str:
    if _SUBMITTED in path:
        raise ValueError(
            "a relative path in a submitted job: Ray deletes its working directory; give a URI or /path"
        )
    return path


def _seconds(value: Any) -> Any:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
    if value is None or not match:
        return value
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def _known_family(name: str) -> str:
    if name.endswith(SUFFIX):
        name = _absolute(name)
    elif name not in FAMILIES:
        raise ValueError(f"unknown family; expected {', '.join(FAMILIES)}, or a TOML file")
    family_of(name)  # may raise ConfigError
    return name


def _public(uri: str) -> str:
    check_uri(uri)
    return uri


Name = Annotated[str, BeforeValidator(stripped), Field(min_length=1)]
Names = Annotated[
    tuple[Name, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
GivenPlace = Annotated[Name, AfterValidator(_dated)]  # a URI or path, as it is given
Place = Annotated[GivenPlace, AfterValidator(_absolute)]  # a URI, or an absolute path
Places = Annotated[
    Names, AfterValidator(lambda uris, info: tuple(_absolute(_dated(uri, info)) for uri in uris))
]
DatedNames = Annotated[
    Names, AfterValidator(lambda names, info: tuple(_dated(name, info) for name in names))
]  # with {date} replaced
NewPlace = Annotated[Place, AfterValidator(_lasting)]  # a place to write to
ModelName = Annotated[Name, AfterValidator(_public)]  # a directory, its URI, or a hub id
FamilyName = Annotated[Name, AfterValidator(_known_family)]
Beta = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Dtype = Literal["bfloat16", "float16", "float32", "fp8"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Day = Annotated[str | None, BeforeValidator(lambda value: value if value is None else str(day_of(value)))]
Seconds = Annotated[  # 90 and "90s" are 90.0, "45m" is 2700.0, "8h" is 28800.0
    float | None, Field(gt=0, allow_inf_nan=False), BeforeValidator(_seconds)
]


class Options(BaseModel):
    """The base of every command's options."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        defer_build=True,  # --help reads the fields and builds no validator
    )


class DatedOptions(Options):
    """The options of a command that reads or writes places: {date} in them stands for a day.

    `date` is the first field, because the places that follow are checked with its value.
    """

    date: Annotated[Day, Help("running", "YYYY-MM-DD")] = None
    """Replaces {date} in inputs and outputs; default: yesterday, UTC."""


AnyOptions = TypeVar("AnyOptions", bound=Options)


class Given(NamedTuple):
    """What a command line gives: a TOML file, if any, and the values of flags and words by field name."""

    file: str | None
    values: Mapping[str, Any]

    def of(self, kind: type[Options]) -> dict[str, Any]:
        """The values that are fields of these options."""
        return {name: value for name, value in self.values.items() if name in kind.model_fields}


def load_options(kind: type[AnyOptions], file: str | None, overrides: Mapping[str, Any]) -> AnyOptions:
    """The options in a TOML file, if any, overridden by these values.

    Raises ConfigError, which names the file or option, what is wrong, and what was expected.
    """
    return checked(kind, read_values(file) | dict(overrides), file)


def listed(value: Any) -> list[Any]:
    """A list as it is, one value as a list of it, None as an empty list."""
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def read_values(file: str | None, hint: str = "; name the data to score with --input") -> dict[str, Any]:
    """The values in a TOML file, a path or URI, by field name. Raises ConfigError, with `hint` if there is no file."""
    if file is None:
        return {}
    try:
        values = tomllib.loads(_read_text(file))
    except OSError as error:
        raise ConfigError(f"config {file}: {error.strerror}{hint}") from error
    except ConfigError as error:
        raise ConfigError(f"config {error}") from None
    except ValueError as error:
        raise ConfigError(f"config {file}: not valid TOML: {error}") from error
    return {name.replace("-", "_"): value for name, value in values.items()}


def _read_text(file: str) -> str:
    if "://" not in file:
        return Path(file).read_text("utf-8-sig")
    from armo_ray.storage.filesystem import read_text  # fsspec

    return read_text(file)


def checked(kind: type[AnyOptions], values: Mapping[str, Any], file: str | None) -> AnyOptions:
    """The options that hold these values, some of which the file may give. Raises ConfigError."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_describe(fault, kind) for fault in error.errors())
        raise ConfigError(faults if file is None else f"{faults} (config {file} and flags)") from None


def describe_renamed(flag: str) -> str | None:
    """What to write instead of a flag or TOML key that was renamed; None for any other."""
    return _RENAMED.get(flag.removeprefix("--").replace("-", "_"))


def _describe(fault: Any, kind: type[BaseModel]) -> str:
    where = ".".join(str(part).replace("_", "-") for part in fault["loc"])
    # a check of several options has no place, but names them
    return f"{where}: {_say(fault, kind)}" if where else str(fault["ctx"]["error"])


def _say(fault: Any, kind: type[BaseModel]) -> str:
    if fault["type"] == "missing":
        return "required, as a flag or in the TOML file"
    if fault["type"] == "extra_forbidden":
        name = str(fault["loc"][-1])
        close = difflib.get_close_matches(name, kind.model_fields, 1)
        return describe_renamed(name) or "unknown option" + (f"; did you mean {close[0]}?" if close else "")
    message: str = fault["msg"].removeprefix("Value error, ")
    if "ctx" in fault and isinstance(fault["ctx"].get("error"), ConfigError):
        return message  # without the value, which may hold a secret
    return f"{message[0].lower()}{message[1:]} (got {fault['input']!r})"
