"""The SQL comparison of old and new scores agrees with armo_ray.measures.agreement."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armo_ray.measures.agreement import agreement
from armo_ray.measures.comparison import compare

rows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3).map(float), st.integers(0, 3).map(float)),
    min_size=1,
    max_size=20,
)


@settings(max_examples=30)
@given(rows)
def test_sql_counts_what_the_plain_comparison_counts(actual: list[tuple[int, float, float]]) -> None:
    prompt, old, new = (np.array(column) for column in zip(*actual, strict=True))
    con = duckdb.connect()
    table = pa.table({"place": range(len(old)), "prompt": prompt, "old": pa.array(old), "new": pa.array(new)})
    con.register("scores", table)
    compared = compare(con, "scores")
    expected = agreement({"score": old}, {"score": new}, prompt)
    assert compared["candidates"] == len(old)
    assert compared["pairs"] == expected["pairs"]
    for name in ("pair_flips", "largest_difference"):
        assert compared[name] == expected["columns"]["score"][name]
    spearman = expected["columns"]["score"]["spearman"]
    assert compared["spearman"] == (None if spearman is None else pytest.approx(spearman, abs=1e-9))
    groups = [np.flatnonzero(prompt == p) for p in set(prompt.tolist())]
    several = [group for group in groups if len(group) > 1]
    changed = [
        group
        for group in several
        if not set(group[old[group] == old[group].max()]) & set(group[new[group] == new[group].max()])
    ]
    assert compared["prompts"] == len(several)
    assert compared["top_changes"] == len(changed) / max(len(several), 1)
