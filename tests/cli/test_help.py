"""--help: what every command tells, in how many lines, and what it does not import for that."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.commands import COMMANDS, load
from armo_ray.cli.flags import options_of
from armo_ray.cli.main import main
from armo_ray.cli.parser import build_parser
from tests.test_architecture import modules_after

LONGER = {
    "score": 87,
    "embed": 75,
    "judge": 85,
    "verify": 42,
    "mine": 47,
    "label": 42,
    "fit": 46,
    "reweigh": 48,
    "evaluate": 42,
}  # lines
SLOW = {"torch", "ray", "transformers", "pandas", "rich", "pyarrow", "numpy", "duckdb", "fsspec"}
# An option error of every command that has options to get wrong.
WRONG = {
    "score": ["--dtype", "fp7"],
    "embed": ["--dtype", "fp8"],
    "plan": ["--sample", "1"],
    "mine": ["out"],
    "label": ["out"],
    "filter": ["out"],
    "reweigh": ["out"],
    "fit": ["out"],
    "evaluate": ["out", "--bootstrap", "1"],
    "compare": ["out"],
    "report": ["out", "--max-ks", "2"],
    "verify": ["out", "--model", "m"],
    "tiny-model": ["out", "--family", "none"],
    "nightly": ["/none.toml"],
}


def parsers() -> dict[str, argparse.ArgumentParser]:
    parser: Any = build_parser()
    choices: dict[str, argparse.ArgumentParser] = parser._subparsers._group_actions[0].choices
    return choices


HELP = {name: parser.format_help() for name, parser in parsers().items()}


@pytest.mark.parametrize("name", COMMANDS)
def test_help_fits_the_screen(name: str) -> None:
    lines = HELP[name].splitlines()
    assert max(map(len, lines)) <= 100
    assert len(lines) <= LONGER.get(name, 40)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_begins_with_the_usage_and_ends_with_an_example(name: str) -> None:
    usage, _, rest = HELP[name].partition("\n\n")
    assert usage.startswith(f"usage: armo-ray {name}")
    summary, *sections = rest.split("\n\n")
    assert summary.startswith(COMMANDS[name].summary)
    (example,) = (text for text in sections if text.startswith("example:\n"))
    assert f"  armo-ray {name} " in example


@pytest.mark.parametrize("name", ["score", "evaluate", "report", "verify", "nightly"])
def test_help_lists_the_exit_statuses_that_a_script_may_act_on(name: str) -> None:
    table = HELP[name].partition("exit status:\n")[2].splitlines()
    assert [int(line.split()[0]) for line in table] == sorted(COMMANDS[name].statuses)


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.options])
def test_options_are_in_groups_with_the_required_ones_first(name: str) -> None:
    options = options_of(COMMANDS[name])
    groups = [option.help.group for option in options]
    assert groups == sorted(groups, key=list(dict.fromkeys(groups)).index)  # each group once
    required = [option.name for option in options if option.help.group == "required"]
    assert required == [option.name for option in options][: len(required)]
    if not COMMANDS[name].words_optional:
        assert required == [option.name for option in options if option.required]
    for heading in {option.help.group for option in options if option.shown}:
        assert f"\n{heading}:\n" in HELP[name]


@pytest.mark.parametrize("name", [name for name, command in COMMANDS.items() if command.options])
def test_every_field_is_an_option_with_a_text_that_tells_its_default(name: str) -> None:
    options = {option.name: option for option in options_of(COMMANDS[name])}
    for kind in map(load, COMMANDS[name].options):
        assert set(kind.model_fields) <= set(options)
        assert all(options[field].text for field in kind.model_fields)
        defaults = {f for f, info in kind.model_fields.items() if info.default and not info.is_required()}
        assert defaults <= {name for name, option in options.items() if "(default: " in option.text}


def slow_modules_after(names: Sequence[str]) -> set[str]:
    """What the help of commands imports, one after the other in one process."""
    commands = [[*([name] if name else []), "--help"] for name in names]
    lines = (f"try: main({words})\nexcept SystemExit: pass" for words in commands)
    return (SLOW | {"pydantic"}) & modules_after("\n".join(("from armo_ray.cli.main import main", *lines)))


def test_help_imports_nothing_slow() -> None:
    assert slow_modules_after(("", "bench")) == set()  # their options need no pydantic either
    assert slow_modules_after([*COMMANDS]) <= {"pydantic"}


def test_an_option_error_imports_nothing_slow() -> None:
    lines = (f"assert main({[name, *words]}) == 2" for name, words in WRONG.items())
    assert not SLOW & modules_after("\n".join(("from armo_ray.cli.main import main", *lines)))


def test_a_renamed_flag_is_refused_with_the_new_name_and_the_difference(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for words in (["--tokens-per-second", "1000"], ["--tokens-per-second=1000"]):
        with pytest.raises(SystemExit) as stopped:
            main(["plan", "--input", "i", "--output", "o", "--model", "m", *words])
        assert stopped.value.code == 2
        message = capsys.readouterr().err
        assert "--tokens-per-second: renamed to --computed-tokens-per-second" in message
        assert "each shared prefix counted once" in message


def test_a_renamed_key_of_a_file_is_refused_with_the_new_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.toml"
    file.write_text("input = 'i'\noutput = 'o'\nmodel = 'm'\ntokens-per-second = 1000\n")
    assert main(["plan", str(file)]) == 2
    assert "tokens-per-second: renamed to --computed-tokens-per-second" in capsys.readouterr().err


def test_verify_names_the_options_that_need_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "out", "--dtype", "float32", "--record", "f"]) == 2
    assert "--dtype, --record can only be used with --model" in capsys.readouterr().err


def test_evaluate_scores_with_one_model_and_plan_with_several() -> None:
    assert build_parser("plan").parse_args(["plan", "--model", "a", "b"]).model == ["a", "b"]
    assert build_parser("evaluate").parse_args(["evaluate", "--model", "a"]).model == "a"
