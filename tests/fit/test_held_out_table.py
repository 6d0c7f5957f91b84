"""Pairs that were fitted to do not say what a head is worth: rewards that did not see them, and log-odds, do."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from armo_ray.fit.command import summary
from armo_ray.fit.gate import choose_gate, unseen_rewards
from armo_ray.fit.held_out_table import Scored, log_odds, longer, split_of, table
from armo_ray.fit.labelled import Sample
from armo_ray.fit.objectives import Objectives
from armo_ray.fit.options import FitOptions
from armo_ray.fit.pairs import Pairs
from armo_ray.fit.rewards import fit_one, pair_facts, the_split
from armo_ray.fitting import statistics
from armo_ray.fitting.gates import beta_of, constant_weights
from armo_ray.fitting.held_out import log_losses
from armo_ray.fitting.ridge import ridge
from armo_ray.fitting.sampling import folds_of

Array = npt.NDArray[np.float64]
SIZE, PROMPTS = 128, 2400
HALF = {"scores": ["in"], "output": "out", "test_fraction": 0.75}


def options(**given: Any) -> FitOptions:
    return FitOptions.model_validate({**HALF, **given})


def pairs_of(difference: Array) -> Pairs:
    """A pair of each prompt."""
    count = len(difference)
    ids = tuple(f"prompt {i}" for i in range(count))
    tokens = np.random.default_rng(9).integers(1, 50, (count, 2))
    none, of = np.empty((0, difference.shape[1]), np.float32), np.zeros(count, np.int64)
    return Pairs(difference.astype(np.float32), none, of, ids, ids, ids, tokens)


def objectives(weights: Array, fold_weights: Array) -> Objectives:
    none = Sample(np.empty(0, np.uint64), *(np.empty((0, 2)),) * 2, np.empty(0), np.empty(0, bool))
    return Objectives(("a", "b"), weights, np.eye(2), None, {}, none, fold_weights)


def rated_pairs() -> tuple[Pairs, Objectives]:
    """Pairs of answers, people's preference of which follows two labels: one is predicted well, one badly."""
    rng = np.random.default_rng(0)
    prompt = np.repeat(np.arange(PROMPTS), 2)
    states = rng.normal(size=(2 * PROMPTS, SIZE)).astype(np.float32)
    signal = states @ rng.normal(size=(SIZE, 2)) / SIZE**0.5
    labels = signal * [1.0, 0.6] + rng.normal(size=signal.shape) * [0.5, 1.0]
    value = labels @ [0.6, 0.6]
    chosen = np.where(value[::2] > value[1::2], 0, 1) + np.arange(PROMPTS) * 2
    pairs = pairs_of((states[chosen] - states[chosen ^ 1]).astype(np.float64))
    fitted = the_split(options(), pairs).fitted[prompt]
    stats = statistics.empty(("a", "b"), SIZE, 5)
    folds = np.array(folds_of([pairs.prompt_ids[i] for i in prompt], 5))
    statistics.accumulate(stats, states[fitted], labels[fitted], folds[fitted])
    found = ridge(stats)
    return pairs, objectives(found.weights, found.fold_weights)


def test_rewards_of_a_pair_are_of_heads_that_did_not_see_its_labels() -> None:
    pairs = pairs_of(np.random.default_rng(0).normal(size=(200, SIZE)))
    split = the_split(options(), pairs)
    heads = np.random.default_rng(1).normal(size=(6, 2, SIZE))
    found = unseen_rewards(objectives(heads[5], heads[:5]), pairs, split)
    place = np.where(split.tested, 5, split.folds)
    np.testing.assert_allclose(found, np.einsum("nh,nkh->nk", pairs.difference, heads[place]))


def test_a_gate_does_not_trust_a_reward_because_it_knows_its_labels() -> None:
    pairs, rewards = rated_pairs()
    split = the_split(options(), pairs)
    raw = pairs.project(rewards.weights)
    best, naive = (constant_weights(raw[of], beta_of(raw[of])) for of in (split.tested, split.fitted))
    chosen = choose_gate(options(gate="constant"), rewards, pairs, split)
    weight = chosen.facts["weights"]["b"]
    assert naive[1] > best[1] + 0.03
    assert abs(weight - best[1]) < 0.5 * abs(naive[1] - best[1])


def test_the_log_loss_of_a_bradley_terry_head_is_its_own() -> None:
    rng = np.random.default_rng(0)
    difference = rng.normal(size=(PROMPTS, SIZE))
    log_odds_of = difference @ rng.normal(size=SIZE) * 0.2
    difference *= np.where(rng.random(PROMPTS) < 1 / (1 + np.exp(-log_odds_of)), 1, -1)[:, None]
    pairs = pairs_of(difference)
    fit = fit_one(options(head="bradley-terry"), pairs)
    tested = the_split(options(), pairs).tested
    own = log_losses(pairs.project(fit.head.weights)[tested, 0]).mean()
    assert fit.facts["held_out"][1]["log_loss"] == pytest.approx(own)
    assert own < np.log(2)


def test_a_head_that_was_not_asked_for_is_compared_with_only_where_that_is_quick(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    few = pairs_of(np.random.default_rng(0).normal(size=(800, 16)))
    many = replace(
        few, difference=np.repeat(few.difference, 800, axis=1), gates=np.empty((0, 12800), np.float32)
    )
    for pairs, compared in ((few, True), (many, False)):
        heads = np.random.default_rng(1).normal(size=(6, 2, pairs.difference.shape[1]))
        rewards = objectives(heads[5], heads[:5])
        chosen = choose_gate(options(gate="uniform"), rewards, pairs, the_split(options(), pairs))
        assert ("Bradley-Terry head" in chosen.scored) == compared
    assert "penalty 10: log-loss" in caplog.text
    assert "no Bradley-Terry head to compare with: 1" in caplog.text


def test_one_tested_prompt_has_no_standard_error() -> None:
    pairs = pairs_of(np.random.default_rng(0).normal(size=(200, SIZE)))
    split = split_of(pairs, np.arange(200) == 3, 5, 0)
    facts = pair_facts(split, table({"longer answer": longer(pairs)}, split))
    assert facts["held_out"][0]["accuracy_se"] is None
    printed = summary(Path("model"), {"head": "bradley-terry", "objectives": [], **facts})
    assert printed.splitlines()[-1].split()[-1] == "-"


def test_a_rule_without_a_scale_has_a_factor_of_the_other_pairs() -> None:
    pairs = pairs_of(np.random.default_rng(0).normal(size=(200, SIZE)))
    split = the_split(options(), pairs)
    margins = np.random.default_rng(1).normal(size=200) + 1
    found = [log_odds(Scored(scale * margins, None), split) for scale in (1, 1000)]
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
