"""The one configuration object: a TOML file, overridden by flags, checked before any work."""

import difflib
import os
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from armo_ray.errors import ConfigError
from armo_ray.families import FAMILIES

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
Options = TypeVar("Options", bound=BaseModel)
ROLES = ("system", "user", "assistant", "tool")
PARTS = (
    *(
        "prompt",
        "input",
        "history",
        "system",
        "tools",
        "prefix",
        "chosen",
        "rejected",
        "responses",
        "response",
    ),
    *("steps", "messages", "first", "second", "winner", "first_rating", "second_rating"),
)


class ScoreConfig(BaseModel):
    """What to score, with what, and where to write it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    input: Places = Field(min_length=1)
    """Shards to score: files, directories or globs of .parquet, .jsonl or .ndjson, plain, .gz or .zst."""
    output: NewPlace
    """Directory or URI of the output; an earlier run there is resumed."""
    model: Name
    """Checkpoint: a directory, its URI, or a hub id; several score in turn, each into OUTPUT/NAME[@REVISION]."""
    revision: Name | None = None
    """Branch, tag or commit of a hub id; of a URI, the revision that an earlier run recorded; one a model."""
    family: Name | None = None
    """Family of the model, by its name in the table of models; default: what its tensors tell."""
    layout: Name = "auto"
    """What a row holds: auto, preference, rollouts, messages, pairs, or a name that armo-ray layouts lists."""
    column: Mapping[str, Name] = {}
    """PART=COLUMN: a part under another name, or nested: prompt=question.full_text, responses=outputs[].text."""
    winner: Mapping[str, Name] = {}
    """VALUE=first, second, tie or skip: what the values of the column winner mean."""
    ignore: Names = ()
    """Columns that may hold a part of the conversation, to be left unread."""
    role: Mapping[str, Name] = {}
    """NAME=ROLE: what another name of a role in messages means: system, user, assistant or tool."""
    tool_calls: Literal["template", "text"] = "template"
    """Tools, their calls and reasoning: as the model's template renders them, or written into the text."""
    dtype: Literal["bfloat16", "float16", "float32", "fp8"] = "bfloat16"
    """Type of the backbone; heads are always float32."""
    min_agreement: float = Field(0.98, ge=-1, le=1)
    """With fp8: stop when its scores of a sample rank less like those of bfloat16 (Spearman)."""
    verify: bool = False
    """Check the model on a replica first, as armo-ray verify --model does, and stop where it fails."""
    max_length: int | None = Field(None, ge=1)
    """Longest conversation in tokens; default: what tokenizer, family and the model's positions all allow."""
    truncate: Literal["none", "left", "middle"] = "none"
    """Reject longer conversations (none), or drop the left or middle of their prompt and flag them."""
    special_tokens: Literal["plain", "reference"] = "plain"
    """Special-token texts in messages: plain text, or control tokens as in the released code."""
    token_budget: int | None = Field(None, ge=1)
    """Tokens in a forward pass; default: 16384 on a GPU, 1024 on a CPU."""
    fixed_packs: bool = False
    """Pad every forward pass to the token budget: a unit then scores to the same bits every time."""
    compile: bool = False
    """Compile the parts around attention with torch: a slower start, faster passes on a GPU."""
    date: Name | None = None
    """What replaces {date} in input and output, YYYY-MM-DD; default: yesterday, UTC."""
    days: int = Field(1, ge=1)
    """Days up to that date whose {date} inputs are read; what is committed of them is not scored again."""
    max_runtime: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Stop cleanly after 90s, 45m or 8h, with status 5; the same command goes on."""
    unit_rows: int = Field(2048, ge=1)
    """Candidates in a unit of work, which is committed as a whole."""
    keep: Mapping[str, Name] = {}
    """COLUMN or NAME=COLUMN of the input to carry into the scores."""
    keep_json: Mapping[str, Name] = {}
    """COLUMN or NAME=COLUMN to carry as JSON text, for values that no one Parquet type holds."""
    keep_text: bool = False
    """Add prompt and response as messages to the scores."""
    partition_by: Names = ()
    """Columns whose values become directories of the scores, below those of the input."""
    replicas: tuple[int, int] | None = None
    """MIN:MAX model replicas; default: one per GPU of the cluster, or one on its CPUs."""
    gpus_per_replica: float | None = Field(None, ge=0)
    """GPUs of a replica: 1, a fraction where several share one, 2 and more to split its layers, 0 for a CPU."""
    device: Name | None = None
    """Devices of a replica, as torch names them; default: its GPUs, or cpu."""
    wait: float = Field(10, ge=0)
    """Minutes to wait for a cluster to have the GPUs of the first MIN replicas."""
    redo: Places = ()
    """Shards of the input, URIs or globs: where they changed, drop what was scored of them and score them again."""
    forget: Places = ()
    """Shards no longer in the input, URIs or globs: drop what was scored of them."""
    max_reject_fraction: float = Field(0.01, ge=0, le=1)
    """Exit with status 3 when more than this fraction of candidates, or of shards, was rejected."""

    @model_validator(mode="before")
    @classmethod
    def _with_dates(cls, values: Any) -> Any:
        days = _days(values.get("date"), values.get("days", 1))
        found, inputs = dict(values), values.get("input")
        if isinstance(inputs, str | list | tuple):
            uris = [inputs] if isinstance(inputs, str) else inputs
            # every day of a URI with {date}, the others once
            found["input"] = list(dict.fromkeys(_dated(uri, day) for uri in uris for day in days))
        if isinstance(values.get("output"), str):
            found["output"] = _dated(values["output"], days[0])
        return found

    @field_validator("family")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in FAMILIES:
            raise ValueError(f"unknown family; expected {', '.join(FAMILIES)}")
        return value

    @field_validator("max_runtime", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        """90 and "90s" as 90.0, "45m" as 2700.0, "8h" as 28800.0."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if value is None or not found:
            return value
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]

    @field_validator("column", "keep", "keep_json", "winner", "role", mode="before")
    @classmethod
    def _paired(cls, value: Any) -> Any:
        """["a", "b=c"] as {"a": "a", "b": "c"}, and "a" as {"a": "a"}."""
        if not isinstance(value, list | tuple | str):
            return value
        pairs = [str(entry).partition("=")[::2] for entry in _listed(value)]
        return {name: column or name for name, column in pairs}

    @field_validator("model")
    @classmethod
    def _public(cls, value: str) -> str:
        check_uri(value)
        return value

    @field_validator("column")
    @classmethod
    def _parts(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(set(value) - set(PARTS)):
            raise ValueError(f"unknown part {', '.join(unknown)}; expected {', '.join(PARTS)}")
        return value

    @field_validator("winner")
    @classmethod
    def _verdicts(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if wrong := sorted(set(value.values()) - {"first", "second", "tie", "skip"}):
            raise ValueError(f"unknown verdict {wrong[0]}; expected VALUE=first, second, tie or skip")
        return value

    @field_validator("role")
    @classmethod
    def _roles(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(set(value.values()) - set(ROLES)):
            raise ValueError(f"unknown role {unknown[0]}; expected NAME=ROLE with one of {', '.join(ROLES)}")
        return value

    @field_validator("gpus_per_replica")
    @classmethod
    def _shareable(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and not value.is_integer():
            raise ValueError("expected a fraction of one GPU, or a whole number of them")
        return value

    @field_validator("replicas", mode="before")
    @classmethod
    def _range(cls, value: Any) -> Any:
        """4 as (4, 4), "2:8" as (2, 8)."""
        if isinstance(value, int):
            value = str(value)
        if isinstance(value, str):
            low, _, high = value.partition(":")
            if not (low.isdigit() and (high or low).isdigit()):
                raise ValueError("expected N or MIN:MAX")
            value = (int(low), int(high or low))
        return value

    @field_validator("replicas")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and not 1 <= value[0] <= value[1]:
            raise ValueError("expected 1 <= MIN <= MAX")
        return value


def _dated(uri: Any, day: str) -> Any:
    return uri.replace("{date}", day) if isinstance(uri, str) else uri


def _days(last: Any, count: Any) -> list[str]:
    """So many days up to one, by default up to yesterday, the last first."""
    try:
        until = date.fromisoformat(str(last)) if last else datetime.now(UTC).date() - timedelta(1)
    except ValueError:
        raise ValueError(f"date {last}: expected YYYY-MM-DD") from None
    return [str(until - timedelta(back)) for back in range(int(count) if str(count).isdigit() else 1)]


def check_uri(uri: str) -> None:
    """Refuse a URI that holds credentials: it would be stored with the output and logged.

    Raises ConfigError that does not repeat them.
    """
    protocol, separator, rest = uri.partition("://")
    if not separator or protocol == "file":
        return
    authority = rest.split("/", 1)[0]
    # a secret may hold slashes; the name of a bucket holds no colon, unless it is an ARN
    in_bucket = ":" in authority and not authority.startswith("arn:")
    if ("@" in authority if protocol in ("http", "https") else in_bucket) or _SIGNED.search(uri):
        raise ConfigError(
            f"{protocol}://***: a URI must not hold credentials: put them into the environment or a profile "
            f"(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
        )


# a query that signs a request, as S3, Google and Azure write it
_SIGNED = re.compile(r"(?i)[?&](sig|signature|x-amz-\w+|x-goog-\w+|awsaccesskeyid|token|key|secret)=")


def _read_text(file: str) -> str:
    return Path(file).read_text("utf-8-sig")


def load_config(
    file: str | None, overrides: Mapping[str, Any], read: Callable[[str], str] = _read_text
) -> ScoreConfig:
    """The configuration of a scoring run; see `load_options`."""
    return load_options(ScoreConfig, file, overrides, read)


def load_options(
    kind: type[Options],
    file: str | None,
    overrides: Mapping[str, Any],
    read: Callable[[str], str] = _read_text,
) -> Options:
    """The options in a TOML file, if any, which `read` reads, with the overrides put on top.

    Raises ConfigError that names the file or option, the fault, and what was expected.
    """
    return _checked(kind, _values(file, read) | dict(overrides), file)


def load_configs(
    file: str | None, overrides: Mapping[str, Any], read: Callable[[str], str] = _read_text
) -> list[ScoreConfig]:
    """The configurations of a scoring run with several models: each writes an output of its own, OUTPUT/NAME,
    or OUTPUT/NAME@REVISION where several have that name.

    Raises ConfigError as `load_options` does, and where there is not one revision for each model, or none.
    """
    values = _values(file, read) | dict(overrides)
    models, revisions = _listed(values.get("model")), _listed(values.get("revision"))
    if len(models) < 2:
        only = {name: listed[0] for name, listed in (("model", models), ("revision", revisions)) if listed}
        return [_checked(ScoreConfig, values | only, file)]
    if revisions and len(revisions) != len(models):
        raise ConfigError(f"revision: {len(models)} models have {len(models)} or none, not {len(revisions)}")
    names = [str(model).rstrip("/").rpartition("/")[2] for model in models]
    for i in [i for i, name in enumerate(names) if revisions and names.count(name) > 1]:
        names[i] += f"@{revisions[i]}".replace("/", "-")
    if again := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f"model: the outputs of two would both be named {again[0]}: score them one by one")
    output = str(values.get("output") or "").rstrip("/")
    own = [
        {"model": model, "revision": revision, **({"output": f"{output}/{name}"} if output else {})}
        for model, revision, name in zip(models, revisions or [None] * len(models), names, strict=True)
    ]
    return [_checked(ScoreConfig, values | one, file) for one in own]


def _listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [] if value is None else [value]


def _values(file: str | None, read: Callable[[str], str]) -> dict[str, Any]:
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


def _checked(kind: type[Options], values: Mapping[str, Any], file: str | None) -> Options:
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
