"""The command line: what it accepts, what it refuses, and how soon."""

import json
import os
import resource
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.embed.options import EmbedOptions
from armo_ray.errors import ConfigError
from armo_ray.fit.options import FitOptions
from armo_ray.score.config import ScoreConfig, load_config, load_configs
from tests.support.paths import ROOT

REQUIRED = {"input": ["x"], "output": "o", "model": "m"}


def cpu_seconds(*arguments: str) -> float:
    """The best of three: other work on the machine only adds."""
    taken = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(
            [sys.executable, "-m", "armo_ray", *arguments], cwd=ROOT, capture_output=True, check=False
        )
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        taken.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(taken)


@pytest.mark.parametrize(
    ("arguments", "limit"),
    [
        (["--help"], 1.5),
        (["score", "--help"], 1.5),
        (["score", "--input", "x"], 2.0),
        (["score", "--dtype", "x"], 2.0),
    ],
    ids=["help", "score-help", "missing-options", "bad-value"],
)
def test_answers_that_need_no_work_come_at_once(arguments: list[str], limit: float) -> None:
    assert cpu_seconds(*arguments) < limit


def test_flags_override_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text(
        'input = "/a"\noutput = "/o"\nmodel = "m"\nunit_rows = 5\nmax_length = 10\nreplicas = "2:4"\n'
    )
    config = load_config(str(file), {"unit_rows": 7, "keep": ["id", "who=generator"]})
    assert (config.input, config.unit_rows, config.max_length, config.dtype) == (("/a",), 7, 10, "bfloat16")
    assert config.keep == {"id": "id", "who": "generator"}
    assert config.replicas == (2, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit_row": 5}, "unit-row: unknown option"),
        ({"model": None}, "model: "),
        ({"dtype": "fp7"}, "dtype: "),
        ({"unit_rows": 0}, "unit-rows: "),
        ({"replicas": "4:2"}, "replicas: expected 1 <= MIN <= MAX"),
        ({"replicas": "x"}, "replicas: expected N or MIN:MAX"),
        ({"column": ["question=q"]}, "column: unknown name question; the names are prompt, "),
        ({"column": ["promt=q"]}, r"column: unknown name promt; did you mean prompt\?"),
        ({"max_reject_fraction": 2}, "max-reject-fraction: "),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_bad_option_is_named_with_what_was_expected(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, REQUIRED | options)


def test_a_missing_option_is_named() -> None:
    with pytest.raises(ConfigError, match="output: required"):
        load_config(None, {"input": ["x"], "model": "m"})


@pytest.mark.parametrize(("content", "message"), [("a = ", "not valid TOML"), (None, "No such file")])
def test_a_bad_config_file_is_named(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"{file.name}: {message}"):
        load_config(str(file), {})


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_config_file_may_begin_with_a_byte_order_mark(line_end: str, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_bytes(b"\xef\xbb\xbf" + line_end.join(['input = "a"', "unit_rows = 5", ""]).encode())
    for uri in (str(file), f"file://{file}"):
        config = load_config(uri, {"model": "m", "output": "o"})
        assert (config.input, config.unit_rows) == ((os.path.abspath("a"),), 5)


@pytest.mark.parametrize("option", ["keep", "keep_json", "column", "winner", "role", "ignore", "input"])
def test_a_list_of_one_in_a_config_file_may_be_written_without_brackets(option: str, tmp_path: Path) -> None:
    value = {"column": "prompt=q", "winner": "a=first", "role": "bot=user"}.get(option, "a")
    given = {"model": "m", "output": "o"} | ({} if option == "input" else {"input": ["in"]})
    found = []
    for written in (f'"{value}"', f'["{value}"]'):
        (tmp_path / "c.toml").write_text(f"{option} = {written}\n")
        found.append(load_config(str(tmp_path / "c.toml"), given))
    assert found[0] == found[1]


def test_a_configuration_cannot_be_changed() -> None:
    config = ScoreConfig.model_validate(REQUIRED)
    with pytest.raises(ValueError, match="frozen"):
        config.dtype = "float32"


@pytest.mark.parametrize("name", ["nightly.toml", "quickstart.toml"])
def test_the_example_configurations_of_score_are_valid(name: str) -> None:
    load_config(str(ROOT / "jobs" / name), {"model": "m", "output": "o"})


def test_verify_tells_what_is_not_an_output(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(tmp_path)]) == 2
    assert "not an output of armo-ray score" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [["verify"], ["report"], ["mine", "--output", "o"], ["fit", "--output", "o"], ["compare", "DATA"]],
    ids=lambda command: command[0],
)
def test_a_file_of_data_where_an_output_is_expected_is_told(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "rows.jsonl"
    data.write_text("{}\n")
    name, *options = [str(data) if word == "DATA" else word for word in command]
    assert main([name, str(data), *options]) == 2
    assert "rows.jsonl: a file of data, not an output of armo-ray score or embed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options"), [("embed.toml", EmbedOptions), ("fit.toml", FitOptions)], ids=["embed", "fit"]
)
def test_the_example_configurations_of_a_fit_belong_together(name: str, options: Any) -> None:
    embed, fit = (tomllib.loads((ROOT / "jobs" / f"{of}.toml").read_text()) for of in ("embed", "fit"))
    options.model_validate(embed if name == "embed.toml" else fit)
    assert fit["scores"] == [embed["output"]]
    named = EmbedOptions.model_validate(embed).label
    assert set(fit["objective"]) == set(named)
    (rows,) = (ROOT / path for path in embed["input"])
    for row in map(json.loads, rows.read_text("utf-8").splitlines()):
        for side in ("chosen", "rejected"):
            words = row[side].split()
            assert row[f"{side}_words"] == len(words)
            assert row[f"{side}_the"] == [word.lower() for word in words].count("the")
            assert row[f"{side}_commas"] == row[side].count(",")


def test_tiny_model_writes_the_same_model_for_the_same_seed(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        assert main(["tiny-model", str(tmp_path / name), "--seed", "1" if name == "c" else "0"]) == 0
    contents = [
        {file.name: file.read_bytes() for file in sorted((tmp_path / name).iterdir())}
        for name in ("a", "b", "c")
    ]
    assert contents[0] == contents[1] != contents[2]


def test_each_of_several_models_writes_an_output_of_its_own(tmp_path: Path) -> None:
    given = {"input": ["i"], "output": "/out/", "model": ["a/one", "s3://b/two/"]}
    configs = load_configs(None, {**given, "revision": ["r1", "r2"]})
    assert [(c.model, c.revision, c.output) for c in configs] == [
        ("a/one", "r1", "/out/one"),
        ("s3://b/two/", "r2", "/out/two"),
    ]
    (only,) = load_configs(None, {**given, "model": ["a/one"]})
    assert (only.model, only.output) == ("a/one", "/out")
    with pytest.raises(ConfigError, match="2 models need 2 or none, not 1"):
        load_configs(None, {**given, "revision": "r"})
    with pytest.raises(ConfigError, match="two outputs would be named one"):
        load_configs(None, {**given, "model": ["a/one", "b/one"]})


def test_revisions_of_one_model_write_outputs_named_by_them() -> None:
    given = {"input": ["i"], "output": "/out", "model": ["a/RM", "b/two", "a/RM"]}
    configs = load_configs(None, {**given, "revision": ["1", "r", "refs/pr/2"]})
    assert [(c.revision, c.output) for c in configs] == [
        ("1", "/out/RM@1"),
        ("r", "/out/two"),
        ("refs/pr/2", "/out/RM@refs-pr-2"),
    ]
    with pytest.raises(ConfigError, match="two outputs would be named RM@1"):
        load_configs(None, {**given, "revision": ["1", "r", "1"]})


@pytest.mark.parametrize(
    ("given", "seconds"), [("90s", 90), ("45m", 2700), ("1.5h", 5400), (30, 30), (None, None)]
)
def test_a_runtime_has_a_unit(given: object, seconds: float | None) -> None:
    options = {"input": ["i"], "output": "o", "model": "m", "max_runtime": given}
    assert load_config(None, options).max_runtime == seconds


def test_a_runtime_that_is_none_is_refused() -> None:
    for wrong in ("soon", 0, "-5s", "nan", "inf"):
        with pytest.raises(ConfigError, match="max-runtime"):
            load_config(None, {"input": ["i"], "output": "o", "model": "m", "max_runtime": wrong})


def test_a_reader_that_leaves_early_ends_a_command_without_words() -> None:
    command = [sys.executable, "-m", "armo_ray", "layouts", "ultrafeedback"]
    read, write = os.pipe()
    os.close(read)
    found = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (found.returncode, found.stderr) == (1, "")


@pytest.mark.parametrize(("words", "status"), [(["layouts", "ultrafeedback"], 0), (["verify", "none"], 2)])
def test_a_program_ends_with_the_status_and_the_whole_output_of_its_command(
    words: list[str], status: int, capfd: pytest.CaptureFixture[str]
) -> None:
    program = [sys.executable, "-m", "armo_ray", *words]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, check=False)
    assert main(words) == done.returncode == status
    assert (done.stdout, done.stderr) == capfd.readouterr() != ("", "")
