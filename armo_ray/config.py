"""The one configuration object: a TOML file, overridden by flags, checked before any work."""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from armo_ray.errors import ConfigError

Name = Annotated[str, StringConstraints(min_length=1, strip_whitespace=True)]
Options = TypeVar("Options", bound=BaseModel)
PARTS = ("prompt", "system", "chosen", "rejected", "responses", "response", "messages")


class ScoreConfig(BaseModel):
    """What to score, with what, and where to write it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, hide_input_in_errors=True
    )

    input: tuple[Name, ...] = Field(min_length=1)
    """Shards to score: files, directories or globs of .parquet, .jsonl, .jsonl.gz, .jsonl.zst."""
    output: Name
    """Directory or URI of the output; an earlier run there is resumed."""
    model: Name
    """Checkpoint: a directory, its URI, or a hub id."""
    revision: Name | None = None
    """Branch, tag or commit of a hub id; of a URI, the revision that an earlier run recorded."""
    layout: Literal["auto", "preference", "rollouts", "messages"] = "auto"
    """What a row holds; auto tells it from the columns."""
    column: Mapping[str, Name] = {}
    """PART=COLUMN: prompt, system, chosen, rejected, responses, response or messages under another name."""
    dtype: Literal["bfloat16", "float16", "float32", "fp8"] = "bfloat16"
    """Type of the backbone; heads are always float32."""
    min_agreement: float = Field(0.98, ge=-1, le=1)
    """With fp8: stop when its scores of a sample rank less like those of bfloat16 (Spearman)."""
    verify: bool = False
    """Check the model on a replica first, as armo-ray verify --model does, and stop where it fails."""
    max_length: int | None = Field(None, ge=1)
    """Longest conversation in tokens; default: the tokenizer's limit, bounded by the model's positions."""
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
    """What replaces {date} in input and output; default: today, UTC."""
    max_runtime: float | None = None
    """Stop cleanly after 90s, 45m or 8h, with status 5; the same command goes on."""
    unit_rows: int = Field(2048, ge=1)
    """Candidates in a unit of work, which is committed as a whole."""
    keep: Mapping[str, Name] = {}
    """COLUMN or NAME=COLUMN of the input to carry into the scores."""
    keep_text: bool = False
    """Add prompt and response as messages to the scores."""
    partition_by: tuple[Name, ...] = ()
    """Columns whose values become directories of the scores, below those of the input."""
    replicas: tuple[int, int] | None = None
    """MIN:MAX model replicas; default: one per GPU of the cluster, or one on its CPUs."""
    gpus_per_replica: float | None = Field(None, ge=0, le=1)
    """GPUs of a replica: 1, a fraction where several share one, 0 for a CPU; default: 1 where there are any."""
    device: Name | None = None
    """Device of a replica, as torch names it; default: cuda where a replica has GPUs, else cpu."""
    wait: float = Field(10, ge=0)
    """Minutes to wait for a cluster to have the GPUs of the first MIN replicas."""
    max_reject_fraction: float = Field(0.01, ge=0, le=1)
    """Exit with status 3 when more than this fraction of candidates, or of shards, was rejected."""

    @model_validator(mode="before")
    @classmethod
    def _dated(cls, values: Any) -> Any:
        date = str(values.get("date") or datetime.now(UTC).date())

        def put(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [put(entry) for entry in value]
            return value.replace("{date}", date) if isinstance(value, str) else value

        return values | {name: put(values[name]) for name in ("input", "output") if name in values}

    @field_validator("max_runtime", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        """90 and "90s" as 90.0, "45m" as 2700.0, "8h" as 28800.0."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if value is None or not found:
            return value
        return float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]]

    @field_validator("input", "partition_by", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("column", "keep", mode="before")
    @classmethod
    def _paired(cls, value: Any) -> Any:
        """["a", "b=c"] as {"a": "a", "b": "c"}."""
        if not isinstance(value, list | tuple):
            return value
        pairs = [str(entry).partition("=")[::2] for entry in value]
        return {name: column or name for name, column in pairs}

    @field_validator("input", "output", "model")
    @classmethod
    def _public(cls, value: Any) -> Any:
        for uri in (value,) if isinstance(value, str) else value:
            check_uri(uri)
        return value

    @field_validator("column")
    @classmethod
    def _parts(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(set(value) - set(PARTS)):
            raise ValueError(f"unknown part {', '.join(unknown)}; expected {', '.join(PARTS)}")
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
    return Path(file).read_text("utf-8")


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
    values: dict[str, Any] = {}
    if file is not None:
        try:
            values = tomllib.loads(read(file))
        except OSError as error:
            raise ConfigError(f"config {file}: {error.strerror}; data to score go behind --input") from error
        except ConfigError as error:
            raise ConfigError(f"config {error}") from None
        except ValueError as error:
            raise ConfigError(f"config {file}: not valid TOML: {error}") from error
    values = {name.replace("-", "_"): value for name, value in values.items()}
    try:
        return kind.model_validate(values | dict(overrides))
    except ValidationError as error:
        told = "; ".join(f"{_option(fault['loc'])}: {_say(fault, kind)}" for fault in error.errors())
        raise ConfigError(told if file is None else f"{told} (config {file} and flags)") from None


def _option(location: tuple[Any, ...]) -> str:
    return ".".join(str(part).replace("_", "-") for part in location)


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
