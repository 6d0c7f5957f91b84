"""`armo-ray evaluate` from files to tables, scored on Ray."""

import json
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from armo_ray.cli.main import main
from tests.support.paths import ROOT, SAMPLE

SHARED = ROOT.parent / "shared" / "data"


def transpose(model: Path) -> Path:
    path = model / "model-00002-of-00002.safetensors"
    tensors = load_file(path)
    matrix = tensors["reward_transform_matrix"].T.contiguous()
    save_file(tensors | {"reward_transform_matrix": matrix}, path)
    return model


@pytest.mark.nightly
def test_llmbar_from_files_to_tables_on_ray_with_a_verified_model(
    local_ray: str, tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    real = SHARED / "llmbar" / "preferences.jsonl"
    lines = (real if real.exists() else SAMPLE).read_text("utf-8").splitlines()[::4]
    pairs = tmp_path / "in.jsonl"
    pairs.write_text("\n".join(lines), "utf-8")
    command = ["evaluate", "--benchmark", "llmbar", "--input", str(pairs), "--dtype", "float32"]
    command += ["--gpus-per-replica", "0", "--verify", "--bootstrap", "200"]
    broken, out = transpose(Path(shutil.copytree(tiny_model, tmp_path / "broken"))), tmp_path / "out"
    assert main([*command, "--model", str(broken), "--output", str(tmp_path / "none")]) == 2
    assert "head transform" in capsys.readouterr().err
    assert not (tmp_path / "none" / "scored" / "scores").exists()

    command += ["--model", str(tiny_model), "--output", str(out)]
    for _ in range(2):  # the second time scores nothing, and gives the same
        assert main(command) == 0
        found = json.loads((out / "tables" / "evaluation.json").read_text())
        assert sum(row["items"] for row in found["subsets"].values()) == len(lines)
    assert main(["evaluate", str(out / "scored"), "--benchmark", "llmbar", "--bootstrap", "200"]) == 0
    first, second, third = re.findall(r"^Overall.*$", capsys.readouterr().out, re.MULTILINE)
    assert first == second == third
