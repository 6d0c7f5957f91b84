"""Options of a command: a TOML file, overridden by flags, checked before any work."""

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
)

from armo_ray.errors import ConfigError
from armo_ray.storage.uris import check_uri

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Names = Annotated[
    tuple[Name, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str) else value)
]
_SUBMITTED = "/runtime_resources/working_dir_files/"  # where Ray unpacks --working-dir, and deletes it again


def _absolute(uri: str) -> str:
    """A local path from the root on: a worker's working directory is another one."""
    check_uri(uri)
    return uri if "://" in uri else os.path.abspath(os.path.expanduser(uri))


def _lasting(path: str) -> str:
    if _SUBMITTED in path:
        raise ValueError(
            "a relative path in a submitted job: Ray deletes its working directory; give a URI or /path"
        )
    return path


Place = Annotated[Name, AfterValidator(_absolute)]  # a URI, or an absolute path
Places = Annotated[Names, AfterValidator(lambda uris: tuple(map(_absolute, uris)))]
NewPlace = Annotated[Place, AfterValidator(_lasting)]  # that is written to
Finite = Annotated[float, Field(allow_inf_nan=False)]


class Options(BaseModel):
    """What the options of every command have in common."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )


AnyOptions = TypeVar("AnyOptions", bound=Options)


def read_file(file: str) -> str:
    return Path(file).read_text("utf-8-sig")


def load_options(
    kind: type[AnyOptions],
    file: str | None,
    overrides: Mapping[str, Any],
    read: Callable[[str], str] = read_file,
) -> AnyOptions:
    """The options in a TOML file, if any, which `read` reads, with the overrides put on top.

    Raises ConfigError that names the file or option, the fault, and what was expected.
    """
    return checked(kind, read_values(file, read) | dict(overrides), file)


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def read_values(file: str | None, read: Callable[[str], str]) -> dict[str, Any]:
    """The options in a TOML file, by the names of their fields."""
    if file is None:
        return {}
    try:
        values = tomllib.loads(read(file))
    except OSError as error:
        raise ConfigError(f"config {file}: {error.strerror}; data to score go behind --input") from error
    except ConfigError as error:
        raise ConfigError(f"config {error}") from None
    except ValueError as error:
        raise ConfigError(f"config {file}: not valid TOML: {error}") from error
    return {name.replace("-", "_"): value for name, value in values.items()}


def checked(kind: type[AnyOptions], values: Mapping[str, Any], file: str | None) -> AnyOptions:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        told = "; ".join(_fault(fault, kind) for fault in error.errors())
        raise ConfigError(told if file is None else f"{told} (config {file} and flags)") from None


def _fault(fault: Any, kind: type[BaseModel]) -> str:
    where = ".".join(str(part).replace("_", "-") for part in fault["loc"])
    # without a place it is of several options, which it names
    return f"{where}: {_say(fault, kind)}" if where else str(fault["ctx"]["error"])


def _say(fault: Any, kind: type[BaseModel]) -> str:
    if fault["type"] == "missing":
        return "required, as a flag or in the TOML file"
    if fault["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(fault["loc"][-1]), kind.model_fields, 1)
        return "unknown option" + (f"; did you mean {close[0]}?" if close else "")
    message: str = fault["msg"].removeprefix("Value error, ")
    if "ctx" in fault and isinstance(fault["ctx"].get("error"), ConfigError):  # it says all that may be said
        return message
    return f"{message[0].lower()}{message[1:]} (got {fault['input']!r})"
