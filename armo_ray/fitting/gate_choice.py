"""The gate that is asked for, or the simplest that held-out pairs do not contradict."""

import numpy as np

from armo_ray.errors import ConfigError
from armo_ray.fitting.gates import (
    RECIPE,
    TEMPERATURE,
    Gate,
    Recipe,
    RewardPairs,
    beta_of,
    constant_gate,
    constant_weights,
    margins,
    uniform_weights,
)
from armo_ray.fitting.held_out import log_losses, paired_difference

PAIRS_OF_A_WEIGHT = 10  # the fewest pairs for each weight that all prompts share
PAIRS_OF_A_NETWORK = 1000  # the fewest for a network


def fit_gate(kind: str, pairs: RewardPairs, seed: int = 0, recipe: Recipe = RECIPE) -> Gate:
    """Fit a gate of a kind: uniform, constant or mlp.

    Raises:
        ConfigError: There are no pairs, too few for the kind, or the rewards do not differ within pairs.
    """
    count, needed = len(pairs.of), needed_pairs(pairs.differences.shape[1])
    if count < needed[kind]:
        raise ConfigError(
            f"--gate {kind}: {count} pairs to fit, and it needs {needed[kind]}: give more --pairs, or a simpler --gate"
        )
    beta, size = beta_of(pairs.differences), pairs.prompts.shape[1]
    if kind == "uniform":
        return constant_gate(kind, uniform_weights(pairs.differences.shape[1]), size, beta)
    if kind == "constant":
        return constant_gate(kind, constant_weights(pairs.differences, beta), size, beta)
    from armo_ray.fitting.network import fit_to_pairs  # torch

    layers = fit_to_pairs(pairs.prompts, pairs.of, pairs.differences, beta, TEMPERATURE, seed, recipe)
    return Gate(kind, layers, TEMPERATURE, beta)


def needed_pairs(rewards: int) -> dict[str, int]:
    """The fewest pairs for each kind of gate."""
    return {"uniform": 1, "constant": PAIRS_OF_A_WEIGHT * rewards, "mlp": PAIRS_OF_A_NETWORK}


def better_kind(
    pairs: RewardPairs, held_out: RewardPairs, seed: int = 0, recipe: Recipe = RECIPE
) -> tuple[str, str]:
    """The kind of gate that these pairs allow, and why.

    A network only if its log-loss on held-out pairs is lower than that of constant weights by more than one paired
    standard error, constant weights otherwise, and equal weights if there are too few pairs for others.

    Args:
        held_out: Pairs of other prompts, which decide and are not fitted.

    Raises:
        ConfigError: The rewards do not differ within pairs.
    """
    count, needed = len(pairs.of), needed_pairs(pairs.differences.shape[1])
    if count < needed["constant"]:
        return "uniform", f"{count} pairs are too few to learn weights"
    if count < needed["mlp"]:
        return "constant", f"{count} pairs are too few for a network"
    if len(np.unique(held_out.of)) < 2:
        return "constant", "too few held-out prompts to compare a network on"
    gates = [fit_gate(kind, pairs, seed, recipe) for kind in ("constant", "mlp")]
    constant, network = (log_losses(gate.beta * margins(gate, held_out)) for gate in gates)
    gain, error = paired_difference(constant, network, held_out.of)
    by = f"log-loss of held-out pairs is lower by {gain:.4f} ± {error:.4f} with a network than with constant weights"
    if gain > error:
        return "mlp", by
    return "constant", f"{by}: not by more than one standard error"
