"""Gates: equal and constant weights, networks where prompts decide, and the choice between them."""

import numpy as np
import pytest
import torch

from armo_ray.engine import heads
from armo_ray.errors import ConfigError
from armo_ray.fitting.gate_choice import better_kind, fit_gate
from armo_ray.fitting.gates import (
    Gate,
    Recipe,
    RewardPairs,
    beta_of,
    constant_gate,
    constant_weights,
    margins,
    uniform_weights,
    weights_of,
)
from armo_ray.fitting.held_out import log_losses, paired_difference
from armo_ray.fitting.network import fit_to_pairs, fit_to_weights

REWARDS, SIZE = 6, 24
SMALL = Recipe(width=64, steps=150, learning_rate=1e-2, every=50)


def planted(count: int, seed: int, sharpness: float = 3.0) -> tuple[RewardPairs, float]:
    """Pairs that the weights of their prompts decide, and the accuracy of who knows these; sharpness 0: equal ones."""
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((count // 2, SIZE))
    weights = np.exp(
        sharpness * states @ np.random.default_rng(7).standard_normal((SIZE, REWARDS)) / SIZE**0.5
    )
    weights /= weights.sum(axis=1, keepdims=True)
    of = np.arange(count) % len(states)
    differences = 0.12 * rng.standard_normal((count, REWARDS))
    margin = np.einsum("nk,nk->n", weights[of], differences) / (0.015 if sharpness else 0.06)
    lost = rng.random(count) > 1 / (1 + np.exp(-margin))
    differences[lost] *= -1
    prompts = states * np.geomspace(1, 20, SIZE) + 50 * np.cos(np.arange(SIZE))
    pairs = RewardPairs(prompts.astype(np.float32), of, differences)
    return pairs, float(((margin > 0) ^ lost).mean())


def accuracy(gate: Gate, pairs: RewardPairs) -> float:
    return float((margins(gate, pairs) > 0).mean())


def check_a_network_finds_the_gate(seed: int) -> None:
    train, _ = planted(3000, seed)
    held_out, best = planted(3000, seed + 100)
    kind, reason = better_kind(train, held_out, seed, SMALL)
    constant, network = (fit_gate(k, train, seed, SMALL) for k in ("constant", "mlp"))
    assert kind == network.kind == "mlp"
    assert accuracy(constant, held_out) + 0.08 <= accuracy(network, held_out) <= best
    losses = [log_losses(gate.beta * margins(gate, held_out)) for gate in (constant, network)]
    gain, error = paired_difference(losses[0], losses[1], held_out.of)
    assert gain > error > 0
    assert f"is lower by {gain:.4f} ± {error:.4f} with a network" in reason


def test_where_prompts_decide_a_network_finds_the_gate() -> None:
    check_a_network_finds_the_gate(0)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", [1, 2])
def test_where_prompts_decide_networks_of_other_seeds_find_the_gate(seed: int) -> None:
    check_a_network_finds_the_gate(seed)


def test_where_prompts_do_not_decide_auto_writes_constant_weights() -> None:
    train, _ = planted(1200, 0, sharpness=0)
    kind, reason = better_kind(train, planted(3000, 1, sharpness=0)[0], recipe=SMALL)
    assert kind == "constant"
    assert "not by more than one standard error" in reason


def test_without_held_out_pairs_auto_does_not_take_a_network() -> None:
    train, _ = planted(1200, 0)
    none = train._replace(of=train.of[:0], differences=train.differences[:0])
    kind, reason = better_kind(train, none, recipe=SMALL._replace(steps=5))
    assert kind == "constant"
    assert reason == "too few held-out prompts to compare a network on"


def test_pairs_too_few_for_a_gate_are_refused_and_auto_takes_a_simpler_one() -> None:
    (few, _), (some, _), (held_out, _) = planted(50, 0), planted(400, 0), planted(400, 1)
    with pytest.raises(ConfigError, match=r"--gate constant: 50 pairs to fit, and it needs 60"):
        fit_gate("constant", few)
    with pytest.raises(ConfigError, match=r"--gate mlp: 400 pairs to fit, and it needs 1000"):
        fit_gate("mlp", some)
    assert better_kind(few, held_out)[0] == "uniform"
    assert better_kind(some, held_out)[0] == "constant"
    assert fit_gate("uniform", few).kind == "uniform"


def test_rewards_that_are_equal_in_all_pairs_are_refused() -> None:
    pairs = RewardPairs(np.ones((4, SIZE), np.float32), np.arange(4), np.zeros((4, REWARDS)))
    with pytest.raises(ConfigError, match="rewards of both responses are equal in every pair"):
        fit_gate("uniform", pairs)
    with pytest.raises(ConfigError, match=r"0 pairs to fit, and it needs 1"):
        fit_gate("uniform", pairs._replace(of=np.arange(0), differences=np.zeros((0, REWARDS))))


def test_beta_makes_equal_weights_log_odds_of_unit_spread() -> None:
    pairs, _ = planted(500, 0)
    gate = fit_gate("uniform", pairs)
    assert float((gate.beta * margins(gate, pairs)).std()) == pytest.approx(1.0, rel=1e-6)


def test_constant_weights_are_the_best_of_the_simplex() -> None:
    pairs, _ = planted(2000, 3)
    differences = pairs.differences.copy()
    differences[:, 2] *= -1  # a reward that speaks against the chosen response
    beta, rng = beta_of(differences), np.random.default_rng(0)
    weights = constant_weights(differences, beta)
    assert weights.sum() == pytest.approx(1.0)
    assert weights.min() > 0
    assert weights[2] < 1e-4
    best = log_losses(beta * (differences @ weights)).mean()
    for width in (1e-3, 1e-2, 1.0):
        for _ in range(50):
            other = (1 - width) * weights + width * rng.dirichlet(np.ones(REWARDS))
            assert log_losses(beta * (differences @ other)).mean() > best - 1e-8


def as_in_a_checkpoint(gate: Gate, transform: np.ndarray) -> dict[str, torch.Tensor]:
    tensors = {"regression_layer.weight": torch.zeros(REWARDS, SIZE), "gating.logit_scale": torch.ones(1)}
    tensors["reward_transform_matrix"] = torch.from_numpy(transform.astype(np.float32))
    for i, (weight, bias) in enumerate(gate.layers):
        tensors[f"gating.layers.{i}.weight"] = torch.from_numpy(weight)
        tensors[f"gating.layers.{i}.bias"] = torch.from_numpy(bias)
    return tensors


def test_the_engine_reads_the_weights_that_were_fitted() -> None:
    pairs, _ = planted(1000, 0)
    recipe = Recipe(steps=30, width=16, hidden_layers=2)
    beta = beta_of(pairs.differences)
    layers = fit_to_pairs(pairs.prompts, pairs.of, pairs.differences, beta, 10.0, 0, recipe)
    some = np.array([0.5, 0.3, 0.1, 0.1 - 1e-5, 1e-5, 0.0])
    gates = [constant_gate("constant", some, SIZE, beta), Gate("mlp", layers, 10.0, beta)]
    hidden = torch.from_numpy(pairs.prompts[:20])
    index = torch.arange(20).repeat_interleave(2)
    for gate in gates:
        compute = heads.armorm(as_in_a_checkpoint(gate, np.eye(REWARDS)), gate.temperature)
        gating = compute(hidden, index, torch.full((20,), 2)).gating.numpy()
        np.testing.assert_allclose(gating, weights_of(gate, pairs.prompts[:20]), atol=2e-5)
    np.testing.assert_allclose(weights_of(gates[0], pairs.prompts[:3]), [some] * 3, atol=2e-6)
    assert weights_of(gates[1], pairs.prompts).std(axis=0).min() > 1e-5


def test_training_again_gives_the_same_bits_and_another_seed_others() -> None:
    pairs, _ = planted(1000, 0)
    state, recipe = torch.get_rng_state(), Recipe(steps=20, width=8)
    first, again, other = (
        fit_to_pairs(pairs.prompts, pairs.of, pairs.differences, 10.0, 10.0, seed, recipe)
        for seed in (0, 0, 1)
    )
    assert [w.tobytes() for layer in first for w in layer] == [w.tobytes() for layer in again for w in layer]
    assert first[0][0].tobytes() != other[0][0].tobytes()
    assert torch.equal(torch.get_rng_state(), state)


def test_training_ends_once_the_loss_is_no_longer_smaller_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    pairs, _ = planted(600, 0)
    targets, threads = np.tile(uniform_weights(REWARDS), (300, 1)), torch.get_num_threads()
    caplog.set_level("INFO")
    fit_to_weights(pairs.prompts, targets, 10.0, recipe=Recipe(width=16, every=5, patience=2))
    (line,) = caplog.messages
    assert line.startswith("gate: step 15 of 1000; no longer better: loss 1.79")
    assert torch.get_num_threads() == threads


def test_a_network_learns_given_weights() -> None:
    pairs, _ = planted(2000, 0)
    teacher = Gate(
        "mlp", ((np.eye(REWARDS, SIZE, dtype=np.float32), np.zeros(REWARDS, np.float32)),), 1.0, 1.0
    )
    prompts = ((pairs.prompts - pairs.prompts.mean(axis=0)) / pairs.prompts.std(axis=0)).astype(np.float32)
    targets = weights_of(teacher, prompts)
    layers = fit_to_weights(pairs.prompts, targets, 10.0, recipe=SMALL._replace(dropout=0.0))
    learned = weights_of(Gate("mlp", layers, 10.0, 1.0), pairs.prompts)
    before = np.abs(uniform_weights(REWARDS) - targets).mean()
    assert np.abs(learned - targets).mean() < before / 4
