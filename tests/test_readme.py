"""What the README says is so: its commands parse, its tables agree with the code, its Python runs."""

import re
import shlex
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pyarrow.parquet
import pytest

import armo_ray
from armo_ray.cli.parser import build_parser
from armo_ray.outputs.schema import CANDIDATE_FIELDS, REJECT_REASONS
from armo_ray.text.layouts import ALIASES
from tests.support.local import score_locally
from tests.support.paths import ROOT

README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [
    line.split("#")[0].strip() for block in blocks("bash") for line in block.splitlines() if line.strip()
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_one_that_exists(command: str) -> None:
    words = shlex.split(command)
    if words[0] == "armo-ray":
        build_parser().parse_args(words[1:])
    elif words[:3] == ["ray", "job", "submit"]:
        module = words[words.index("-m") + 1]
        assert (ROOT / module.replace(".", "/")).with_suffix(".py").exists()
    else:
        assert words[0] == "bash"
        assert (ROOT / words[1]).exists()
    for word in words:
        assert not word.startswith(("jobs/", "cluster/", "tests/")) or (ROOT / word).exists()


def test_every_option_is_one_that_exists() -> None:
    parser: Any = build_parser()
    commands = parser._subparsers._group_actions[0].choices.values()
    options = {option for command in commands for option in command._option_string_actions}
    options |= set(re.findall(r"--[a-z]+", (ROOT / "tests" / "run.sh").read_text("utf-8")))
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", README)) - {"--working-dir"}
    assert named <= options


def test_every_name_of_the_output_and_input_is_told() -> None:
    names = [field.name for field in CANDIDATE_FIELDS] + list(REJECT_REASONS)
    names += [alias for aliases in ALIASES.values() for alias in aliases if alias != "system_prompt"]
    assert [name for name in names if f"`{name}`" not in README] == []


def test_the_python_example_runs(tiny_model: Path) -> None:
    example = next(block for block in blocks("python") if "RewardModel.load" in block)
    found: dict[str, object] = {}
    exec(example.replace('"DIR"', repr(str(tiny_model))), found)
    assert found["scores"].score.shape == (2,)  # type: ignore[attr-defined]
    assert found["scores"].gating.shape == (2, 19)  # type: ignore[attr-defined]


def test_the_identity_of_the_score_holds_as_it_is_told(tiny_model: Path, tmp_path: Path) -> None:
    sample = ROOT / "jobs" / "samples" / "llmbar.jsonl"
    score_locally(tiny_model, sample, tmp_path, unit_rows=100, partition_by=["subset"])
    example = next(block for block in blocks("python") if "coefficients" in block)
    names = {"armo_ray": armo_ray, "numpy": numpy, "pyarrow": pyarrow}
    exec(example.replace("OUT/scores/", f"{tmp_path}/scores/"), names)
    assert names["table"].num_rows == 260
