"""The options of `armo-ray fit`."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from armo_ray.options import DatedOptions, Finite, Help, ModelName, Name, Names, NewPlace, Place, Places


def _ranges(value: Any) -> Any:
    """["a=0:5"] as {"a": ("0", "5")}; anything but a text or a list as it is."""
    value = [value] if isinstance(value, str) else value
    if isinstance(value, Mapping):
        return {
            name: _ends(str(text), str(text)) if isinstance(text, str) else text
            for name, text in value.items()
        }
    if not isinstance(value, list | tuple):
        return value
    ranges = {}
    for text in value:
        name, _, ends = str(text).rpartition("=")
        if not name.strip():
            raise ValueError(f"expected NAME=LOW:HIGH, got {text!r}")
        ranges[name.strip()] = _ends(ends, text)
    return ranges


def _ends(text: str, whole: str) -> list[str]:
    ends = text.split(":")
    if len(ends) != 2:
        raise ValueError(f"expected NAME=LOW:HIGH, got {whole!r}")
    return ends


def _ordered(ranges: Mapping[str, tuple[float, float]]) -> Mapping[str, tuple[float, float]]:
    for name, (low, high) in ranges.items():
        if not (math.isfinite(low) and math.isfinite(high) and low < high):
            raise ValueError(f"{name}={low:g}:{high:g}: expected two numbers, the smaller one first")
    return ranges


class FitOptions(DatedOptions):
    """Fit a head to hidden states and labels."""

    scores: Annotated[Places, Help("required", "OUT", word=True)] = Field(min_length=1)
    """Complete outputs of embed, or of score --keep-hidden, all of one model."""
    output: Annotated[NewPlace, Help("required", "DIR")]
    """Directory of the new checkpoint; nothing may be there yet."""

    objective: Annotated[Names, Help("labels", "NAME")] = ()
    """Labels to predict, in this order; default: all labels of the outputs."""
    scale: Annotated[
        Mapping[str, tuple[float, float]],
        BeforeValidator(_ranges),
        AfterValidator(_ordered),
        Help("labels", "NAME=LOW:HIGH"),
    ] = {}
    """Range of a label, which is mapped to 0 to 1; default: that of its layout, or none."""
    target_scores: Annotated[Place | None, Help("labels", "OUT")] = None
    """Learn the rewards and gates in this output of a larger model, over the same rows."""

    head: Annotated[Literal["armorm", "bradley-terry"], Help("the head")] = "armorm"
    """A reward for each label and a gate, or one reward from pairs alone."""
    gate: Annotated[Literal["auto", "uniform", "constant", "mlp"], Help("the head")] = "auto"
    """auto: mlp if it is better on held-out pairs than constant weights; mlp needs 1,000 pairs."""
    pairs: Annotated[Places, Help("the head", "OUT")] = ()
    """Outputs with chosen and rejected; default: OUT, if it has them."""
    verbosity: Annotated[Name, Help("the head", "NAME")] = "length"
    """What rewards must not follow: length, the name of an objective, or none."""
    max_penalty: Annotated[Finite, Help("the head", "X")] = Field(4.0, gt=0)
    """Largest penalty on verbosity, in standard deviations of the reward per one of verbosity."""

    folds: Annotated[int, Help("choosing and measuring", "N")] = Field(5, ge=2)
    """Folds by prompt that choose the strength of regularization."""
    test_fraction: Annotated[Finite, Help("choosing and measuring", "X")] = Field(0.1, ge=0, lt=1)
    """Share of the prompts that nothing is fitted to; the card's numbers are of these."""
    seed: Annotated[int, Help("choosing and measuring", "N")] = 0
    """Seed of the folds, the test prompts and the gate."""
    allow_few: Annotated[bool, Help("choosing and measuring")] = False
    """Fit also a label with fewer rows than a hidden state has numbers."""

    model: Annotated[ModelName | None, Help("running", "MODEL")] = None
    """Where the backbone's files are; default: the model that the outputs name."""
    engine: Annotated[Literal["local", "ray"], Help("running")] = "local"
    """Read the hidden states here, or on a Ray cluster; the head is the same."""
    task_rows: Annotated[int | None, Help("running", "N")] = Field(None, ge=1)
    """Rows per task; default: 32,768, or as many as are no smaller than the sums over them."""

    @model_validator(mode="after")
    def _fits_together(self) -> "FitOptions":
        if self.head == "bradley-terry":
            for name in ("objective", "scale", "gate", "verbosity", "max_penalty", "target_scores"):
                if name in self.model_fields_set:
                    raise ValueError(
                        f"--{name.replace('_', '-')} does not go with --head bradley-terry, which has one reward"
                    )
        if self.target_scores is not None:
            for name in ("pairs", "gate", "verbosity", "scale"):
                if name in self.model_fields_set:
                    raise ValueError(
                        f"--{name} does not go with --target-scores: the larger model's is learned"
                    )
        if len(set(self.objective)) < len(self.objective):
            raise ValueError(f"--objective {' '.join(self.objective)}: one of them is there twice")
        return self
