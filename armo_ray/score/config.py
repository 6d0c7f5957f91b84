"""The options of a scoring run, and the checks that go beyond their types."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice
from armo_ray.model.reference import Reference, given_by
from armo_ray.options import (
    DATE,
    Beta,
    DatedOptions,
    Day,
    Dtype,
    FamilyName,
    Help,
    ModelName,
    Name,
    Names,
    NewPlace,
    Places,
    Seconds,
    checked,
    day_of,
    listed,
    load_options,
    read_values,
)

ROLES = ("system", "user", "assistant", "tool")
COLUMN_ROLES = (
    *("prompt", "input", "history", "system", "tools", "prefix", "chosen", "rejected", "responses"),
    *("response", "steps", "messages", "first", "second", "winner", "first_rating", "second_rating"),
)


class ScoreConfig(DatedOptions):
    """What to score, with which model, and where to write it."""

    input: Annotated[Places, Help("required", "URI")] = Field(min_length=1)
    """Files, directories or globs of .parquet, .jsonl or .ndjson (.gz, .zst)."""
    output: Annotated[NewPlace, Help("required", "DIR")]
    """Directory or URI; a stopped run is resumed. Several models write to OUTPUT/NAME, or OUTPUT/NAME@REVISION."""
    model: Annotated[ModelName, Help("required", "MODEL", several=True)]
    """Checkpoint: a directory, its URI, or a hub id."""

    layout: Annotated[Name, Help("reading", "NAME")] = "auto"
    """Kind of rows: preference, rollouts, messages, pairs, or a name that armo-ray layouts lists."""
    column: Annotated[Mapping[str, Name], Help("reading", "NAME=COLUMN")] = {}
    """Columns to read, by name: prompt=question.text, responses=outputs[].text."""
    winner: Annotated[Mapping[str, Name], Help("reading", "VALUE=RESULT")] = {}
    """Meaning of a value in the winner column: first, second, tie or skip."""
    ignore: Annotated[Names, Help("reading", "COLUMN")] = ()
    """Columns to leave unread, though they may be part of a conversation."""
    role: Annotated[Mapping[str, Name], Help("reading", "NAME=ROLE")] = {}
    """Role that a name in messages means: system, user, assistant or tool."""
    tool_calls: Annotated[Literal["template", "text"], Help("reading")] = "template"
    """Read tools, tool calls and reasoning by the chat template, or as text."""
    special_tokens: Annotated[Literal["plain", "reference"], Help("reading")] = "plain"
    """Read special tokens in messages as plain text, or as control tokens like the released code."""
    max_length: Annotated[int | None, Help("reading", "TOKENS")] = Field(None, ge=1)
    """Longest conversation, in tokens; default: the most the model allows."""
    truncate: Annotated[Literal["none", "left", "middle"], Help("reading")] = "none"
    """Reject longer conversations (none), or cut the left or middle of their prompt and flag them."""
    date: Annotated[Day, Help("reading", "YYYY-MM-DD")] = None
    """Replaces {date} in --input and --output; default: yesterday, UTC."""
    days: Annotated[int, Help("reading", "N")] = Field(1, ge=1)
    """Read the {date} inputs of N days up to --date."""

    revision: Annotated[Name | None, Help("the model", "NAME", several=True)] = None
    """Branch, tag or commit on the hub; for a URI, the revision an earlier run recorded. Give one per model."""
    family: Annotated[FamilyName | None, Help("the model", "NAME")] = None
    """Family, or a TOML file of one; default: recognized by its tensors."""
    reference_model: Annotated[ModelName | None, Help("the model", "MODEL")] = None
    """Of dpo or prm-eurus: the model before training; memory holds both."""
    reference_revision: Annotated[Name | None, Help("the model", "NAME")] = None
    """Branch, tag or commit of the reference model."""
    beta: Annotated[Beta | None, Help("the model", "X")] = None
    """Factor of log ratios; default: of dpo 0.1, of prm-eurus 0.001."""
    length_normalized: Annotated[bool, Help("the model")] = False
    """With --family dpo: divide the reward by the number of response tokens."""
    dtype: Annotated[Dtype, Help("the model")] = "bfloat16"
    """Type of the backbone; heads are always float32."""
    min_agreement: Annotated[float, Help("the model", "RHO")] = Field(0.98, ge=-1, le=1)
    """With fp8: stop if scores of a sample agree less with bfloat16 (Spearman)."""
    verify: Annotated[bool, Help("the model")] = False
    """First check the model on a replica; stop if the check fails."""

    keep: Annotated[Mapping[str, Name], Help("what is written", "COLUMN")] = {}
    """Input columns to copy into the scores, as COLUMN or NAME=COLUMN."""
    keep_json: Annotated[Mapping[str, Name], Help("what is written", "COLUMN")] = {}
    """The same, as JSON text: for values that fit no single Parquet type."""
    keep_text: Annotated[bool, Help("what is written")] = False
    """Add prompt and response to the scores, as messages."""
    partition_by: Annotated[Names, Help("what is written", "COLUMN")] = ()
    """Columns to partition by, besides those of the input's directories."""

    replicas: Annotated[tuple[int, int] | None, Help("running", "MIN:MAX")] = None
    """Model replicas, N or MIN:MAX; default: one per GPU, or one on the CPUs."""
    gpus_per_replica: Annotated[float | None, Help("running", "X")] = Field(None, ge=0)
    """0 for the CPU, a fraction to share a GPU, 2 or more to split the layers."""
    device: Annotated[Name | None, Help("running", "NAME")] = None
    """Devices of a replica, as torch names them; default: its GPUs, or cpu."""
    wait: Annotated[float, Help("running", "MINUTES")] = Field(10, ge=0)
    """How long to wait for the GPUs of the first MIN replicas."""
    token_budget: Annotated[int | None, Help("running", "TOKENS")] = Field(None, ge=1)
    """Tokens per forward pass; default: 16384 on a GPU, 1024 on a CPU."""
    fixed_packs: Annotated[bool, Help("running")] = False
    """Pad all passes to one size, which makes scores reproducible to the bit."""
    compile: Annotated[bool | None, Help("running")] = None
    """Compile with torch: slower to start, faster on a GPU; default: for fp8."""

    unit_rows: Annotated[int, Help("stopping and resuming", "N")] = Field(2048, ge=1)
    """Candidates per unit, which is committed as a whole."""
    max_runtime: Annotated[Seconds, Help("stopping and resuming", "TIME")] = None
    """Stop cleanly after 90s, 45m or 8h; the same command goes on."""
    max_reject_fraction: Annotated[float, Help("stopping and resuming", "X")] = Field(0.01, ge=0, le=1)
    """Exit with status 3 if more of the candidates or shards are rejected."""
    redo: Annotated[Places, Help("stopping and resuming", "URI")] = ()
    """Shards or globs that changed: drop their scores and score them again."""
    forget: Annotated[Places, Help("stopping and resuming", "URI")] = ()
    """Shards or globs that are gone from the input: drop their scores."""

    @property
    def reference(self) -> Reference | None:
        """The reference model of a policy, as it is given. Raises ConfigError if only its options are given."""
        return given_by(self.reference_model, self.reference_revision, self.beta, self.length_normalized)

    @model_validator(mode="before")
    @classmethod
    def _of_days(cls, values: Any) -> Any:
        """Name each input with {date} once per day, the last day first."""
        inputs, count = values.get("input"), str(values.get("days", 1))
        days = int(count) if count.isdigit() else 1
        if days > 1 and DATE in str(values.get("output")):
            raise ValueError(
                f"output: with {DATE} in it, it is of one day, but --days {days} reads {days}: leave {DATE} out of "
                f"the output, to which every run then adds, or run once per day, with --date and without --days"
            )
        if not isinstance(inputs, str | list | tuple):
            return values
        try:
            last = day_of(values.get("date"))
        except ValueError:  # the field says so
            return values
        names = [str(last - timedelta(back)) for back in range(days)]
        uris = [_named(uri, name) for uri in listed(inputs) for name in names]
        return {**values, "input": list(dict.fromkeys(uris))}

    @field_validator("column", "keep", "keep_json", "winner", "role", mode="before")
    @classmethod
    def _paired(cls, value: Any) -> Any:
        """Convert ["a", "b=c"] to {"a": "a", "b": "c"}, and "a" to {"a": "a"}."""
        if not isinstance(value, list | tuple | str):
            return value
        pairs = [str(entry).partition("=")[::2] for entry in listed(value)]
        return {name: column or name for name, column in pairs}

    @field_validator("column")
    @classmethod
    def _parts(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(set(value) - set(COLUMN_ROLES)):
            raise ValueError(f"unknown name {', '.join(unknown)}; {advice(unknown[0], COLUMN_ROLES)}")
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


def _named(uri: Any, day: str) -> Any:
    return uri.replace(DATE, day) if isinstance(uri, str) else uri


def load_config(file: str | None, overrides: Mapping[str, Any]) -> ScoreConfig:
    """The options of a scoring run with one model; see `load_options`."""
    return load_options(ScoreConfig, file, overrides)


def load_configs(file: str | None, overrides: Mapping[str, Any]) -> list[ScoreConfig]:
    """The options of a scoring run, one for each model. Several models write to OUTPUT/NAME each.

    NAME is the last part of the model, followed by @REVISION if several models have that name.

    Raises ConfigError as `load_options` does, and if there are revisions, but not one per model.
    """
    values = read_values(file) | dict(overrides)
    models, revisions = listed(values.get("model")), listed(values.get("revision"))
    if len(models) < 2:
        given = {"model": models, "revision": revisions}
        return [checked(ScoreConfig, values | {name: some[0] for name, some in given.items() if some}, file)]
    if revisions and len(revisions) != len(models):
        raise ConfigError(f"revision: {len(models)} models need {len(models)} or none, not {len(revisions)}")
    names = _output_names(models, revisions)
    output = str(values.get("output") or "").rstrip("/")
    own = [
        {"model": model, "revision": revision, **({"output": f"{output}/{name}"} if output else {})}
        for model, revision, name in zip(models, revisions or [None] * len(models), names, strict=True)
    ]
    return [checked(ScoreConfig, values | one, file) for one in own]


def _output_names(models: list[Any], revisions: list[Any]) -> list[str]:
    """The directory in OUTPUT of each model. Raises ConfigError if two would be the same."""
    names = [str(model).rstrip("/").rpartition("/")[2] for model in models]
    for i in [i for i, name in enumerate(names) if revisions and names.count(name) > 1]:
        names[i] += f"@{revisions[i]}".replace("/", "-")
    if again := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"model: two outputs would be named {again[0]}: score these models into different outputs"
        )
    return names
