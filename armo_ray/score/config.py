"""The configuration of a scoring run: a TOML file, overridden by flags, checked before any work."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES
from armo_ray.options import (
    Name,
    Names,
    NewPlace,
    Options,
    Places,
    checked,
    listed,
    load_options,
    read_file,
    read_values,
)
from armo_ray.storage.uris import check_uri

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


class ScoreConfig(Options):
    """What to score, with what, and where to write it."""

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
        dated, inputs = dict(values), values.get("input")
        if isinstance(inputs, str | list | tuple):
            uris = [inputs] if isinstance(inputs, str) else inputs
            # a URI with {date} once for every day, other URIs once
            dated["input"] = list(dict.fromkeys(_dated(uri, day) for uri in uris for day in days))
        if isinstance(values.get("output"), str):
            dated["output"] = _dated(values["output"], days[0])
        return dated

    @field_validator("family")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in FAMILIES:
            raise ValueError(f"unknown family; expected {', '.join(FAMILIES)}")
        return value

    @field_validator("max_runtime", mode="before")
    @classmethod
    def _seconds(cls, value: Any) -> Any:
        """Convert to seconds: 90 and "90s" to 90.0, "45m" to 2700.0, "8h" to 28800.0."""
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", str(value))
        if value is None or not match:
            return value
        return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]

    @field_validator("column", "keep", "keep_json", "winner", "role", mode="before")
    @classmethod
    def _paired(cls, value: Any) -> Any:
        """Convert ["a", "b=c"] to {"a": "a", "b": "c"}, and "a" to {"a": "a"}."""
        if not isinstance(value, list | tuple | str):
            return value
        pairs = [str(entry).partition("=")[::2] for entry in listed(value)]
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
        """Convert 4 to (4, 4) and "2:8" to (2, 8)."""
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
    """The dates of `count` days that end with `last` (default: yesterday, UTC), latest first."""
    try:
        until = date.fromisoformat(str(last)) if last else datetime.now(UTC).date() - timedelta(1)
    except ValueError:
        raise ValueError(f"date {last}: expected YYYY-MM-DD") from None
    return [str(until - timedelta(back)) for back in range(int(count) if str(count).isdigit() else 1)]


def load_config(
    file: str | None, overrides: Mapping[str, Any], read: Callable[[str], str] = read_file
) -> ScoreConfig:
    """The configuration of a scoring run; see `load_options`."""
    return load_options(ScoreConfig, file, overrides, read)


def load_configs(
    file: str | None, overrides: Mapping[str, Any], read: Callable[[str], str] = read_file
) -> list[ScoreConfig]:
    """One configuration per model. With several models, each has its own output: OUTPUT/NAME.

    If several models have the same name and revisions are given, it is OUTPUT/NAME@REVISION.

    Raises ConfigError as `load_options` does, if the number of revisions is neither 0 nor that of the models, and if
    two models would have the same output.
    """
    values = read_values(file, read) | dict(overrides)
    models, revisions = listed(values.get("model")), listed(values.get("revision"))
    if len(models) < 2:
        only = {name: listed[0] for name, listed in (("model", models), ("revision", revisions)) if listed}
        return [checked(ScoreConfig, values | only, file)]
    if revisions and len(revisions) != len(models):
        raise ConfigError(
            f"revision: expected none or one for each of the {len(models)} models, not {len(revisions)}"
        )
    names = [str(model).rstrip("/").rpartition("/")[2] for model in models]
    for i in [i for i, name in enumerate(names) if revisions and names.count(name) > 1]:
        names[i] += f"@{revisions[i]}".replace("/", "-")
    if repeated := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"model: the outputs of two models would both be named {repeated[0]}: score them one by one"
        )
    output = str(values.get("output") or "").rstrip("/")
    settings = [
        {"model": model, "revision": revision, **({"output": f"{output}/{name}"} if output else {})}
        for model, revision, name in zip(models, revisions or [None] * len(models), names, strict=True)
    ]
    return [checked(ScoreConfig, values | of_model, file) for of_model in settings]
