"""Labels of an input are written beside the scores, each with the response that it was given to."""

import json
import logging
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.model.recognize import ARMORM_REWARDS
from armo_ray.outputs.schema import footer
from armo_ray.outputs.scores import open_scores
from armo_ray.score import trial
from armo_ray.score.job import prepare
from armo_ray.score.pipeline import _log_lost_labels
from armo_ray.storage import commits
from armo_ray.storage.store import Store
from armo_ray.text.labels import columns_read
from armo_ray.text.named_layouts import NAMED
from armo_ray.verify.output import verify_output
from tests.support.local import config_for, read_table, rejects_of, rows_of, score_locally
from tests.support.shards import KINDS, write_shard

Q = "Name a river in Ireland."


def pair(winner: int, **more: Any) -> dict[str, Any]:
    row = {"prompt": Q, "response_0": "a", "response_1": "b", "better_response_id": winner}
    return {**row, "safer_response_id": 0, "is_response_0_safe": True, "is_response_1_safe": False, **more}


def labels_by_text(output: Path) -> list[tuple[int, str, dict[str, float | None]]]:
    return [(row["source_row"], row["response"][0]["content"], row["labels"]) for row in rows_of(output)]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_a_pair_stay_with_their_texts_where_the_second_wins_or_one_is_rejected(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    rows = [pair(0), pair(1), pair(1, response_0=""), pair(0, is_response_1_safe=None)]
    write_shard(tmp_path / "in", kind, rows)
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", label=["auto"], keep_text=True)
    safe, unsafe = {"is_safe": 1.0}, {"is_safe": 0.0}
    assert labels_by_text(tmp_path / "out") == [
        (0, "a", safe),
        (0, "b", unsafe),
        (1, "b", unsafe),
        (1, "a", safe),
        (2, "b", unsafe),
        (3, "a", safe),
        (3, "b", {"is_safe": None}),
    ]
    assert rejects_of(tmp_path / "out") == [(2, 1, "empty_response")]
    table = read_table(tmp_path / "out")
    assert table.schema.field("labels").type == pa.struct([("is_safe", pa.float32())])
    part = open_scores([str(tmp_path / "out")]).parts[0].uri
    columns = "is_response_0_safe,is_response_1_safe"
    assert footer(pq.read_schema(part))["labels"] == {"is_safe": {"column": columns, "low": 0, "high": 1}}
    assert verify_output(str(tmp_path / "out"))[1] == []
    raw = json.loads(rows_of(tmp_path / "out", "rejects")[0]["raw"])
    assert raw["is_response_0_safe"] is True
    run = commits.read_run(Store(str(tmp_path / "out")))
    assert {"is_response_0_safe", "is_response_1_safe"} <= set(columns_read(run.identity))


def test_labels_read_count_as_read_and_are_part_of_what_a_run_is(tiny_model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "in", "parquet", [{"prompt": Q, "response": "a", "y": 3, "z": 1}])
    config = config_for(tiny_model, tmp_path / "in", tmp_path / "out", label=["help=y"])
    job, _ = prepare(config)
    assert job.unread == ("z",)
    assert "y" in job.columns
    with pytest.raises(ConfigError, match="labels"):
        prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "out", label=["help=z"]))
    plain, _ = prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "other"))
    assert plain.scores.get_field_index("labels") == -1
    assert "labels" not in commits.read_run(Store(str(tmp_path / "other"))).identity


def test_a_label_that_cannot_be_read_is_missing_flagged_and_counted(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ratings: list[Any] = [["4", "N/A"], ["four", 2.5], [1, 2, 3], 5]
    write_shard(
        tmp_path / "in", "jsonl", [{"prompt": Q, "responses": ["a", "b"], "y": rating} for rating in ratings]
    )
    out = tmp_path / "out"
    score_locally(tiny_model, tmp_path / "in", out, label=["r=y"], unit_rows=2)
    found = [(row["labels"]["r"], "label_lost:r" in row["flags"]) for row in rows_of(out)]
    assert found == [
        *[(4.0, False), (None, False), (None, True), (2.5, False)],
        *[(None, True), (None, True), (None, True), (None, True)],
    ]
    log = commits.read_log(Store(str(out)))
    job, spans = prepare(config_for(tiny_model, tmp_path / "in", out, label=["r=y"], unit_rows=2))
    with caplog.at_level(logging.WARNING):
        _log_lost_labels(log, job)
    assert "label r of 5 candidates could not be read" in caplog.text
    found_first = trial.take(job, spans)
    assert found_first is not None
    assert found_first.labels["r"][:2] == (2, 5)
    assert "row 1: y: 'four' is not a number" in found_first.labels["r"].example


def test_a_run_does_not_begin_if_no_value_of_a_label_can_be_read(tiny_model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "in", "parquet", [{"prompt": Q, "responses": ["a", "b"], "y": 5}] * 3)
    config = config_for(tiny_model, tmp_path / "in", tmp_path / "out", label=["r=y"])
    with pytest.raises(
        ConfigError, match=r"label r: 6 of the 6 values .* row 0: y: one value for 2 responses"
    ):
        prepare(config, check=trial.check)


def test_a_shard_without_the_column_is_told_of_and_its_labels_are_missing(
    tiny_model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_shard(tmp_path / "in", "parquet", [{"prompt": Q, "response": "a", "y": 3}], "a")
    write_shard(tmp_path / "in", "parquet", [{"prompt": Q, "response": "b"}], "b")
    with caplog.at_level(logging.WARNING):
        score_locally(tiny_model, tmp_path / "in", tmp_path / "out", label=["y"])
    assert "label y is missing in the 1 shards that lack column y, the first is" in caplog.text
    assert [row["labels"] for row in rows_of(tmp_path / "out")] == [{"y": 3.0}, {"y": None}]


def test_a_column_that_no_shard_has_stops_the_run_with_the_nearest_name(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_shard(tmp_path / "in", "parquet", [{"prompt": Q, "response": "a", "rating": 3}])
    command = ["score", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out")]
    assert main([*command, "--model", str(tiny_model), "--label", "r=ratings"]) == 2
    assert "--label r=ratings: no column ratings; " in (told := capsys.readouterr().err)
    assert "rating" in told.replace("ratings", "")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option", [{"keep": ["labels"]}, {"keep": ["Labels=y"]}, {"partition_by": ["labels"]}]
)
def test_the_name_of_the_column_is_taken_only_where_labels_are_read(
    option: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    write_shard(tmp_path / "in", "parquet", [{"prompt": Q, "response": "a", "y": 3, "labels": "x"}])
    with pytest.raises(ConfigError, match=r"labels|Labels"):
        prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "out", label=["y"], **option))
    prepare(config_for(tiny_model, tmp_path / "in", tmp_path / "out", **option))


LABELLED = [name for name, layout in NAMED.items() if layout.labels]


def test_the_labelled_public_data_sets_are_known() -> None:
    assert set(LABELLED) >= {"helpsteer2", "ultrafeedback", "beavertails", "pku-saferlhf"}
    assert tuple(NAMED["armorm-multi-objective"].labels) == ARMORM_REWARDS


EXPECTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "ultrafeedback": {"The Shannon.": (8.0, 5.0), "The Box.": (2.0, None)},
    "code-ultrafeedback": {"The Shannon.": (None, 5.0), "The Box.": (None, 1.0)},
    "prometheus-feedback": {"The Shannon.": (4.0,)},
    "beavertails": {"The Shannon.": (1.0,)},
    "pku-saferlhf": {"The Box.": (1.0, 0.0), "The Shannon.": (0.0, 3.0)},
    "ultrafeedback-binarized": {"The Shannon.": (8.0,), "The Box.": (2.0,)},
    "helpsteer2": {"The Shannon.": (4.0, 4.0)},
    "armorm-multi-objective": {"The Shannon.": (pytest.approx(0.9), pytest.approx(0.9))},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", LABELLED)
def test_the_labels_of_a_public_data_set_are_those_of_its_example(
    name: str, kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    write_shard(tmp_path / "in", kind, [dict(NAMED[name].example)])
    score_locally(tiny_model, tmp_path / "in", tmp_path / "out", label="auto", keep_text=True)
    expected = EXPECTED[name]
    rows = rows_of(tmp_path / "out")
    assert len(rows) == len(expected)
    for row in rows:
        values = expected[row["response"][0]["content"]]
        assert tuple(row["labels"])[:2] == tuple(NAMED[name].labels)[:2]
        assert tuple(row["labels"].values())[: len(values)] == values
        assert not [flag for flag in row["flags"] if "lost" in flag]
        for label, value in row["labels"].items():
            declared = NAMED[name].labels[label]
            assert value is None or declared.low <= value <= declared.high


def test_one_label_of_a_public_data_set_has_its_range(tiny_model: Path, tmp_path: Path) -> None:
    write_shard(tmp_path / "in", "parquet", [dict(NAMED["helpsteer2"].example)])
    job, _ = prepare(
        config_for(tiny_model, tmp_path / "in", tmp_path / "out", label=["mine=verbosity", "x=correctness"])
    )
    assert footer(job.scores)["labels"] == {
        "mine": {"column": "verbosity", "low": 0, "high": 4},
        "x": {"column": "correctness", "low": 0, "high": 4},
    }


def test_plan_and_layouts_show_labels(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["layouts", "pku-saferlhf"]) == 0
    assert "is_safe=is_response_0_safe,is_response_1_safe (0-1)" in capsys.readouterr().out
    assert main(["layouts", "code-ultrafeedback"]) == 0
    assert "style=annotations[].rating where preference is style (1-5)" in capsys.readouterr().out
    write_shard(tmp_path / "in", "parquet", [pair(1)])
    command = ["plan", "--input", str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--label", "auto"]
    assert main([*command, "--model", str(tiny_model), "--show", "2"]) == 0
    shown = capsys.readouterr().out
    assert "labels      is_safe=is_response_0_safe,is_response_1_safe" in shown
    first, second = shown.split("\n---")[1:]
    assert "(chosen)" in first
    assert "labels: is_safe 0.0" in first
    assert "labels: is_safe 1.0" in second
