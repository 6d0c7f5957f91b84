"""`report --against`: what it says on the terminal, several older outputs, and the drift of each value of a column."""

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.formatting.numbers import number
from armo_ray.options import load_options
from armo_ray.outputs.database import database
from armo_ray.report.against import drift_from, open_older
from armo_ray.report.drift import Drift
from armo_ray.report.drift import told as lines
from armo_ray.report.options import ReportOptions
from armo_ray.report.read import open_committed
from tests.support.local import rows_of
from tests.support.paths import SAMPLE
from tests.support.synthetic_outputs import commit_again, score_synthetically, with_columns

GENERATORS = ("alpha", "beta", "gamma")


def generator(i: int) -> str:
    return GENERATORS[i % 3]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Scores of one sample from two seeds, each candidate of one of three generators."""
    folder = tmp_path_factory.mktemp("older")
    plain = [score_synthetically(folder / f"plain-{seed}", SAMPLE, seed=seed) for seed in (1, 2)]
    return [with_columns(path, folder / f"older-{i}", generator=generator) for i, path in enumerate(plain)]


@pytest.fixture(scope="module")
def moved(older: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first, with scores of beta that are higher by three standard deviations, and gamma renamed to delta."""
    deviation = np.std(scores_of(older[0]))
    copy = with_columns(
        older[0],
        tmp_path_factory.mktemp("moved") / "out",
        generator=lambda i: generator(i).replace("gamma", "delta"),
    )
    for part in (copy / "scores").rglob("*.parquet"):
        table = pq.read_table(part, partitioning=None)
        place = table.schema.get_field_index("score")
        is_beta = np.array(table["generator"].to_pylist()) == "beta"
        higher = table["score"].to_numpy() + (3 * deviation * is_beta).astype(np.float32)
        pq.write_table(table.set_column(place, table.schema.field(place), pa.array(higher)), part)
    return commit_again(copy)


def scores_of(output: Path, generator: str | None = None) -> np.ndarray[Any, np.dtype[np.float64]]:
    rows = rows_of(output)
    return np.array([row["score"] for row in rows if generator in (None, row.get("generator"))], np.float64)


def distance(old: np.ndarray[Any, Any], new: np.ndarray[Any, Any]) -> float:
    points = np.union1d(old, new)
    shares = [np.searchsorted(np.sort(side), points, "right") / len(side) for side in (old, new)]
    return float(np.abs(shares[0] - shares[1]).max())


def drift(new: Path, *older: Path, **limits: Any) -> Drift:
    places = {"scores": str(new), "against": list(map(str, older))}
    options = load_options(ReportOptions, None, places | limits)
    committed = open_committed(options.scores)
    with database(options) as con:
        return drift_from(con, open_older(committed, options.against), committed.scores, options)


class Told(NamedTuple):
    """What a report with --against and --per left."""

    drift: dict[str, Any]
    lines: list[str]
    page: str


@pytest.fixture(scope="module")
def told(older: list[Path], moved: Path, tmp_path_factory: pytest.TempPathFactory) -> Told:
    place = tmp_path_factory.mktemp("report")
    words = ["report", str(moved), "--output", str(place), "--against", str(older[0]), "--per", "generator"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        assert main(words) == 4
    content = json.loads((place / "report.json").read_bytes())
    page = (place / "report.html").read_text("utf-8")
    assert content["nights"] is None
    assert 'id="nights"' not in page
    return Told(content["drift"], out.getvalue().splitlines(), page)


def test_three_lines_say_how_far_it_moved_what_moved_most_and_the_verdict(
    older: list[Path], moved: Path, told: Told
) -> None:
    before, after = scores_of(older[0]), scores_of(moved)
    shift = (after.mean() - before.mean()) / before.std()
    assert told.drift["mean_score"] == {
        "older": pytest.approx(before.mean()),
        "now": pytest.approx(after.mean()),
        "shift_in_sd": pytest.approx(shift, rel=1e-5),
    }
    _, mean, largest, verdict, *_ = told.lines
    assert re.fullmatch(r"mean score: from .* to .*, \+(.*) SD of the older scores", mean)
    assert mean.endswith(f"+{number(shift)} SD of the older scores")
    limit = told.drift["chance_psi"]
    assert f"PSI {number(told.drift['columns']['score']['psi'])} of score (limit {number(limit)})" in largest
    assert verdict == f"verdict: {told.drift['verdict']}" == "verdict: drift in score"
    assert "drift in score." in told.page


def test_a_verdict_needs_enough_prompts(older: list[Path]) -> None:
    few = drift(older[0], older[0])
    assert few.chance_psi is not None
    assert few.chance_psi > few.max_psi
    assert lines(few)[-1] == "verdict: too little data"
    assert drift(older[0], older[0], max_psi=1.0, max_ks=0.5).verdict == "no drift"


def test_several_older_outputs_are_pooled(older: list[Path], moved: Path) -> None:
    found = drift(moved, *older)
    pooled = np.concatenate([scores_of(path) for path in older])
    assert found.against == ", ".join(map(str, older))
    assert found.mean_score is not None
    assert found.mean_score.older == pytest.approx(pooled.mean())
    assert found.columns["score"].ks == pytest.approx(distance(pooled, scores_of(moved)), abs=0.01)


def test_each_value_of_a_column_is_compared_with_itself_the_worst_first(
    older: list[Path], moved: Path, told: Told
) -> None:
    values = {own["value"]: own for own in told.drift["per"]["values"]}
    assert list(values) == ["beta", "alpha", "delta", "gamma"]
    for name in ("alpha", "beta"):
        sides = scores_of(older[0], name), scores_of(moved, name)
        shift = (sides[1].mean() - sides[0].mean()) / sides[0].std()
        assert values[name]["mean_score"]["shift_in_sd"] == pytest.approx(shift, abs=1e-5)
    assert values["beta"]["ks"]["column"] == "score"
    assert values["beta"]["ks"]["value"] == pytest.approx(distance(*sides), abs=0.02)
    assert (values["beta"]["drifted"], values["alpha"]["drifted"]) == (["score"], [])
    assert values["delta"]["verdict"] == "only in the new"
    assert values["gamma"]["verdict"] == "only in the older"
    assert [line.split()[0] for line in told.lines[-4:]] == list(values)
    assert "<h3>By generator</h3>" in told.page


def test_a_column_to_compare_by_is_one_that_both_have(
    older: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"per generater: no column of .*did you mean generator\?"):
        drift(older[0], older[1], per="generater")
    assert main(["report", str(older[0]), "--per", "generator"]) == 2
    assert "per go with against" in capsys.readouterr().err
