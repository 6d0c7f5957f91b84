"""Tasks on Ray: results in order, and nothing of a step goes on after one of its tasks failed."""

import os
import time
from pathlib import Path

import pytest

from armo_ray.cluster.connect import connected, run_tasks

pytestmark = pytest.mark.ray


def test_results_are_in_the_order_of_the_tasks(local_ray: str) -> None:
    shared = list(range(100))
    with connected():
        assert run_tasks(lambda place: shared[place] * 2, range(20)) == [2 * n for n in range(20)]
        assert run_tasks(lambda place: len(place), [["a"], [], ["a", "b"]]) == [1, 0, 2]
        assert run_tasks(lambda place: place, []) == []


def test_a_task_whose_process_dies_is_computed_again(local_ray: str, tmp_path: Path) -> None:
    def work(number: int) -> int:
        if number == 1 and not (tmp_path / "died").exists():
            (tmp_path / "died").touch()
            os._exit(1)
        return number

    with connected():
        assert run_tasks(work, range(3)) == [0, 1, 2]
    assert (tmp_path / "died").exists()


def test_after_a_failure_no_task_goes_on(local_ray: str, tmp_path: Path) -> None:
    def work(number: int) -> None:
        if number == 1:
            while not (tmp_path / "0-began").exists():
                time.sleep(0.01)
            raise ValueError("it is the second")
        (tmp_path / f"{number}-began").touch()
        time.sleep(2)
        (tmp_path / f"{number}-ended").touch()

    with pytest.raises(RuntimeError, match="it is the second"), connected():
        run_tasks(work, range(30))
    time.sleep(2.5)
    assert (tmp_path / "0-began").exists()
    assert not list(tmp_path.glob("*-ended"))
    assert len(list(tmp_path.glob("*-began"))) < 10
