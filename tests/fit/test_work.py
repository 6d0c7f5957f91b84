"""The folder of a fit is deleted with what fits wrote there, and never with anything else."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from armo_ray.errors import ConfigError
from armo_ray.fit.spans import InFolder, Span, in_order
from armo_ray.fit.work import MARK, clear, work_folder


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_with_files_of_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    work = tmp_path / "model.work"
    work.mkdir()
    (work / "sums.npz").write_text("mine")
    with (
        pytest.raises(ConfigError, match=r"model.work: .* something else, such as sums.npz: move them, or"),
        work_folder(str(tmp_path / "model"), {"seed": 1}),
    ):
        pass
    clear(str(tmp_path / "model"))
    assert (files_in(work), (work / "sums.npz").read_text()) == (["sums.npz"], "mine")


def test_files_put_beside_those_of_a_fit_stay_and_are_named(tmp_path: Path) -> None:
    work = tmp_path / "model.work"
    with work_folder(str(tmp_path / "model"), {"seed": 1}):
        (work / "sums-000001.npz").touch()
        (work / "thesis.txt").write_text("mine")
    assert files_in(work) == ["thesis.txt"]
    (work / MARK).touch()
    clear(str(tmp_path / "model"))
    assert files_in(work) == ["thesis.txt"]
    with (
        pytest.raises(ConfigError, match=r"such as thesis.txt"),
        work_folder(str(tmp_path / "model"), {"seed": 1}),
    ):
        pass
    assert files_in(work) == ["thesis.txt"]


def test_what_killed_commands_left_is_deleted_with_the_files_they_had_half_written(tmp_path: Path) -> None:
    work = tmp_path / "model.work"
    half = f".sums.npz.{'0' * 32}"
    with suppress(KeyError), work_folder(str(tmp_path / "model"), {"seed": 1}):
        (work / half).touch()
        (work / "pairs-000001.npz").touch()
        raise KeyError
    assert files_in(work) == [half, MARK, "pairs-000001.npz"]
    with work_folder(str(tmp_path / "model"), {"seed": 2}):
        assert files_in(work) == ["_lock.json", MARK]
    assert not work.exists()


def test_a_machine_that_does_not_see_the_folder_does_no_work_and_is_told_of(tmp_path: Path) -> None:
    done: list[Span] = []
    elsewhere = tmp_path / "other" / "model.work"

    def run(function: Any, tasks: Any) -> list[Any]:
        return [InFolder(str(elsewhere), function)(task) for task in tasks]

    with pytest.raises(ConfigError, match=r"model.work/_work.json: .* on a disk that all of them share"):
        list(in_order("labels", done.append, [Span(0, ())], run))
    assert not done
    assert not elsewhere.exists()
    with work_folder(str(elsewhere.with_suffix("")), {}):
        list(in_order("labels", done.append, [Span(0, ())], run))
    assert done == [Span(0, ())]
