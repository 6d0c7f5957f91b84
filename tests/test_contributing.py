"""The contributor's guide names files that exist, and every room."""

import re

import pytest

from tests.support.paths import ROOT
from tests.test_architecture import BETWEEN_COMMANDS, COMMANDS, CORE, FACE

GUIDE = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")
PATH = re.compile(r"(?:armo_ray|tests|jobs|cluster)/[\w./-]*|README\.md")


def test_every_path_that_is_named_exists() -> None:
    paths = {path.rstrip(".") for path in PATH.findall(GUIDE)}
    assert len(paths) > 25
    assert [path for path in sorted(paths) if not (ROOT / path).exists()] == []


def test_every_list_of_files_to_touch_names_code_tests_and_texts() -> None:
    lists = GUIDE.split("## What to touch\n")[1].split("\n## ")[0]
    titles = re.findall(r"^\*\*(.*)\*\*$", lists, re.MULTILINE)
    assert titles == [
        "A model family",
        "A layout",
        "A command",
        "A reject reason",
        "A chart",
        "A column of the scores",
    ]
    for steps in re.split(r"^\*\*.*\*\*$", lists, flags=re.MULTILINE)[1:]:
        assert re.findall(r"`armo_ray/[\w/]+\.py`", steps)
        assert re.findall(r"`tests/[\w/]+\.py`", steps)


@pytest.mark.parametrize("family", ["grm", "trl-value-head", "ultrarm", "eurus"])
def test_a_family_of_linear_layers_is_in_three_files(family: str) -> None:
    files = [path for path in (ROOT / "armo_ray").rglob("*.py") if f'"{family}"' in path.read_text("utf-8")]
    assert sorted(path.name for path in files) == ["catalog.py", "families.py", "recognize.py"]


def test_the_picture_names_every_room_and_the_commands_that_import_each_other() -> None:
    picture = re.findall(r"```text\n(.*?)```", GUIDE, re.DOTALL)[0]
    words = set(re.findall(r"\w+", picture))
    assert (CORE | COMMANDS | FACE) - {""} <= words
    arrows = {pair for line in picture.splitlines() for pair in re.findall(r"(?=\b(\w+) ──► (\w+))", line)}
    assert arrows == BETWEEN_COMMANDS
