"""Pairs of a chosen and a rejected answer to a prompt: the difference of their hidden states, and the gate's state.

Differences are written to a file as they are found, and read a block at a time: they may be larger than the memory.
Pairs that contradict each other, and pairs of equal texts, say nothing of what people prefer: they are left out.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from armo_ray.fit.spans import Span, tables_of
from armo_ray.fit.work import read_back
from armo_ray.outputs.hidden import Hidden
from armo_ray.storage.store import Store

BLOCK = 4096  # pairs at once
_SAME = 1e-5  # of the norm of a hidden state: what computing an equal text in another pack may change
_FIELDS = ("prompt_id", "chosen", "rejected")

Array = npt.NDArray[Any]
Bools = npt.NDArray[np.bool_]


class Found(NamedTuple):
    """What a task reports of a span; the pairs lie in a file of the work folder."""

    rows: int
    pairs: int
    equal: tuple[str, ...]  # row ids of the chosen ones of pairs of equal texts
    unpaired: int  # rows without a partner
    file: str


@dataclass(frozen=True)
class PairJob:
    """How to find the pairs of a span; `work` is the folder for their files, `needs_gates` the gate's states too."""

    work: str
    needs_gates: bool = True

    def __call__(self, span: Span) -> Found:
        return find_pairs(self, span)


@dataclass(frozen=True)
class Pairs:
    """N pairs of P prompts, of hidden states of H numbers."""

    difference: npt.NDArray[np.float32]  # (N, H), chosen - rejected, in a file
    gates: npt.NDArray[np.float32]  # (P, H), in a file; (0, H) where none are needed
    gate_of: npt.NDArray[np.int64]  # (N,), the row of `gates` of each pair
    prompt_ids: tuple[str, ...]  # of each pair
    chosen: tuple[str, ...]  # row ids
    rejected: tuple[str, ...]
    tokens: npt.NDArray[np.int64]  # (N, 2), of the chosen and of the rejected answer

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def blocks(self, of: Bools) -> Iterator[npt.NDArray[np.float32]]:
        """Differences of the selected pairs, some at a time, in order."""
        for start in range(0, len(self), BLOCK):
            selected = of[start : start + BLOCK]
            if selected.any():
                yield np.asarray(self.difference[start : start + BLOCK])[selected]

    def project(self, weights: Array) -> npt.NDArray[np.float64]:
        """Differences of the rewards (N, K) of a head with weights (K, H)."""
        parts = [block @ weights.T.astype(np.float64) for block in self.blocks(np.ones(len(self), bool))]
        return np.concatenate(parts) if parts else np.empty((0, len(weights)))


def find_pairs(job: PairJob, span: Span) -> Found:
    """Write the pairs of a span to a file of the work folder."""
    parts: list[dict[str, Array]] = []
    equal: list[str] = []
    unpaired = rows = prompts = 0
    for hidden in tables_of(span, job.needs_gates):
        rows += hidden.table.num_rows
        chosen, rejected, without = partners(hidden)
        unpaired += without
        same = (hidden.last[chosen] == hidden.last[rejected]).all(axis=1)
        equal += hidden.table["row_id"].take(chosen[same]).to_pylist()
        parts.append(_arrays(hidden, chosen[~same], rejected[~same], prompts, job.needs_gates))
        prompts += len(parts[-1]["gates"])
    file, content = f"pairs-{span.number:06}.npz", io.BytesIO()
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(content, allow_pickle=False, **joined)
    Store(job.work).write(file, content.getvalue())
    return Found(rows, len(joined["gate_of"]), tuple(equal), unpaired, file)


def partners(hidden: Hidden) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Rows of the chosen and of the rejected answers of all pairs, and how many rows are in none.

    A chosen answer is paired with every rejected one of its row of the input.
    """
    table = hidden.table
    keys = zip(table["source"].to_pylist(), table["source_row"].to_pylist(), strict=True)
    groups: dict[Any, tuple[list[int], list[int]]] = {}
    for row, (key, role) in enumerate(zip(keys, table["role"].to_pylist(), strict=True)):
        if role in ("chosen", "rejected"):
            groups.setdefault(key, ([], []))[role == "rejected"].append(row)
    pairs = [pair for better, worse in groups.values() for pair in product(better, worse)]
    chosen, rejected = np.array(pairs, np.int64).reshape(-1, 2).T
    return chosen, rejected, table.num_rows - len({row for pair in pairs for row in pair})


def _arrays(
    hidden: Hidden, chosen: Array, rejected: Array, prompts: int, needs_gates: bool
) -> dict[str, Array]:
    table = hidden.table
    tokens = table["num_response_tokens"].to_numpy()
    used, gate_of = (
        np.unique(hidden.gate_of[chosen], return_inverse=True)
        if needs_gates
        else (np.empty(0, np.int64), np.zeros(len(chosen), np.int64))
    )
    gates = hidden.gate[used] if needs_gates else np.empty((0, hidden.last.shape[1]), np.float32)
    columns = {"prompt_id": chosen, "chosen": chosen, "rejected": rejected}
    names = {"prompt_id": "prompt_id", "chosen": "row_id", "rejected": "row_id"}
    texts = {
        name: np.array(table[names[name]].take(rows).to_pylist(), np.str_) for name, rows in columns.items()
    }
    return {
        "difference": hidden.last[chosen] - hidden.last[rejected],
        "norm": np.linalg.norm(hidden.last[chosen], axis=1),
        "gates": gates,
        "gate_of": gate_of.reshape(-1) + prompts,
        "tokens": np.stack([tokens[chosen], tokens[rejected]], axis=1).astype(np.int64),
        **texts,
    }


def collect(work: str, found: Sequence[Found], scratch: Path, size: int) -> tuple[Pairs, list[str]]:
    """The pairs of all spans but those in both directions, of which the row ids are returned too."""
    files = {name: (scratch / name).open("wb") for name in ("difference", "gates")}
    columns: dict[str, list[Array]] = {name: [] for name in (*_FIELDS, "gate_of", "tokens", "norm")}
    prompts = 0
    store = Store(work)
    for span in found:
        with np.load(io.BytesIO(read_back(store, span.file)), allow_pickle=False) as part:
            for name, file in files.items():
                file.write(np.ascontiguousarray(part[name], np.float32).tobytes())
            for name, values in columns.items():
                values.append(part[name] + prompts if name == "gate_of" else part[name])
            prompts += len(part["gates"])
    for file in files.values():
        file.close()
    whole = {name: np.concatenate(values) if values else np.empty(0) for name, values in columns.items()}
    prompt_ids, chosen, rejected = (tuple(whole[name].tolist()) for name in _FIELDS)
    gate_of, tokens = whole["gate_of"].astype(np.int64), whole["tokens"].reshape(-1, 2).astype(np.int64)
    difference, gates = (_mapped(scratch / name, size) for name in ("difference", "gates"))
    pairs = Pairs(difference, gates, gate_of, prompt_ids, chosen, rejected, tokens)
    opposed = in_both_directions(pairs, whole["norm"])
    return without(pairs, opposed, scratch), [pairs.chosen[i] for i in np.flatnonzero(opposed)]


def in_both_directions(pairs: Pairs, norm: Array) -> Bools:
    """Pairs (N,) of which another one prefers the answer that they reject: equal prompts, lengths and hidden states.

    Only pairs are compared whose differences are as opposite as equal texts on one axis.
    """
    by_key: dict[Any, list[int]] = {}
    for i, (prompt, (a, b)) in enumerate(zip(pairs.prompt_ids, pairs.tokens.tolist(), strict=True)):
        by_key.setdefault((prompt, a, b), []).append(i)
    found = np.zeros(len(pairs), bool)
    axis = np.random.default_rng(0).normal(size=(1, pairs.difference.shape[1]))
    place = pairs.project(axis / np.linalg.norm(axis))[:, 0]
    for (prompt, a, b), own in by_key.items():
        others = np.array(by_key.get((prompt, b, a), ()), np.int64)
        others = others[np.argsort(-place[others], kind="stable")]
        opposite = -place[others]
        for i in own if len(others) else ():
            wide = 1.001 * _SAME * norm[i]  # a little more: projections are rounded
            first = np.searchsorted(opposite, place[i] - wide, "left")
            last = np.searchsorted(opposite, place[i] + wide, "right")
            _mark(found, pairs.difference, i, others[first:last], _SAME * norm[i])
    return found


def _mark(found: Bools, difference: Array, i: int, near: npt.NDArray[np.int64], limit: float) -> None:
    """Mark pair i and those near it whose differences cancel its own; if all are marked, one of them will do for i."""

    def cancel(rows: Any) -> Any:
        return np.linalg.norm(difference[i] + difference[rows], axis=-1) <= limit

    near = near[near != i]
    marked, others = near[found[near]], near[~found[near]]
    others = others[cancel(others)]
    found[others] = True
    if len(others) or (not found[i] and any(cancel(j) for j in marked)):
        found[i] = True


def without(pairs: Pairs, dropped: Bools, scratch: Path) -> Pairs:
    """The pairs that are not dropped, whose differences are written to another file."""
    if not dropped.any():
        return pairs
    size = pairs.difference.shape[1]
    with (scratch / "kept").open("wb") as file:
        for block in pairs.blocks(~dropped):
            file.write(block.tobytes())
    kept = np.flatnonzero(~dropped)
    texts = (pairs.prompt_ids, pairs.chosen, pairs.rejected)
    prompt_ids, chosen, rejected = (tuple(values[i] for i in kept) for values in texts)
    of, tokens = pairs.gate_of[kept], pairs.tokens[kept]
    return Pairs(_mapped(scratch / "kept", size), pairs.gates, of, prompt_ids, chosen, rejected, tokens)


def _mapped(file: Path, size: int) -> npt.NDArray[np.float32]:
    if not file.stat().st_size:
        return np.empty((0, size), np.float32)
    return np.memmap(file, np.float32, "r").reshape(-1, size)
