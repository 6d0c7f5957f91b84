"""{date} in the places of every command, and placeholders that no command knows."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest

from armo_ray.cli.main import main
from armo_ray.compare.options import CompareOptions
from armo_ray.curate.options import FilterOptions, LabelOptions, MineOptions, ReweighOptions
from armo_ray.errors import ConfigError
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.explain.options import ExplainOptions
from armo_ray.options import DatedOptions, load_options
from armo_ray.plan.options import PlanOptions
from armo_ray.report.options import ReportOptions
from armo_ray.score.config import load_config
from armo_ray.verify.options import VerifyModelOptions, VerifyOptions

DAY = "2026-11-20"
SCORE = {"input": ["/in/{date}/a", "/in/b"], "output": "/out/{date}", "model": "m"}
SCORES = ["/scored/{date}", "/scored/all"]
PLACES = [
    (MineOptions, {"scores": SCORES, "output": "/pairs/{date}", "decontaminate": "/bench/{date}"}),
    (LabelOptions, {"scores": SCORES, "output": "/labels/{date}"}),
    (FilterOptions, {"scores": SCORES, "output": "/kept/{date}"}),
    (ReweighOptions, {"scores": SCORES, "output": "/other/{date}", "transform": "/t/{date}.json"}),
    (EvaluateOptions, {"scores": SCORES, "output": "/tables/{date}"}),
    (CompareOptions, {"scores": SCORES, "output": "/compared/{date}"}),
    (ReportOptions, {"scores": SCORES, "output": "/page/{date}.html", "against": ["/older/{date}"]}),
    (VerifyOptions, {"output": "out/{date}"}),
    (VerifyModelOptions, {"model": "m", "record": "a/{date}", "against": "b/{date}"}),
    (ExplainOptions, {"output": "out/{date}", "row": "random"}),
    (PlanOptions, {"previous": "/out/{date}"}),
]


def of_day(value: object) -> object:
    if isinstance(value, list):
        return tuple(str(entry).replace("{date}", DAY) for entry in value)
    return str(value).replace("{date}", DAY)


@pytest.mark.parametrize(("kind", "places"), PLACES, ids=lambda value: getattr(value, "__name__", ""))
def test_every_command_puts_the_date_into_its_places(
    kind: type[DatedOptions], places: dict[str, object], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text(f"date = {DAY}\n")  # a date of TOML, without quotes
    options = load_options(kind, str(tmp_path / "c.toml"), places)
    found = {name: getattr(options, name) for name in places}
    expected = {name: of_day(value) for name, value in places.items()}
    if "decontaminate" in expected:
        expected["decontaminate"] = (expected["decontaminate"],)
    assert found == expected


@pytest.mark.parametrize(("kind", "places"), PLACES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_placeholder_that_is_not_known_is_refused(
    kind: type[DatedOptions], places: dict[str, object]
) -> None:
    for name in places.keys() - {"model", "row"}:
        wrong = ["/a/{dat}", "/b"] if name == "scores" else "/a/{dat}"
        with pytest.raises(ConfigError, match=rf"^{name}(\.0)?: unknown placeholder \{{dat\}} .*\{{date\}}"):
            load_options(kind, None, places | {name: wrong})


def test_the_date_is_put_into_input_and_output_of_score() -> None:
    config = load_config(None, {**SCORE, "date": DAY, "redo": "/in/{date}/a/x.parquet"})
    assert (config.input, config.output) == ((f"/in/{DAY}/a", "/in/b"), f"/out/{DAY}")
    assert config.redo == (f"/in/{DAY}/a/x.parquet",)
    config = load_config(None, {**SCORE, "output": "/out", "date": "2026-03-01", "days": 3})
    assert config.input == ("/in/2026-03-01/a", "/in/2026-02-28/a", "/in/2026-02-27/a", "/in/b")
    for wrong in ("/in/{day}/a", "/in/{}/a"):
        with pytest.raises(ConfigError, match="input: unknown placeholder"):
            load_config(None, {**SCORE, "input": ["/in/b", wrong]})


def test_without_a_date_it_is_yesterday() -> None:
    before = datetime.now(UTC).date()
    day = date.fromisoformat(load_config(None, SCORE).output.removeprefix("/out/")) + timedelta(1)
    assert before - timedelta(1) <= day <= datetime.now(UTC).date()  # the same in all of a process


def test_a_date_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"date: expected YYYY-MM-DD \(got 'yesterday'\)"):
        load_config(None, {**SCORE, "date": "yesterday"})


def test_several_days_do_not_go_into_the_output_of_one() -> None:
    with pytest.raises(ConfigError, match=r"output: with \{date\} in it.* leave \{date\} out"):
        load_config(None, {**SCORE, "days": 3})


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["verify", "{out}", "--date", DAY], DAY),
        (["explain", "{out}", "random", "--date", DAY], DAY),
        (["evaluate", "{out}", "--date", DAY], DAY),
        (["evaluate", "--input", "x", "--model", "m", "--output", "{out}", "--days", "2"], "once per day"),
        (["plan", "--input", "x", "--model", "m", "--output", "o", "--previous", "{out}/{dat}"], "{dat}"),
    ],
)
def test_commands_that_check_their_words_themselves_take_a_date(
    words: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = str(tmp_path / "{date}")
    assert main([word.replace("{out}", place) for word in words]) == 2
    assert named in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
