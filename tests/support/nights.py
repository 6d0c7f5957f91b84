"""Nights in the tests' own process."""

import json
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main

DAY = "2026-11-20"


def run(capsys: pytest.CaptureFixture[str], file: Path, *options: str) -> tuple[int, dict[str, Any]]:
    """The exit status of a night, and its last line."""
    status = main(["nightly", str(file), "--date", DAY, *options])
    told = capsys.readouterr()
    assert told.out, told.err
    summary: dict[str, Any] = json.loads(told.out.splitlines()[-1])
    assert summary["status"] == status
    return status, summary


def statuses(summary: dict[str, Any]) -> dict[str, str]:
    return {name: step["status"] for name, step in summary["steps"].items()}
