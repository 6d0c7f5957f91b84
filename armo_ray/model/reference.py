"""The reference model of a policy: the model that its training started from. Needs no torch.

The implicit reward of a policy is how much more likely it makes a response than its reference model does.
"""

from dataclasses import dataclass

from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES, Family

_FAMILIES = " or ".join(name for name, family in FAMILIES.items() if family.reads == "response")


@dataclass(frozen=True)
class Reference:
    """The reference model of a policy, and how log-probabilities become a reward.

    The reward is beta times the sum over the tokens of the response, the end of its turn included, of
    log p(token) - log p_reference(token); with `length_normalized`, divided by the number of these tokens. The reward
    of a step is that of the response up to its end.
    """

    model: str  # a directory or hub id
    revision: str | None = None
    beta: float | None = None  # None: the family's
    length_normalized: bool = False

    def factor(self, family: Family) -> float:
        """The factor of the log ratios."""
        return family.beta if self.beta is None else self.beta


def given_by(
    model: str | None, revision: str | None, beta: float | None, length_normalized: bool
) -> Reference | None:
    """The reference model of these options. Raises ConfigError if one of them is given without a model."""
    if model is not None:
        return Reference(model, revision, beta, length_normalized)
    options = {"reference-revision": revision, "beta": beta, "length-normalized": length_normalized or None}
    if alone := next((name for name, value in options.items() if value is not None), None):
        raise ConfigError(f"{alone}: only of the family {_FAMILIES}: give --reference-model, too")
    return None


def check_given(family: Family, reference: Reference | None, dtype: str) -> None:
    """Raise ConfigError if a family lacks the reference model that it needs, or has one that it does not need."""
    if family.reads != "response":
        if reference is not None:
            raise ConfigError(f"reference-model: the family {family.name} has none; use --family {_FAMILIES}")
        return
    if reference is None:
        raise ConfigError(
            f"reference-model: the family {family.name} compares a policy with the model that its training started "
            f"from: give that model, a directory or hub id, with --reference-model"
        )
    if family.by_step and reference.length_normalized:
        raise ConfigError(
            f"length-normalized: the family {family.name} sums log ratios up to the end of each step"
        )
    if dtype == "fp8":
        raise ConfigError(
            f"dtype: fp8 is too coarse for the small differences that the family {family.name} sums; use bfloat16"
        )
