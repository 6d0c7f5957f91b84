"""The reference model of a policy: the model that its training started from. Needs no torch.

The implicit reward of a policy is how much more likely it makes a response than its reference model does.
"""

from dataclasses import dataclass

from armo_ray.errors import ConfigError
from armo_ray.model.families import Family

BETA = 0.1


@dataclass(frozen=True)
class Reference:
    """The reference model of a policy, and how log-probabilities become a reward.

    The reward is beta times the sum over the tokens of the response, the end of its turn included, of
    log p(token) - log p_reference(token); with `length_normalized`, divided by the number of these tokens.
    """

    model: str  # a directory or hub id
    revision: str | None = None
    beta: float = BETA
    length_normalized: bool = False


def given_by(model: str | None, beta: float | None, length_normalized: bool) -> Reference | None:
    """The reference model of these options. Raises ConfigError if one of them is given without a model."""
    if model is not None:
        return Reference(model, beta=BETA if beta is None else beta, length_normalized=length_normalized)
    if beta is not None or length_normalized:
        raise ConfigError(
            f"{'length-normalized' if beta is None else 'beta'}: only of the family dpo: give --reference-model, too"
        )
    return None


def check_given(family: Family, reference: Reference | None, dtype: str) -> None:
    """Raise ConfigError if a family lacks the reference model that it needs, or has one that it does not need."""
    if family.reads != "response":
        if reference is not None:
            raise ConfigError(f"reference-model: the family {family.name} has none; use --family dpo")
        return
    if reference is None:
        raise ConfigError(
            f"reference-model: the family {family.name} compares a policy with the model that its training started "
            f"from: give that model, a directory or hub id, with --reference-model"
        )
    if dtype == "fp8":
        raise ConfigError(
            f"dtype: fp8 is too coarse for the small differences that the family {family.name} sums; use bfloat16"
        )
