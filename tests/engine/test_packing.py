"""Packs read every sequence once and give every token the keys that it has in its own conversation."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armo_ray.engine.packing import MIN_SHARED_TOKENS, Pack, make_packs

Ids = npt.NDArray[np.int32]


@st.composite
def conversations(draw: st.DrawFn) -> list[Ids]:
    """Sequences that share prefixes on several levels, with duplicates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    known: list[Ids] = [np.empty(0, np.int32)]
    for _ in range(draw(st.integers(1, 12))):
        parent = known[draw(st.integers(0, len(known) - 1))]
        keep = draw(st.integers(0, len(parent)))
        own = rng.integers(0, 4, draw(st.integers(0, 40))).astype(np.int32)
        known.append(np.concatenate((parent[:keep], own)))
    return [ids for ids in known if len(ids)] or [np.zeros(1, np.int32)]


def replayed(pack: Pack) -> list[tuple[int, Ids, int]]:
    """For every sequence read in a pack: its index, the token ids its last token attends to, and its gate."""
    ids = pack.input_ids.astype(np.int32)
    actual = []
    assert pack.cu_read.tolist() == list(range(0, 2 * len(pack.sequences) + 1, 2))
    for sequence, (gate, last) in zip(pack.sequences, pack.read_index.reshape(-1, 2), strict=True):
        segment = int(np.searchsorted(pack.cu_q, last, side="right")) - 1
        keys = pack.kv_index[pack.cu_k[segment] : pack.cu_k[segment + 1]]
        assert last == keys[-1]
        assert (pack.position_ids[keys] == np.arange(len(keys))).all()
        actual.append((int(sequence), ids[keys], int(np.flatnonzero(keys == gate)[0])))
    return actual


@given(sequences=conversations(), budget=st.integers(1, 120), share=st.booleans(), fixed=st.booleans())
def test_every_sequence_is_read_once_with_its_own_tokens_as_keys(
    sequences: list[Ids], budget: int, share: bool, fixed: bool
) -> None:
    gates = [len(ids) * 2 // 3 for ids in sequences]
    reads = [[gate, len(ids) - 1] for gate, ids in zip(gates, sequences, strict=True)]
    packs = list(make_packs(sequences, reads, budget, share, fixed))
    actual = sorted((entry for pack in packs for entry in replayed(pack)), key=lambda entry: entry[0])
    assert [i for i, _, _ in actual] == list(range(len(sequences)))
    for i, keys, gate in actual:
        assert np.array_equal(keys, sequences[i])
        assert gate == gates[i]


@given(sequences=conversations(), budget=st.integers(1, 120))
def test_every_query_sees_a_prefix_that_ends_with_itself(sequences: list[Ids], budget: int) -> None:
    for pack in make_packs(sequences, [[0]] * len(sequences), budget):
        for s in range(len(pack.cu_q) - 1):
            queries = np.arange(pack.cu_q[s], pack.cu_q[s + 1])
            keys = pack.kv_index[pack.cu_k[s] : pack.cu_k[s + 1]]
            assert np.array_equal(keys[len(keys) - len(queries) :], queries)


@given(sequences=conversations(), budget=st.integers(1, 120), fixed=st.booleans())
def test_a_pack_keeps_the_budget_unless_a_single_sequence_exceeds_it(
    sequences: list[Ids], budget: int, fixed: bool
) -> None:
    for pack in make_packs(sequences, [[0]] * len(sequences), budget, fixed_size=fixed):
        assert len(pack.input_ids) <= max(budget, *(len(sequences[i]) for i in pack.sequences))
        assert not fixed or len(pack.input_ids) >= budget


@pytest.mark.parametrize("levels", [1, 2, 3, 4], ids=lambda n: f"{n}-levels")
def test_shared_prefixes_are_computed_once_on_every_level(levels: int) -> None:
    rng = np.random.default_rng(levels)

    def fresh() -> Ids:
        return rng.integers(0, 1000, MIN_SHARED_TOKENS + 4).astype(np.int32)

    sequences = [np.empty(0, np.int32)]
    distinct = 0
    for _ in range(levels):
        sequences = [np.concatenate((ids, fresh())) for ids in sequences for _ in range(3)]
        distinct += len(sequences) * (MIN_SHARED_TOKENS + 4)
    (pack,) = make_packs(sequences, [[0]] * len(sequences), 100_000)
    assert len(pack.input_ids) == distinct


def test_equal_sequences_are_computed_once_and_read_for_each() -> None:
    ids = np.arange(50, dtype=np.int32)
    (pack,) = make_packs([ids, ids.copy(), ids.copy()], [[7, 49], [7, 49], [9, 49]], 1000)
    assert len(pack.input_ids) == 50
    assert sorted(pack.sequences.tolist()) == [0, 1, 2]
    assert sorted(pack.read_index.tolist()) == [7, 7, 9, 49, 49, 49]


def test_a_group_larger_than_the_budget_repeats_only_its_prompt() -> None:
    prompt = np.arange(100, dtype=np.int32)
    answers = [np.full(30, 1000 + i, np.int32) for i in range(10)]
    packs = list(make_packs([np.concatenate((prompt, a)) for a in answers], [[99]] * 10, 200))
    assert len(packs) == 4  # three responses of 30 tokens fit next to a prompt of 100
    assert sum(len(pack.input_ids) for pack in packs) == 4 * 100 + 10 * 30


def test_without_sharing_every_sequence_is_a_segment_of_its_own() -> None:
    ids = np.arange(50, dtype=np.int32)
    (pack,) = make_packs([ids, ids], [[0], [0]], 1000, share=False)
    assert pack.cu_q.tolist() == pack.cu_k.tolist() == [0, 50, 100]


def test_no_sequences_make_no_packs() -> None:
    assert list(make_packs([], [], 100)) == []
