"""A larger model's scores as a fit reads them: by its formula, also one that `reweigh` changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.fit.command import identity_of
from armo_ray.fit.inputs import Inputs
from armo_ray.fit.options import FitOptions
from armo_ray.fit.teacher import Teacher, read_teacher, values_of
from armo_ray.model.checkpoint import inspect
from armo_ray.outputs.hidden import HiddenOutputs
from armo_ray.outputs.scores import open_scores


@pytest.fixture(scope="module")
def names(scored_pairs: Path) -> tuple[str, ...]:
    return open_scores([str(scored_pairs)]).reward_names


def reweighed(scored: Path, output: Path, *changes: str) -> str:
    assert main(["reweigh", str(scored), "--output", str(output), *changes]) == 0
    return str(output)


def check_formula(teacher: Teacher) -> None:
    """The scores are those of the rewards, gates and transform that are learned."""
    values = values_of(teacher)
    if teacher.transform is not None:
        found = (values.rewards @ np.array(teacher.transform) * values.gating).sum(axis=1)
    else:
        found = values.rewards @ np.array(teacher.weights)
    np.testing.assert_allclose(found, values.score, rtol=1e-4, atol=1e-5)


def test_the_formula_of_a_reweighed_teacher_is_learned(
    scored_pairs: Path, names: tuple[str, ...], tmp_path: Path
) -> None:
    changes: dict[str, list[str]] = {
        "own": [],
        "factors": ["--factor", f"{names[0]}=-3", "--mask", names[1]],
        "weights": ["--weight", f"{names[0]}=2", "--weight", f"{names[1]}=-1"],
    }
    for name, words in changes.items():
        uri = reweighed(scored_pairs, tmp_path / name, *words) if words else str(scored_pairs)
        check_formula(read_teacher(uri, str(tmp_path / f"{name}.work")))


def test_values_stay_in_the_files_of_the_work_folder(scored_pairs: Path, tmp_path: Path) -> None:
    values = values_of(read_teacher(str(scored_pairs), str(tmp_path / "work")))
    assert all(isinstance(array.base, np.memmap) for array in values)
    files = [f"teacher-{name}.npy" for name in sorted(values._fields)]
    assert sorted(path.name for path in (tmp_path / "work").iterdir()) == files


def test_values_on_another_disk_are_named(scored_pairs: Path, tmp_path: Path) -> None:
    teacher = replace(read_teacher(str(scored_pairs), str(tmp_path / "work")), work=str(tmp_path / "other"))
    with pytest.raises(
        ConfigError, match=r"other/teacher-hashes.npy: written by this fit, but not to be seen here"
    ):
        values_of(teacher)


def test_scores_with_a_penalty_for_length_are_refused(scored_pairs: Path, tmp_path: Path) -> None:
    uri = reweighed(scored_pairs, tmp_path / "out", "--length-penalty", "0.01")
    with pytest.raises(ConfigError, match="its scores have a penalty for length"):
        read_teacher(uri, str(tmp_path / "work"))


def test_other_scores_in_the_same_place_make_another_fit(
    scored_pairs: Path, names: tuple[str, ...], tiny_model: Path, tmp_path: Path
) -> None:
    place = tmp_path / "scores"
    options = FitOptions.model_validate({"scores": ["in"], "output": "out", "target_scores": str(place)})
    none = HiddenOutputs((), {}, 64, (), {}, (), 0, {})
    inputs = Inputs(none, None, inspect(str(tiny_model)))
    found = []
    for factor in ("2", "3", "2"):
        reweighed(scored_pairs, place, "--factor", f"{names[0]}={factor}")
        found.append(identity_of(options, inputs))
        place.rename(tmp_path / f"scores {len(found)}")
    assert found[0] != found[1]
    assert found[0] == found[2]
