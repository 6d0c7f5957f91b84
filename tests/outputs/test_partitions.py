"""--partition: the candidates below some hive directories, for every command that reads scores."""

import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.outputs.scores import open_scores
from armo_ray.verify.output import verify_output
from tests.support.local import score_locally
from tests.support.paths import SAMPLE

FIRST, SECOND = "2026-11-01", "2026-11-02"


def row_ids(folder: Path, *columns: str) -> set[str]:
    """The values of the columns in all Parquet files of a folder."""
    tables = [
        pq.read_table(path, columns=list(columns), partitioning=None) for path in folder.rglob("*.parquet")
    ]
    return {value for table in tables for name in columns for value in table[name].to_pylist()}


def of_day(scores: Path, day: str) -> set[str]:
    return row_ids(scores / "scores" / f"day={day}", "row_id")


@pytest.mark.parametrize("day", [FIRST, SECOND])
def test_datasets_of_a_partition_are_made_of_its_candidates_alone(
    day: str, scored_pairs: Path, tmp_path: Path
) -> None:
    expected = of_day(scored_pairs, day)
    chosen = ["--partition", f"day={day}"]
    for command, columns in (
        (["mine"], ["row_id_chosen", "row_id_rejected"]),
        (["label", "--temperature", "1"], ["row_id"]),
        (["filter", "--where", "score > -1e9"], ["row_id"]),
        (["reweigh", "--mask", "helpsteer_verbosity"], ["row_id"]),
    ):
        out = tmp_path / command[0]
        assert main([command[0], str(scored_pairs), "--output", str(out), *command[1:], *chosen]) == 0
        found = row_ids(out / ("data" if (out / "data").exists() else "scores"), *columns)
        assert found == expected, command
    for derived in ("filter", "reweigh"):
        assert verify_output(str(tmp_path / derived))[1] == []


def test_a_report_of_a_partition_counts_it_alone_and_has_a_file_of_its_own(
    scored_pairs: Path, tmp_path: Path
) -> None:
    assert main(["report", str(scored_pairs), "--partition", f"day={SECOND}"]) == 0
    report = json.loads((scored_pairs / f"report-{SECOND}.json").read_text())
    assert report["totals"]["scored"] == len(of_day(scored_pairs, SECOND))
    assert report["totals"]["rejected"] == {"malformed_row": 1}
    out = tmp_path / "first.html"
    assert main(["report", str(scored_pairs), "--partition", f"day={FIRST}", "--output", str(out)]) == 0
    report = json.loads(out.with_suffix(".json").read_text())
    assert report["totals"]["scored"] == len(of_day(scored_pairs, FIRST))
    assert report["totals"]["rejected"] == {}


def test_ranges_and_several_values_select_all_that_lies_in_them(scored_pairs: Path) -> None:
    def rows(*partition: str) -> int:
        return open_scores([str(scored_pairs)], partition).rows

    first, second = (len(of_day(scored_pairs, day)) for day in (FIRST, SECOND))
    assert rows(f"day={FIRST}..{SECOND}") == rows(f"day={FIRST}", f"day={SECOND}") == rows() == first + second
    assert rows("day=2026-11-02..2026-12-31") == second
    assert [len(open_scores([str(scored_pairs)], [f"day={day}"]).rejects) for day in (FIRST, SECOND)] == [
        0,
        1,
    ]


@pytest.mark.parametrize(
    ("partition", "why"),
    [
        ("date=2026-11-01", "partition date: .* has no directories of that name; there are day"),
        (
            "day=2026-11-03",
            r"partition day=2026-11-03: no candidates there; there are \['2026-11-01', '2026-11-02'\]",
        ),
        ("day=2026-12-01..2026-12-07", "partition day=2026-12-01..2026-12-07: no candidates there"),
        ("day=2026-11-02..2026-11-01", "2026-11-02 comes after 2026-11-01"),
        ("day", "partition day: expected NAME=VALUE or NAME=FIRST..LAST"),
        ("day=2026-11-01..", "expected NAME=VALUE or NAME=FIRST..LAST"),
    ],
)
def test_what_selects_nothing_is_refused_with_what_is_there(
    partition: str, why: str, scored_pairs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["mine", str(scored_pairs), "--output", str(tmp_path / "out"), "--partition", partition]
    assert main(command) == 2
    assert re.search(why, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_where_units_span_partitions_rows_are_mined_and_counts_are_refused(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    score_locally(tiny_model, SAMPLE, out, partition_by=["subset"])
    subset = sorted(path.name for path in (out / "scores").iterdir())[0]
    expected = row_ids(out / "scores" / subset, "row_id")
    labels = str(tmp_path / "labels")
    assert main(["label", str(out), "--output", labels, "--temperature", "1", "--partition", subset]) == 0
    assert row_ids(tmp_path / "labels", "row_id") == expected
    assert main(["report", str(out), "--partition", subset]) == 2
    assert "units of this output have candidates of several values" in capsys.readouterr().err
