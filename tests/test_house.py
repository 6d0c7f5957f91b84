"""`jobs.measure.house` counts rooms, floors, circles and lengths as its text says."""

from pathlib import Path

import pytest

from jobs.measure.house import measure
from tests.support.paths import ROOT

FILES = {
    "__init__.py": '"""Root."""\n',
    "base/__init__.py": "",
    "base/low.py": '"""Low."""\n\n\ndef short() -> int:\n    return 1\n',
    "base/other.py": "def late() -> None:\n    from ..top import main\n",
    "top.py": '"""Top."""\nimport pkg.base.low\nRUN = "pkg.lazy:run"\n\n\ndef main() -> None:\n'
    + "    x = 1\n" * 50,
    "lazy.py": '"""Lazy."""\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n    from . import side\n',
    "side.py": '"""Side."""\n',
}


@pytest.fixture
def package(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        path = tmp_path / "pkg" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return tmp_path / "pkg"


def test_imports_of_every_kind_are_arrows_and_a_circle_shares_a_floor(package: Path) -> None:
    figures = measure(package)
    assert figures["floors"] == [["pkg", "side"], ["lazy"], ["base", "top"]]
    assert (figures["rooms"], figures["arrows"]) == (5, 4)
    assert figures["room_circles"] == [["base", "top"]]
    assert figures["module_circles"] == []


def test_lengths_and_missing_docstrings_are_those_of_the_files(package: Path) -> None:
    figures = measure(package)
    assert figures["functions"]["longest"] == ["pkg.top.main:6", 51]
    assert figures["functions"]["share_long"] == pytest.approx(1 / 3)
    assert figures["modules"]["longest"] == ["pkg.top", 56]
    assert figures["without_docstring"] == ["pkg.base.other"]


def test_every_module_of_the_package_says_what_it_is_for() -> None:
    assert measure(ROOT / "armo_ray")["without_docstring"] == []
