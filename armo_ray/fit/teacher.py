"""The rewards, gates and scores of a larger model, looked up by the ids of the rows that it scored.

They lie in files of the work folder, ordered by a hash of the row id. Prompts are not compared: their ids depend on
a model's template, those of rows do not.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from armo_ray.errors import ConfigError
from armo_ray.fit.spans import joined
from armo_ray.fit.work import mapped
from armo_ray.fitting.sampling import hashes_of
from armo_ray.outputs.scores import Scores, open_scores
from armo_ray.storage.local_files import Opened
from armo_ray.storage.store import Store

_COLUMNS = ("row_id", "score", "rewards", "gating")

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Teacher:
    """Where the values of a larger model lie, and what its head is like."""

    work: str
    uri: str
    model: str
    names: tuple[str, ...]  # of its K rewards
    gated: bool
    transform: tuple[tuple[float, ...], ...] | None  # (K, K) of a gated model; factors of `reweigh` are in it
    weights: tuple[float, ...] | None  # (K,) of the rewards in the score, without gates; factors are in them


class Values(NamedTuple):
    """What the teacher says of N rows, ordered by hash."""

    hashes: npt.NDArray[np.uint64]  # (N,)
    score: npt.NDArray[np.float32]  # (N,)
    rewards: npt.NDArray[np.float32]  # (N, K)
    gating: npt.NDArray[np.float32]  # (N, K), or (N, 0)


def read_teacher(uri: str, work: str) -> Teacher:
    """Read an output into a file of the work folder. Raises ConfigError if it is not one with rewards."""
    scores = open_scores([uri])
    metadata = scores.metadata
    matrix, fixed = metadata.get("reward_transform_matrix"), metadata.get("fixed_weights")
    if metadata.get("ensemble") or not scores.reward_names:
        raise ConfigError(
            f"--target-scores {uri}: scores of several models, or of a judge: give a reward model's"
        )
    if metadata.get("length_penalty"):
        raise ConfigError(
            f"--target-scores {uri}: its scores have a penalty for length, which a head on hidden states cannot learn: "
            f"give scores without --length-penalty, and reweigh those of the new model"
        )
    gated = matrix is not None and fixed is None
    values = _read(scores, gated)
    if twice := int((values.hashes[1:] == values.hashes[:-1]).sum()):
        raise ConfigError(
            f"--target-scores {uri}: {twice} row ids are there twice. Check it with armo-ray verify"
        )
    for name, array in values._asdict().items():
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        Store(work).write(_file(name), content.getvalue())
    factors = np.array(metadata.get("objective_factors") or [1.0] * len(scores.reward_names), np.float64)
    scaled = factors[:, None] * np.array(matrix, np.float64) if gated else np.empty((0, 0))
    rows = tuple(tuple(row) for row in scaled.tolist()) if gated else None
    weights = None if fixed is None else tuple((factors * np.array(fixed, np.float64)).tolist())
    return Teacher(work, scores.outputs[0], str(metadata["model"]), scores.reward_names, gated, rows, weights)


def content_of(uri: str) -> list[list[Any]]:
    """What tells an output with scores from another in the same place: the rows and the digest of each part."""
    return [[part.rows, part.digest] for part in open_scores([uri]).parts]


def _read(scores: Scores, gated: bool) -> Values:
    parts: list[Values] = []
    for part in scores.parts:
        with Opened().open(part.uri) as stream:
            table = pq.read_table(stream, columns=list(_COLUMNS), partitioning=None)
        hashes = hashes_of(table["row_id"].to_pylist(), "row")
        score = table["score"].to_numpy().astype(np.float32)
        gating = _struct(table["gating"]) if gated else np.empty((len(hashes), 0), np.float32)
        parts.append(Values(hashes, score, _struct(table["rewards"]), gating))
    values = joined(parts)
    order = np.argsort(values.hashes, kind="stable")
    columns: Any = (column[order] for column in values)
    return Values(*columns)


def _struct(column: pa.ChunkedArray) -> npt.NDArray[np.float32]:
    """A struct of K numbers as (n, K), NaN where one is null."""
    fields = column.combine_chunks().flatten()
    return np.stack([f.to_numpy(zero_copy_only=False).astype(np.float32) for f in fields], axis=1)


def _file(name: str) -> str:
    return f"teacher-{name}.npy"


@lru_cache(1)
def values_of(teacher: Teacher) -> Values:
    """The values in the files of the work folder, of which only what is looked up is read into memory.

    Raises ConfigError if they are not here.
    """
    store = Store(teacher.work)
    return Values(*(mapped(store, _file(name)) for name in Values._fields))


def look_up(teacher: Teacher, row_ids: Sequence[str]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    """The place of each row in `values_of`, and whether the teacher scored it."""
    values = values_of(teacher)
    hashes = hashes_of(row_ids, "row")
    place = np.minimum(np.searchsorted(values.hashes, hashes), len(values.hashes) - 1)
    return place, values.hashes[place] == hashes


def rewards_for(teacher: Teacher, row_ids: Sequence[str]) -> Array:
    """The teacher's rewards (n, K) of rows, NaN for a row that it did not score."""
    place, known = look_up(teacher, row_ids)
    rewards: Any = values_of(teacher).rewards[place].astype(np.float64)
    rewards[~known] = np.nan
    return np.asarray(rewards)
