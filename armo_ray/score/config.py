"""The options of a run with a model, and the checks that go beyond their types."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

from pydantic import Field, field_validator

from armo_ray.errors import ConfigError
from armo_ray.model.families import HIDDEN, Family
from armo_ray.model.reference import Reference, given_by
from armo_ray.options import (
    Beta,
    Dtype,
    FamilyName,
    Help,
    ModelName,
    Name,
    checked,
    listed,
    load_options,
    read_values,
)
from armo_ray.score.run_options import RunOptions


class Use(NamedTuple):
    """What a run has of its model."""

    family: str | Family | None  # None: recognized by its tensors
    reference: Reference | None = None
    truncate: str = "none"
    keep_hidden: bool = False


class ModelOptions(RunOptions):
    """What to read with which model, and where to write what it returns."""

    model: Annotated[ModelName, Help("required", "MODEL", several=True)]
    """Checkpoint: a directory, its URI, or a hub id."""

    special_tokens: Annotated[Literal["plain", "reference"], Help("reading")] = "plain"
    """Read special tokens in messages as plain text, or as control tokens like the released code."""
    max_length: Annotated[int | None, Help("reading", "TOKENS")] = Field(None, ge=1)
    """Longest conversation, in tokens; default: the most the model allows."""

    revision: Annotated[Name | None, Help("the model", "NAME", several=True)] = None
    """Branch, tag or commit on the hub; for a URI, the revision an earlier run recorded. Give one per model."""
    dtype: Annotated[Dtype, Help("the model")] = "bfloat16"
    """Type of the backbone; heads are always float32."""

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

    @property
    def use(self) -> Use:
        """What the run has of its model: hidden states alone."""
        return Use(HIDDEN, keep_hidden=True)

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


class ScoreConfig(ModelOptions):
    """What to score, with which model, and where to write it."""

    truncate: Annotated[Literal["none", "left", "middle"], Help("reading")] = "none"
    """Reject longer conversations (none), or cut the left or middle of their prompt and flag them."""

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
    min_agreement: Annotated[float, Help("the model", "RHO")] = Field(0.98, ge=-1, le=1)
    """With fp8: stop if scores of a sample agree less with bfloat16 (Spearman)."""
    verify: Annotated[bool, Help("the model")] = False
    """First check the model on a replica; stop if the check fails."""

    keep_hidden: Annotated[bool, Help("what is written")] = False
    """Add the hidden states that the head reads, from which armo-ray fit makes heads."""

    @property
    def reference(self) -> Reference | None:
        """The reference model of a policy, as it is given. Raises ConfigError if only its options are given."""
        return given_by(self.reference_model, self.reference_revision, self.beta, self.length_normalized)

    @property
    def use(self) -> Use:
        """What the run has of its model. Raises ConfigError as `reference` does."""
        return Use(self.family, self.reference, self.truncate, self.keep_hidden)


AnyModelOptions = TypeVar("AnyModelOptions", bound=ModelOptions)


def load_config(file: str | None, overrides: Mapping[str, Any]) -> ScoreConfig:
    """The options of a scoring run with one model; see `load_options`."""
    return load_options(ScoreConfig, file, overrides)


def load_configs(file: str | None, overrides: Mapping[str, Any]) -> list[ScoreConfig]:
    """The options of a scoring run, one for each model; see `options_by_model`."""
    return options_by_model(ScoreConfig, file, overrides)


def options_by_model(
    kind: type[AnyModelOptions], file: str | None, overrides: Mapping[str, Any]
) -> list[AnyModelOptions]:
    """The options of a run with each of the models. Several models write to OUTPUT/NAME each.

    NAME is the last part of the model, followed by @REVISION if several models have that name.

    Raises ConfigError as `load_options` does, and if there are revisions, but not one per model.
    """
    values = read_values(file) | dict(overrides)
    models, revisions = listed(values.get("model")), listed(values.get("revision"))
    if len(models) < 2:
        given = {"model": models, "revision": revisions}
        return [checked(kind, values | {name: some[0] for name, some in given.items() if some}, file)]
    if revisions and len(revisions) != len(models):
        raise ConfigError(f"revision: {len(models)} models need {len(models)} or none, not {len(revisions)}")
    names = _output_names(models, revisions)
    output = str(values.get("output") or "").rstrip("/")
    own = [
        {"model": model, "revision": revision, **({"output": f"{output}/{name}"} if output else {})}
        for model, revision, name in zip(models, revisions or [None] * len(models), names, strict=True)
    ]
    return [checked(kind, values | one, file) for one in own]


def _output_names(models: list[Any], revisions: list[Any]) -> list[str]:
    """The directory in OUTPUT of each model. Raises ConfigError if two would be the same."""
    names = [str(model).rstrip("/").rpartition("/")[2] for model in models]
    for i in [i for i, name in enumerate(names) if revisions and names.count(name) > 1]:
        names[i] += f"@{revisions[i]}".replace("/", "-")
    if again := [name for name in names if names.count(name) > 1]:
        raise ConfigError(
            f"model: two outputs would be named {again[0]}: give these models different outputs"
        )
    return names
