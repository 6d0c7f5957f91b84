"""Hidden states are read as they were computed, with their prompts and labels, and only where they can be compared."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.engine import RewardModel
from armo_ray.errors import ConfigError
from armo_ray.model.checkpoint import inspect
from armo_ray.outputs.hidden import HiddenUnit, labels_of, open_hidden, read_hidden
from armo_ray.outputs.schema import vectors
from armo_ray.score.job import prepare
from armo_ray.score.stages.read import load_encoder
from armo_ray.storage.parts import write_table
from armo_ray.storage.store import Store
from armo_ray.text.conversations import candidates_of
from armo_ray.text.layouts import Layout
from tests.support.local import embed_locally, embed_options, score_locally
from tests.support.shards import write_shard

LAYOUT = Layout("rollouts", {"prompt": "prompt", "responses": "responses"})
ROWS: list[dict[str, Any]] = [
    {"day": "ab"[i % 2], "prompt": f"Question {i // 2}?", "responses": [f"yes {i}", "no", f"perhaps {i}"]}
    for i in range(12)
]


@pytest.fixture(scope="module")
def rollouts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rollouts")
    rows = [*ROWS[:5], {"day": "a", "prompt": "Lost?", "responses": [""]}, *ROWS[5:]]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return folder / "rows.jsonl"


@pytest.fixture(scope="module")
def embedded(tiny_model: Path, rollouts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("embedded") / "out"
    embed_locally(tiny_model, rollouts, output, unit_rows=9, partition_by=["day"], keep=["day"])
    return output


def test_every_candidate_has_the_states_that_the_engine_computes_for_it(
    tiny_model: Path, rollouts: Path, embedded: Path
) -> None:
    opened = open_hidden([str(embedded)])
    job, _ = prepare(
        embed_options(tiny_model, rollouts, embedded, unit_rows=9, partition_by=["day"], keep=["day"])
    )
    engine = RewardModel.load(str(tiny_model), dtype="float32", device="cpu", keep_hidden=True)
    assert (opened.rows, opened.size, opened.has_gates) == (36, 64, True)
    assert opened.label_names == ()
    seen = 0
    for unit in opened.units:
        hidden = read_hidden(unit)
        for row, last, place in zip(hidden.table.to_pylist(), hidden.last, hidden.gate_of, strict=True):
            number = row["source_row"] - (row["source_row"] > 5)
            candidate = candidates_of(ROWS[number], LAYOUT)[row["candidate"]]
            states = engine.score(load_encoder(job).encode([candidate]).sequences()).hidden
            assert states is not None
            np.testing.assert_allclose(last, states[0, 1], atol=1e-5)
            np.testing.assert_allclose(hidden.gate[place], states[0, 0], atol=1e-5)
            seen += 1
        assert len(hidden.gate) == len(set(hidden.table["prompt_id"].to_pylist()))
    assert seen == opened.rows


def test_a_score_is_that_of_the_head_applied_to_the_stored_states(
    tiny_model: Path, rollouts: Path, tmp_path: Path
) -> None:
    score_locally(tiny_model, rollouts, tmp_path / "plain")
    score_locally(tiny_model, rollouts, tmp_path / "kept", keep_hidden=True, unit_rows=9)
    columns = ["row_id", "score", "rewards", "gating"]
    before, after = (
        sorted(
            pq.read_table(tmp_path / name / "scores").select(columns).to_pylist(),
            key=lambda row: row["row_id"],
        )
        for name in ("plain", "kept")
    )
    assert [row["row_id"] for row in before] == [row["row_id"] for row in after]
    weights = inspect(str(tiny_model)).read("regression_layer.weight")
    states = [read_hidden(unit) for unit in open_hidden([str(tmp_path / "kept")]).units]
    for hidden in states:
        rewards = vectors(hidden.table)
        np.testing.assert_allclose(hidden.last @ weights.T, rewards, atol=1e-5)
    for one, other in zip(before, after, strict=True):
        assert other["score"] == pytest.approx(one["score"], abs=1e-5)


def test_labels_are_numbers_with_nan_where_one_is_missing() -> None:
    kind = pa.struct([("help", pa.float32()), ("safe", pa.float32())])
    labels = pa.chunked_array([pa.array([{"help": 1.5, "safe": None}], kind), pa.array([None], kind)])
    read = labels_of(pa.table({"labels": labels}), ["safe", "help"])
    np.testing.assert_array_equal(read, [[np.nan, 1.5], [np.nan, np.nan]])
    read = labels_of(pa.table({"labels": labels}), ["other", "help"])
    np.testing.assert_array_equal(read, [[np.nan, 1.5], [np.nan, np.nan]])
    np.testing.assert_array_equal(labels_of(pa.table({"candidate": [0, 1]}), ["help"]), [[np.nan], [np.nan]])


def test_labels_of_rows_come_with_their_states_also_from_outputs_with_other_labels(
    tiny_model: Path, tmp_path: Path
) -> None:
    rows = [row | {"good": [i, 1, None], "bad": [0.5, i, 2]} for i, row in enumerate(ROWS)]
    shard = write_shard(tmp_path / "in", "jsonl", rows)
    both, one = tmp_path / "both", tmp_path / "one"
    embed_locally(tiny_model, shard, both, label={"good": "good", "bad": "bad"}, unit_rows=9)
    embed_locally(tiny_model, shard, one, label={"bad": "bad"})
    opened = open_hidden([str(both), str(one)])
    assert (opened.label_names, opened.rows) == (("bad", "good"), 72)
    assert opened.scales == {"good": None, "bad": None}
    for unit in opened.units:
        table = read_hidden(unit).table
        labels = labels_of(table, ["good", "bad"])
        for row, (good, bad) in zip(table.to_pylist(), labels, strict=True):
            number, candidate = row["source_row"], row["candidate"]
            wanted = [rows[number]["good"][candidate], rows[number]["bad"][candidate]]
            expected = [np.nan if value is None else float(value) for value in wanted]
            np.testing.assert_array_equal(
                [good, bad], [np.nan if unit.output == str(one) else expected[0], expected[1]]
            )


def test_outputs_that_cannot_be_used_are_refused(
    tiny_model: Path, rollouts: Path, embedded: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="not an output of armo-ray"):
        open_hidden([str(tmp_path / "none")])
    score_locally(tiny_model, rollouts, tmp_path / "scores")
    with pytest.raises(ConfigError, match="holds no hidden states: make it with armo-ray embed"):
        open_hidden([str(tmp_path / "scores")])
    embed_locally(tiny_model, rollouts, tmp_path / "half", dtype="bfloat16", special_tokens="reference")
    with pytest.raises(ConfigError, match=r"'dtype': 'float32'.*'dtype': 'bfloat16'"):
        open_hidden([str(embedded), str(tmp_path / "half")])
    embed_locally(tiny_model, rollouts, tmp_path / "other", special_tokens="reference")
    with pytest.raises(ConfigError, match="special_tokens is 'plain'"):
        open_hidden([str(embedded), str(tmp_path / "other")])
    (tmp_path / "half" / "_SUCCESS").unlink()
    with pytest.raises(ConfigError, match="not complete"):
        open_hidden([str(tmp_path / "half")])


def test_columns_that_are_directories_are_read_as_if_they_were_not(tiny_model: Path, tmp_path: Path) -> None:
    pairs = [{"prompt": f"Question {i}?", "chosen": f"yes {i}", "rejected": "no"} for i in range(4)]
    shard, tables = write_shard(tmp_path / "in", "jsonl", pairs), []
    for by in ([], ["role"]):
        embed_locally(tiny_model, shard, tmp_path / f"out{len(by)}", partition_by=by)
        hidden = [read_hidden(unit) for unit in open_hidden([str(tmp_path / f"out{len(by)}")]).units]
        table = pa.concat_tables([one.table for one in hidden]).sort_by("row_id")
        tables.append(table.select(["row_id", "role", "source_row"]))
    assert tables[0].equals(tables[1])
    assert set(tables[1]["role"].to_pylist()) == {"chosen", "rejected"}


def test_only_the_columns_that_are_asked_for_are_read(embedded: Path) -> None:
    unit = open_hidden([str(embedded)]).units[0]
    whole, some = read_hidden(unit), read_hidden(unit, columns=("source_row", "day", "labels"))
    assert set(some.table.column_names) == {"row_id", "prompt_id", "source_row", "day"}
    assert some.table.equals(whole.table.select(some.table.column_names))
    np.testing.assert_array_equal(whole.gate_of, some.gate_of)
    np.testing.assert_array_equal(whole.last, some.last)


def test_a_copy_of_an_output_beside_it_is_refused(embedded: Path, tmp_path: Path) -> None:
    shutil.copytree(embedded, tmp_path / "copy")
    with pytest.raises(
        ConfigError, match=r"copy: it holds the unit \w+, as \S+/out does: its rows would be counted"
    ):
        open_hidden([str(embedded), str(tmp_path / "copy")])


def test_a_damaged_part_and_states_that_are_not_finite_are_refused(embedded: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(embedded, copy)
    unit = open_hidden([str(copy)]).units[0]
    path = copy / unit.rows[0].path
    content = path.read_bytes()
    path.write_bytes(content[:-9] + b"x" + content[-8:])
    with pytest.raises(RuntimeError, match="not those that were committed"):
        read_hidden(unit)
    table = pq.read_table(pa.BufferReader(content))
    wrong = np.full(64, np.inf, np.float32).tobytes()
    column = pa.array([wrong] * table.num_rows, table.schema.field("hidden_last").type)
    place = table.schema.get_field_index("hidden_last")
    part = write_table(Store(str(copy)), unit.rows[0].path, table.set_column(place, "hidden_last", column))
    first = table["row_id"][0].as_py()
    with pytest.raises(RuntimeError, match=f"not finite, the first is that of {first}"):
        read_hidden(HiddenUnit(str(copy), (part, *unit.rows[1:]), unit.prompts))
