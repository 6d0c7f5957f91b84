"""The gate that is asked for, or the simplest that held-out pairs do not contradict."""

import math
from typing import NamedTuple

from armo_ray.errors import ConfigError
from armo_ray.fitting.gates import (
    RECIPE,
    TEMPERATURE,
    Gate,
    Pairs,
    Recipe,
    beta_of,
    constant_gate,
    constant_weights,
    margins,
    uniform_weights,
)
from armo_ray.fitting.held_out import log_losses, paired_difference

PAIRS_OF_A_WEIGHT = 10  # the fewest pairs for each weight that all prompts share
PAIRS_OF_A_NETWORK = 1000  # the fewest for a network


class Choice(NamedTuple):
    """A gate, and why it is that one."""

    gate: Gate
    log_loss: dict[str, float]  # of held-out pairs, by kind of gate
    gain: float  # the log-loss of the constant gate less that of the network, on the same pairs; NaN if not compared
    gain_se: float
    reason: str


def fit_gate(kind: str, pairs: Pairs, held_out: Pairs, seed: int = 0, recipe: Recipe = RECIPE) -> Choice:
    """Fit a gate of a kind, or with `auto` choose it.

    `auto` takes the network only if its log-loss on held-out pairs is lower than that of constant weights by more than
    one paired standard error, constant weights otherwise, and equal weights if there are too few pairs for others.

    Args:
        kind: auto, uniform, constant or mlp.
        held_out: Pairs of other prompts, which decide for `auto` and are not fitted.

    Raises:
        ConfigError: There are no pairs, too few for the kind, or the rewards do not differ within pairs.
    """
    count, needed = len(pairs.of), needed_pairs(pairs.differences.shape[1])
    if kind != "auto" and count < needed[kind]:
        raise ConfigError(
            f"--gate {kind}: {count} pairs to fit, and it needs {needed[kind]}: give more --pairs, or a simpler --gate"
        )
    beta = beta_of(pairs.differences)
    kinds = ["uniform", "constant", "mlp"] if kind == "auto" else [*{"constant": 0, kind: 0}]
    gates = {name: _fit(name, pairs, beta, seed, recipe) for name in kinds if count >= needed[name]}
    losses = {name: log_losses(beta * margins(gate, held_out)) for name, gate in gates.items()}
    mean = {name: float(values.mean()) if len(values) else float("nan") for name, values in losses.items()}
    gain = gain_se = float("nan")
    if {"constant", "mlp"} <= losses.keys() and len(held_out.of):
        gain, gain_se = paired_difference(losses["constant"], losses["mlp"], held_out.of)
    if kind != "auto":
        return Choice(gates[kind], mean, gain, gain_se, f"--gate {kind}")
    return _chosen(gates, mean, gain, gain_se, f"{count} pairs")


def needed_pairs(rewards: int) -> dict[str, int]:
    """The fewest pairs for each kind of gate."""
    return {"uniform": 1, "constant": PAIRS_OF_A_WEIGHT * rewards, "mlp": PAIRS_OF_A_NETWORK}


def _fit(kind: str, pairs: Pairs, beta: float, seed: int, recipe: Recipe) -> Gate:
    size = pairs.prompts.shape[1]
    if kind == "uniform":
        return constant_gate(kind, uniform_weights(pairs.differences.shape[1]), size, beta)
    if kind == "constant":
        return constant_gate(kind, constant_weights(pairs.differences, beta), size, beta)
    from armo_ray.fitting.network import fit_to_pairs  # torch

    layers = fit_to_pairs(pairs.prompts, pairs.of, pairs.differences, beta, TEMPERATURE, seed, recipe)
    return Gate(kind, layers, TEMPERATURE, beta)


def _chosen(gates: dict[str, Gate], log_loss: dict[str, float], gain: float, se: float, count: str) -> Choice:
    if "constant" not in gates:
        return Choice(gates["uniform"], log_loss, gain, se, f"{count} are too few to learn weights")
    if "mlp" not in gates:
        return Choice(gates["constant"], log_loss, gain, se, f"{count} are too few for a network")
    if math.isnan(se):
        return Choice(
            gates["constant"], log_loss, gain, se, "too few held-out prompts to compare a network on"
        )
    by = f"log-loss of held-out pairs is lower by {gain:.4f} ± {se:.4f} with a network than with constant weights"
    if gain > se:
        return Choice(gates["mlp"], log_loss, gain, se, by)
    return Choice(gates["constant"], log_loss, gain, se, f"{by}: not by more than one standard error")
