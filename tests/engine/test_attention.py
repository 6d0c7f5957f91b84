"""Rows that are computed by themselves see the tokens before them in their conversation, and their own last."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.engine import attention
from armo_ray.engine.attention import Segments, attend
from armo_ray.engine.packing import Index, Pack, make_packs
from tests.engine.test_packing import Ids, conversations

CPU = torch.device("cpu")


def keys_of(pack: Pack, row: int) -> list[int]:
    """The tokens that a token of a pack must see: its segment's keys up to itself."""
    (segment,) = (s for s in range(len(pack.cu_q) - 1) if pack.cu_q[s] <= row < pack.cu_q[s + 1])
    keys: list[int] = pack.kv_index[pack.cu_k[segment] : pack.cu_k[segment + 1]].tolist()
    return keys[: keys.index(row) + 1]


def some_rows(pack: Pack, every: int) -> Index:
    """The rows that a head reads, the first and the last of every segment, and others."""
    ends = (pack.cu_q[:-1], pack.cu_q[1:] - 1, pack.read_index)
    return np.unique(np.concatenate((*ends, np.arange(0, len(pack.input_ids), every))))


@given(sequences=conversations(), budget=st.integers(1, 120), fixed=st.booleans(), every=st.integers(1, 9))
def test_each_row_is_a_query_that_sees_the_tokens_before_it(
    sequences: list[Ids], budget: int, fixed: bool, every: int
) -> None:
    for pack in make_packs(sequences, [[len(ids) // 2] for ids in sequences], budget, fixed_size=fixed):
        rows = some_rows(pack, every)
        (chunk,) = Segments.of_rows(pack, rows, CPU).chunks
        assert chunk.kv_index is not None
        expected = [keys_of(pack, row) for row in rows.tolist()]
        assert chunk.kv_index.tolist() == [key for keys in expected for key in keys]
        assert chunk.cu_q.tolist() == list(range(len(rows) + 1))
        assert chunk.cu_k.diff().tolist() == list(map(len, expected))
        assert (chunk.max_q, chunk.max_k) == (1, max(map(len, expected)))
        starts = chunk.cu_k.tolist()
        assert chunk.bounds == tuple((i, i + 1, starts[i], starts[i + 1]) for i in range(len(rows)))


@settings(max_examples=50)  # some examples make a hundred packs
@given(sequences=conversations(), budget=st.integers(1, 120), most=st.integers(1, 60))
def test_keys_gathered_in_chunks_give_the_same_bits(sequences: list[Ids], budget: int, most: int) -> None:
    generator = torch.Generator().manual_seed(0)
    for pack in make_packs(sequences, [[0]] * len(sequences), budget):
        q, k, v = (torch.randn(len(pack.input_ids), h, 8, generator=generator) for h in (4, 2, 2))
        whole = Segments.of(pack, CPU)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "MAX_KEYS", most)
            chunked = Segments.of(pack, CPU)
        for chunk in chunked.chunks:
            assert chunk.kv_index is None or len(chunk.kv_index) <= most or len(chunk.bounds) == 1
        assert torch.equal(attend(q, k, v, chunked), attend(q, k, v, whole))


@settings(max_examples=50)
@given(sequences=conversations(), budget=st.integers(1, 120), share=st.booleans(), fixed=st.booleans())
def test_a_row_by_itself_attends_as_in_its_segment(
    sequences: list[Ids], budget: int, share: bool, fixed: bool
) -> None:
    generator = torch.Generator().manual_seed(0)
    for pack in make_packs(sequences, [[0]] * len(sequences), budget, share, fixed):
        rows = some_rows(pack, 3)
        q, k, v = (
            torch.randn(len(pack.input_ids), h, 8, generator=generator, dtype=torch.float64)
            for h in (4, 2, 2)
        )
        whole = attend(q, k, v, Segments.of(pack, CPU))
        alone = attend(q[rows], k, v, Segments.of_rows(pack, rows, CPU))
        assert (alone - whole[rows]).abs().max() < 1e-12
