"""A head that learns the rewards and gates of a larger model, and how far its order of rows is the larger model's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.errors import ConfigError
from armo_ray.fit.labelled import is_tested
from armo_ray.fit.objectives import Objectives
from armo_ray.fit.spans import Span, TaskRunner, in_order, joined, tables_of
from armo_ray.fit.teacher import Teacher, look_up, values_of
from armo_ray.fitting.gates import TEMPERATURE, Gate, constant_gate, weights_of
from armo_ray.fitting.sampling import hashes_of, in_fraction
from armo_ray.measures.agreement import pairs_of, spearman

PROMPTS = 50_000  # that the network learns from
KENDALL = 2_000  # rows, all pairs of which are compared
SHARES = (0.01, 0.1)  # of the rows, the best
LEAST_BEST = 5  # rows that such a share must be to say something
POOR = 0.9  # Spearman's correlation below which the order is not the larger model's
_EQUAL = 1e-3  # between prompts: weights that differ less are the same for all

Array = npt.NDArray[np.float64]


class Gated(NamedTuple):
    """Hidden states of prompts (P, H), and the teacher's weights for them (P, K)."""

    states: npt.NDArray[np.float32]
    gating: Array


@dataclass(frozen=True)
class _ReadGates:
    """Reads the gates of a share of the prompts of a span that are not tested."""

    teacher: Teacher
    test_fraction: float
    seed: int
    share: float

    def __call__(self, span: Span) -> Gated:
        parts = []
        for hidden in tables_of(span, gates=True):
            place, known = look_up(self.teacher, hidden.table["row_id"].to_pylist())
            prompts = hidden.table["prompt_id"].to_pylist()
            known &= ~is_tested(prompts, self.test_fraction, self.seed)
            known &= in_fraction(hashes_of(prompts, "gate", self.seed), self.share)
            used, first = np.unique(hidden.gate_of[known], return_index=True)
            gating = values_of(self.teacher).gating[place[known][first]]
            parts.append(Gated(hidden.gate[used], gating.astype(np.float64)))
        return joined(parts)


class Learned(NamedTuple):
    """A gate, the transform of the rewards, and facts."""

    gate: Gate
    transform: Array
    facts: dict[str, Any]


def gate_of(
    teacher: Teacher,
    spans: Sequence[Span],
    run_tasks: TaskRunner,
    size: int,
    test_fraction: float,
    seed: int,
) -> Learned:
    """The gate that is nearest to the teacher's, or the weights of the rewards in its score if it has none."""
    if not teacher.gated:
        weights = np.array(teacher.weights, np.float64)
        total = float(np.abs(weights).sum())
        if not total > 0:
            raise ConfigError(f"--target-scores {teacher.uri}: the rewards there have no weight in the score")
        gate = constant_gate("teacher-constant", np.abs(weights) / total, size, 0.0)
        facts = {"weights": dict(zip(teacher.names, weights.tolist(), strict=True))}
        return Learned(gate, np.diag(np.sign(weights) * total), facts)
    rows = sum(span.rows for span in spans)
    task = _ReadGates(teacher, test_fraction, seed, min(1.0, PROMPTS / max(rows, 1)))
    found = joined([part for batch in in_order("gates", task, spans, run_tasks) for _, part in batch])
    totals = found.gating.sum(axis=1)
    if not len(totals) or found.gating.min() < 0 or np.ptp(totals) > 1e-3 * totals.mean():
        raise ConfigError(
            f"--target-scores {teacher.uri}: its gates are not shares with one sum, which a head of this kind has: "
            f"learn its rewards as labels instead"
        )
    scale = float(totals.mean())
    transform = scale * np.array(teacher.transform, np.float64)
    shares = found.gating / totals[:, None]
    if float(np.ptp(shares, axis=0).max()) < _EQUAL:
        shared = shares.mean(axis=0)
        weights_by_name = dict(zip(teacher.names, shared.tolist(), strict=True))
        gate = constant_gate("teacher-constant", shared, size, 0.0)
        return Learned(gate, transform, {"prompts": len(totals), "weights": weights_by_name})
    from armo_ray.fitting.network import fit_to_weights  # torch

    layers = fit_to_weights(found.states, shares, TEMPERATURE, seed)
    return Learned(Gate("teacher", layers, TEMPERATURE, 0.0), transform, {"prompts": len(totals)})


class Ranked(NamedTuple):
    """Scores of held-out rows (n,) by the larger model and by the new one, and a hash of each row's prompt."""

    teacher: Array
    student: Array
    prompt: npt.NDArray[np.uint64]


@dataclass(frozen=True)
class _Rank:
    """Scores the rows of a span that are tested and that the teacher scored."""

    teacher: Teacher
    rewards: Array  # (K, H)
    transform: Array
    gate: Gate
    test_fraction: float
    seed: int

    def __call__(self, span: Span) -> Ranked:
        parts = []
        reads = self.gate.kind == "teacher"
        for hidden in tables_of(span, gates=reads):
            place, known = look_up(self.teacher, hidden.table["row_id"].to_pylist())
            prompts = hidden.table["prompt_id"].to_pylist()
            rows = np.flatnonzero(known & is_tested(prompts, self.test_fraction, self.seed))
            states = hidden.gate[hidden.gate_of[rows]] if reads else hidden.last[rows]
            debiased = hidden.last[rows].astype(np.float64) @ self.rewards.T @ self.transform
            student = (debiased * weights_of(self.gate, states)).sum(axis=1)
            teacher = values_of(self.teacher).score[place[rows]].astype(np.float64)
            parts.append(Ranked(teacher, student, hashes_of(prompts, "rank")[rows]))
        return joined(parts)


def agreement(
    teacher: Teacher,
    rewards: Objectives,
    learned: Learned,
    spans: Sequence[Span],
    run_tasks: TaskRunner,
    split: tuple[float, int],
) -> dict[str, Any]:
    """How far the order of held-out rows is the teacher's. `split` is the test fraction and the seed."""
    task = _Rank(teacher, rewards.weights, learned.transform, learned.gate, *split)
    ranked = joined([part for batch in in_order("ranks", task, spans, run_tasks) for _, part in batch])
    return measures(ranked)


def measures(ranked: Ranked) -> dict[str, Any]:
    """Rank correlations, the share of pairs of one prompt in the same order, and of the best rows that are kept."""
    count = len(ranked.teacher)
    found: dict[str, Any] = {"held-out rows": count}
    if count < 2:
        return found
    found["Spearman"] = spearman(ranked.teacher, ranked.student)
    found["Kendall's tau"] = kendall(ranked.teacher[:KENDALL], ranked.student[:KENDALL])
    first, second = pairs_of(np.unique(ranked.prompt, return_inverse=True)[1])
    teacher, student = (np.sign(s[first] - s[second]) for s in (ranked.teacher, ranked.student))
    if (teacher != 0).any():
        found["pairs of one prompt in the same order"] = float((teacher == student)[teacher != 0].mean())
    for share in SHARES:
        if round(share * count) < LEAST_BEST:
            continue
        kept = top_kept(ranked.teacher, ranked.student, share)
        found[f"share of the best {share:.0%} that is kept"] = kept
    return found


def poor_order(agreement: Mapping[str, Any]) -> str:
    """A warning where the order of held-out rows is not the larger model's; else an empty text."""
    if (rank := agreement.get("Spearman", 1.0)) is not None and rank >= POOR:
        return ""
    known = "not known, as all scores of one model are equal" if rank is None else f"{rank:.3f}"
    return (
        f"the order of held-out rows is not that of the larger model: Spearman's correlation is {known}. Embed more "
        f"rows, or take a larger backbone, before this model stands in for it"
    )


def formula_of(names: Sequence[str], transform: Array) -> list[str]:
    """What enters the score for each reward that is not taken as it is, in words."""
    lines = []
    for j, name in enumerate(names):
        column = transform[:, j]
        if np.abs(column - np.eye(len(names))[j]).max() > 1e-6:
            terms = [f"{w:+.4g} `{names[i]}`" for i, w in enumerate(column) if w]
            lines.append(f"for `{name}`: {' '.join(terms) or '0'}")
    return lines


def kendall(a: Array, b: Array) -> float | None:
    """Kendall's tau-b of columns (n,), by comparing all pairs; None if one is constant."""
    upper = np.triu_indices(len(a), 1)
    x, y = (np.sign(v[upper[0]] - v[upper[1]]) for v in (a, b))
    scale = float(np.sqrt((x != 0).sum() * (y != 0).sum()))
    return float((x * y).sum()) / scale if scale else None


def top_kept(a: Array, b: Array, share: float) -> float:
    """The share of the best rows by `a` that are among as many best by `b`."""
    count = max(1, round(share * len(a)))
    best, other = (set(np.argsort(-v, kind="stable")[:count].tolist()) for v in (a, b))
    return len(best & other) / count
