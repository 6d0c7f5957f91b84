"""Imports run one way, heavy packages stay where they belong, and asking for help loads none of them."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.support.paths import ROOT, SAMPLE
from tests.support.synthetic_outputs import score_synthetically

PACKAGE = ROOT / "armo_ray"
# Three tiers. The core never imports a command, commands import each other as listed alone, the face imports both.
CORE = {
    *("errors", "exit_status", "version", "signals", "options", "lean"),
    *("endpoint", "judging"),
    *(
        "storage",
        "text",
        "model",
        "engine",
        "tiny",
        "outputs",
        "measures",
        "expressions",
        "formatting",
        "cluster",
        "endpoint",
        "fitting",
    ),
}
COMMANDS = {
    *("score", "plan", "verify", "curate", "evaluate", "compare", "report", "explain", "layouts", "bench"),
    "nightly",
    "models",
    "fit",
    "judge",
    "embed",
}
FACE = {"", "cli", "__main__"}
BETWEEN_COMMANDS = {(command, "score") for command in ("plan", "judge", "evaluate", "embed")} | {
    ("score", "verify"),
    *(("nightly", command) for command in ("score", "curate", "report")),
}
ONLY_IN = {
    "torch": {"engine", "tiny", "score", "bench", "fitting"},
    "ray": {"cluster", "score", "judge"},
    "rich": {"score"},
    "aiohttp": {"endpoint"},
    "fsspec": {"storage"},
    "safetensors": {"engine", "tiny", "bench"},
    "duckdb": {"measures", "outputs", "curate", "evaluate", "compare", "report", "explain"},
    "rensa": {"curate"},
}
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@cache
def imports(module: str) -> tuple[str, ...]:
    """What a module imports, also late and for types alone."""
    return tuple(_imports(module))


def _imports(module: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(MODULES[module].read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in MODULES else node.module for name in names)


def room(module: str) -> str:
    return (*module.split("."), "")[1]


def test_every_room_is_of_one_tier() -> None:
    assert {room(module) for module in MODULES} == CORE | COMMANDS | FACE


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_from_the_face_to_the_commands_to_the_core(module: str) -> None:
    own = room(module)
    for name in imports(module):
        if name.startswith("armo_ray"):
            other = room(name)
            allowed = CORE | {own} | {b for a, b in BETWEEN_COMMANDS if a == own}
            assert other in allowed or own in FACE, f"{module} imports {name}"
        elif (top := name.split(".")[0]) in ONLY_IN:
            assert own in ONLY_IN[top], f"{module} imports {name}"


@pytest.mark.parametrize("of", [room, str])
def test_no_rooms_and_no_modules_import_each_other_in_a_circle(of: Callable[[str], str]) -> None:
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        found = {of(name) for name in imports(module) if name.startswith("armo_ray")}
        graph.setdefault(of(module), set()).update(found - {of(module)})
    list(TopologicalSorter(graph).static_order())  # raises CycleError


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "ray", "transformers", "pandas", "rich"}
WITHOUT = {
    "import": ("import armo_ray, armo_ray.engine", HEAVY | {"pyarrow", "pydantic", "numpy"}),
    "config-error": (
        "from armo_ray.cli.main import main\nassert main(['score', '--input', 'x']) == 2",
        HEAVY | {"pyarrow"},
    ),
    "no-model": (
        "from armo_ray.cli.main import main\nassert main('score --input x --output /tmp/x --model /none'.split()) == 2",
        HEAVY,
    ),
    "engine-parts": (
        "import armo_ray.engine.packing, armo_ray.model.checkpoint",
        HEAVY | {"pyarrow", "pydantic"},
    ),
}


@pytest.mark.parametrize(("code", "absent"), WITHOUT.values(), ids=WITHOUT.keys())
def test_what_need_not_wait_loads_nothing_heavy(code: str, absent: set[str]) -> None:
    assert not absent & modules_after(code)


def test_planning_a_run_loads_neither_torch_nor_ray(tiny_model: Path, tmp_path: Path) -> None:
    options = f"input='{SAMPLE}', output='{tmp_path / 'out'}', model='{tiny_model}'"
    loaded = modules_after(
        "from armo_ray.score.config import ScoreConfig\n"
        f"from armo_ray.score.job import prepare\nprepare(ScoreConfig({options}))"
    )
    assert not {"torch", "ray"} & loaded


def test_curating_does_without_pandas_which_pyarrow_still_converts_to(tmp_path: Path) -> None:
    scores = score_synthetically(tmp_path / "scores", SAMPLE)
    command = [
        "armo-ray",
        "filter",
        str(scores),
        "--where",
        "score > q0.5",
        "--output",
        str(tmp_path / "kept"),
    ]
    after = (
        "assert not {'pandas', 'ray', 'torch'} & set(sys.modules)\n"
        "import pyarrow as pa\n"
        "assert pa.table({'a': [1]}).to_pandas().a.sum() == 1\n"
        "import pandas as pd\n"
        "assert pa.array(pd.Series([1.0, float('nan')])).null_count == 1"
    )
    code = (
        f"import sys\nsys.argv = {command}\nfrom armo_ray.cli.main import main\nassert main() == 0\n{after}"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")  # nor is anything said of what is left when it ends


def test_scoring_token_ids_with_a_llama_loads_torch_and_of_transformers_what_templates_need(
    tiny_model: Path,
) -> None:
    loaded = modules_after(
        "from armo_ray.engine import RewardModel\n"
        f"model = RewardModel.load('{tiny_model}', dtype='float32', device='cpu')\n"
        "model.score([([1, *model.pattern.tolist()], [[2], [3, 4]])])"
    )
    assert not {"ray", "pydantic", "s3fs"} & loaded  # transformers itself takes pyarrow where there is one
    assert "transformers" in loaded  # its environment for templates
    assert not {"transformers.modeling_utils", "transformers.models.auto", "torch._dynamo"} & loaded


def test_the_top_level_is_fixed() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in tracked.splitlines()}
    assert {name for name in top if not name.startswith(".")} == {
        "pyproject.toml",
        "README.md",
        "armo_ray",
        "jobs",
        "cluster",
        "tests",
    }
