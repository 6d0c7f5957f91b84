"""`armo-ray models` lists every family, one by name, or the table of the README."""

import pytest

from armo_ray.cli.main import main
from armo_ray.model.families import FAMILIES
from tests.support.paths import ROOT


def test_every_family_is_listed_with_what_it_was_checked_against(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line for line in told if not line.startswith(" ")] == list(FAMILIES)
    assert sum(line.startswith("  checked     against ") for line in told) == len(FAMILIES)


def test_one_family_is_listed_by_its_name_and_another_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "eurus"]) == 0
    assert "  recognized  by regression_head.weight, mistral\n" in capsys.readouterr().out
    assert main(["models", "athene"]) == 0
    told = capsys.readouterr().out
    assert "  recognized  by --family\n" in told
    assert "except: its model card lets the tokenizer" in told
    assert main(["models", "nosuch"]) == 2
    assert "nosuch: no such family" in capsys.readouterr().err


def test_the_table_of_the_readme_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--markdown"]) == 0
    assert capsys.readouterr().out in (ROOT / "README.md").read_text("utf-8")
