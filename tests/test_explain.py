"""armo-ray explain: a row's tokens are those that the model read, and its contributions add up to its score."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from armo_ray.chat import Chat
from armo_ray.cli import main
from armo_ray.engine import RewardModel
from armo_ray.engine.tiny_families import write_family
from armo_ray.explain.find import find
from armo_ray.explain.show import ADVICE
from armo_ray.explain.tokens import trace
from armo_ray.families import FAMILIES
from armo_ray.schema import REJECT_REASONS
from armo_ray.text.tokenization import Encoder
from tests.local import rejects_of, rows_of, score_locally
from tests.runs import SAMPLE
from tests.test_architecture import modules_after

SIZES = {"highest": max, "lowest": min}
FEW = "".join(SAMPLE.read_text("utf-8").splitlines(keepends=True)[:6])


def explained(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert main(["explain", *map(str, arguments)]) == 0
    return capsys.readouterr().out


def contributions(text: str) -> dict[str, tuple[float, float, float]]:
    """Reward, coefficient and contribution by name, in the order of the table."""
    number = r"(-?\d+\.\d+)"
    found = re.findall(rf"^(\w+) +{number} +(?:{number}|none) +{number} +{number}", text, re.M)
    return {name: (float(reward), float(weight), float(product)) for name, reward, _, weight, product in found}


def marked(text: str) -> dict[int, str]:
    """The marks of the listed tokens."""
    return {int(at): mark for at, mark in re.findall(r"^ +(\d+) +\d+  .*   <- (.*)$", text, re.M)}


def test_the_contributions_of_a_row_add_up_to_its_score(
    scored_pairs: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    transform = np.array(json.loads(json.dumps(RewardModelData.transform(tiny_model))))
    for row in rows_of(scored_pairs)[::61]:
        table = contributions(explained(capsys, scored_pairs, row["row_id"]))
        rewards, gating = (np.array(list(row[name].values())) for name in ("rewards", "gating"))
        expected = dict(zip(row["rewards"], rewards * (transform @ gating), strict=True))
        assert {name: product for name, (_, _, product) in table.items()} == pytest.approx(expected, abs=2e-6)
        assert list(table) == sorted(expected, key=lambda name: -expected[name])
        assert sum(product for _, _, product in table.values()) == pytest.approx(row["score"], abs=1e-4)


class RewardModelData:
    """What the checkpoint itself holds, read without the command."""

    @staticmethod
    def transform(model: Path) -> list[list[float]]:
        from safetensors.numpy import load_file

        return load_file(model / "model.safetensors")["reward_transform_matrix"].tolist()
