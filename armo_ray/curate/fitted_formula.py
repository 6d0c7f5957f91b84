"""Weights of rewards, or one factor of the score, fitted to labelled pairs; and how well they predict other pairs.

All follows from an output of score: no model is loaded. What is written is what was measured: pairs of the held-out
prompts take no part in the fit.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.curate.labelled_pairs import LabelledPairs, open_pairs, read_pairs
from armo_ray.curate.options import ReweighOptions
from armo_ray.errors import ConfigError
from armo_ray.fitting.bradley_terry import RELATIVE, bradley_terry, choose_penalty, scale_of
from armo_ray.fitting.held_out import HEAD, Accuracy, log_losses, measure, paired_difference, table_rows
from armo_ray.fitting.sampling import folds_of, hashes_of, in_fraction
from armo_ray.formatting.numbers import significant
from armo_ray.formatting.tables import markdown_table
from armo_ray.outputs.scores import Scores

Floats = npt.NDArray[np.float64]

_FEWEST = 30  # pairs to fit one number to
_FEWEST_PER_WEIGHT = 5
_FEWEST_HELD_OUT = 10  # prompts
_DIGITS = 9  # the last bits of a sum depend on the processor
_TINY = 1e-12


class Fitted(NamedTuple):
    """A fit to labelled pairs."""

    weights: tuple[float, ...] | None  # of the rewards; None: a factor was fitted
    factor: float | None
    details: Mapping[str, Any]  # for comparison.json and _run.json
    about: str  # Markdown


def fit(options: ReweighOptions, scores: Scores) -> Fitted:
    """Fit to the pairs of `options.fit_pairs`, and measure on the held-out ones.

    Raises ConfigError if there are no labelled pairs of this model, too few, or such as say nothing.
    """
    opened = open_pairs(options.fit_pairs, scores)
    pairs = read_pairs(options, opened)
    held_out = in_fraction(hashes_of(pairs.prompts, "held-out", options.seed), options.test_fraction)
    train, test = pairs.of(~held_out), pairs.of(held_out)
    fits_weights = options.fit == "weights"
    _check_enough(options, train, test, len(scores.reward_names) if fits_weights else 1)
    baselines, present = _baselines(train, test)
    if fits_weights:
        spread = _spread(train)
        weights, relative = _weights(options, train, spread)
        values, name = test.rewards @ weights, "fitted weights"
        found: dict[str, Any] = {
            "weights": dict(zip(scores.reward_names, weights.tolist(), strict=True)),
            "relative_penalty": relative,
        }
        result = _weights_table(scores, weights, spread)
    else:
        factor = _temperature(train)
        values, name = factor * test.score, "fitted factor"
        found = {"factor": factor, "temperature": 1 / factor}
        result = (
            f"The score times {factor:g} is in log-odds: chosen wins with probability 1 / (1 + exp(-difference)). This "
            f"changes no order, and so no accuracy."
        )
    groups = np.unique(np.array(test.prompts), return_inverse=True)[1]
    rows = [measure(label, margins, groups) for label, margins in {**baselines, name: values}.items()]
    verdict, difference = _verdict(name, values, present, baselines, groups)
    if rows[-1].log_loss + rows[-1].log_loss_se > np.log(2):
        verdict += (
            " That is not better than a coin, whose log-loss is 0.6931, by more than one standard error."
        )
    counts = {"training_pairs": len(train), "held_out_pairs": len(test), "left_out": dict(pairs.left_out)}
    details = {
        "pairs": list(opened.outputs),
        "kind": options.fit,
        **counts,
        **found,
        "held_out": [row._asdict() for row in rows],
        **difference,
    }
    about = "\n\n".join([_counted(options, opened, train, test), _table(rows), verdict, result])
    return Fitted(
        tuple(weights.tolist()) if fits_weights else None, None if fits_weights else factor, details, about
    )


def _check_enough(options: ReweighOptions, train: LabelledPairs, test: LabelledPairs, numbers: int) -> None:
    needed = max(_FEWEST, _FEWEST_PER_WEIGHT * numbers)
    if len(train) < needed or len(set(train.prompts)) < max(_FEWEST, 2 * options.folds):
        other = "; --fit temperature needs fewer" if numbers > _FEWEST // _FEWEST_PER_WEIGHT else ""
        raise ConfigError(
            f"--fit-pairs: {len(train)} pairs of {len(set(train.prompts))} prompts to fit {numbers} "
            f"number{'s' * (numbers > 1)} to are too few: {needed} pairs of {max(_FEWEST, 2 * options.folds)} prompts "
            f"are needed, beside the held-out ones (--test-fraction){other}"
        )
    if len(set(test.prompts)) < _FEWEST_HELD_OUT:
        raise ConfigError(
            f"--fit-pairs: {len(set(test.prompts))} held-out prompts measure nothing: {_FEWEST_HELD_OUT} are needed. "
            f"Give more pairs, or a larger --test-fraction"
        )


def _spread(train: LabelledPairs) -> Floats:
    """The root mean square of the differences of each reward (K,), in whose units the penalty is the same for all."""
    spread: Floats = np.sqrt(np.square(train.rewards).mean(axis=0))
    if not spread.any():
        raise ConfigError("--fit-pairs: the rewards of chosen and rejected responses are all equal")
    return np.where(spread > 0, spread, 1.0)


def _weights(options: ReweighOptions, train: LabelledPairs, spread: Floats) -> tuple[Floats, float]:
    """The weights (K,) of the rewards, and the penalty that was best on left-out folds of prompts."""
    standardized = train.rewards / spread
    fold = folds_of(train.prompts, options.folds, options.seed)
    choice = choose_penalty(lambda: [(standardized, fold)], options.folds)
    if choice.relative == max(RELATIVE) or min(loss for _, loss in choice.log_losses) >= np.log(2):
        raise ConfigError(
            f"--fit-pairs: the rewards do not tell chosen from rejected: on folds that were left out, no weights "
            f"predict {len(train)} pairs better than weights of nearly 0"
        )
    weights = bradley_terry(lambda: [standardized], choice.penalty) / spread
    return np.array([_rounded(weight) for weight in weights]), choice.relative


def _temperature(train: LabelledPairs) -> float:
    size = float(np.sqrt(np.square(train.score).mean())) or 1.0
    try:
        factor = _rounded(bradley_terry(lambda: [train.score[:, None] / size], 0.0)[0] / size)
    except ConfigError:
        raise ConfigError(
            f"--fit temperature: no factor fits best, as the scores contradict none, or all, of {len(train)} labelled "
            f"pairs: give more pairs"
        ) from None
    if factor <= 0:
        raise ConfigError(
            f"--fit temperature: the best factor of the score is {factor:g}, so the scores contradict more pairs than "
            f"they agree with: use --fit weights"
        )
    return factor


def _baselines(train: LabelledPairs, test: LabelledPairs) -> tuple[dict[str, Floats], str]:
    """Margins of held-out pairs by name, with nothing fitted but a factor; and the name of the present score's."""
    margins = {}
    if train.length is not None and test.length is not None:
        margins["longest response *"] = _factor(train.length) * test.length
    margins["present score"] = test.score
    margins["present score *"] = _factor(train.score) * test.score
    if test.rewards.shape[1] > 1:
        spread = _spread(train)
        equal = (train.rewards / spread).sum(axis=1)
        margins["equal weights *"] = _factor(equal) * (test.rewards / spread).sum(axis=1)
    return margins, "present score *"


def _factor(values: Floats) -> float:
    """The positive factor with which values (P,) are the best margins: one that reverses them is no baseline."""
    column = values[:, None]
    penalty = 1e-6 * scale_of(lambda: [column])  # where the values contradict no pair, the best is infinite
    return max(float(bradley_terry(lambda: [column], penalty)[0]), _TINY)


def _rounded(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")


def _verdict(
    name: str, values: Floats, present: str, baselines: Mapping[str, Floats], groups: npt.NDArray[Any]
) -> tuple[str, dict[str, Any]]:
    """The fit against the present score, over the same pairs."""
    against = "present score" if name == "fitted factor" else present
    loss, error = paired_difference(log_losses(values), log_losses(baselines[against]), groups)
    difference = {"against": against, "log_loss_difference": loss, "log_loss_difference_se": error}
    better = "better than" if loss < -error else "worse than" if loss > error else "no better than"
    margin = "by more than one standard error" if abs(loss) > error else "within one standard error"
    verb = "are" if name.endswith("s") else "is"
    said = f"On held-out pairs the {name} {verb} {better} the {against}, {margin}: log-loss {loss:+.4f} ± {error:.4f}."
    return said, difference


def _counted(options: ReweighOptions, opened: Scores, train: LabelledPairs, test: LabelledPairs) -> str:
    left_out = "".join(f", {count:,} {what}" for what, count in train.left_out.items())
    how = (
        ""
        if opened.has_text
        else " (responses with equal numbers of tokens, scores and rewards count as equal)"
    )
    return (
        f"Fitted to {len(train):,} labelled pairs of {', '.join(opened.outputs)}; measured on {len(test):,} pairs of "
        f"other prompts, {options.test_fraction:g} of all by a hash of the prompt with seed {options.seed}. "
        f"Left out: {left_out.removeprefix(', ') + how if left_out else 'nothing'}."
    )


def _table(rows: list[Accuracy]) -> str:
    return (
        markdown_table(HEAD, table_rows(rows), aligned=True)
        + "\n\nA margin with * is times the factor that fits the training pairs best, so that log-losses can be "
        "compared. Standard errors count the pairs of a prompt as one."
    )


def _weights_table(scores: Scores, weights: Floats, spread: Floats) -> str:
    order = np.argsort(-np.abs(weights * spread), kind="stable")
    rows = [
        (scores.reward_names[i], significant(weights[i], 6), significant(weights[i] * spread[i], 3))
        for i in order
    ]
    return markdown_table(("reward", "weight", "times the spread of its differences"), rows, aligned=True)
