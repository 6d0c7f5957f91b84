"""Imports run one way, heavy packages stay where they belong, and asking for help loads none of them."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "armo_ray"
BASE = {"", "errors", "families", "config", "schema", "chat"}
# What each room may import of the package, besides itself.
MAY_IMPORT = {
    "errors": set(),
    "families": set(),
    "config": {"errors", "families"},
    "schema": set(),
    "markdown": set(),
    "kept": {"errors"},
    "agreement": set(),
    "template": set(),
    "chat": {"errors", "families", "template"},
    "": BASE | {"text", "engine", "pipeline"},
    "storage": BASE,
    "text": BASE,
    "engine": BASE - {"config", "schema"},
    "bench": BASE - {"config", "schema"} | {"agreement", "engine", "storage", "text"},
    "columns": {"errors", "schema", "storage"},
    "survey": BASE | {"storage", "text"},
    "plan": BASE | {"columns", "kept", "storage", "text", "engine", "survey"},
    "stages": BASE | {"agreement", "kept", "storage", "text", "engine", "plan"},
    "trial": BASE | {"storage", "text", "plan", "stages"},
    "estimate": BASE | {"storage", "text", "engine", "plan", "stages", "trial"},
    "explain": BASE | {"storage", "text", "engine"},
    "progress": BASE,
    "interrupts": BASE,
    "replicas": BASE | {"storage", "plan", "stages"},
    "passes": {"storage"},
    "places": BASE | {"storage", "plan"},
    "isolation": BASE | {"storage", "plan", "replicas"},
    "watch": set(),
    "cluster": {"interrupts", "watch"},
    "evaluation": {"errors"},
    "curation": BASE | {"agreement", "cluster", "evaluation", "markdown", "storage", "text"},
    "report": BASE | {"curation", "evaluation", "markdown", "plan", "storage"},
    "preflight": BASE | {"engine", "storage", "text"},
    "pipeline": BASE
    | {"cluster", "kept", "passes", "places", "preflight", "report"}
    | {"storage", "text", "engine", "plan", "stages", "progress", "replicas", "isolation"},
    "parser": BASE | {"bench", "curation", "estimate", "report"},
    "cli": BASE
    | {"parser", "bench", "curation", "estimate", "explain", "interrupts", "watch"}
    | {"engine", "pipeline", "plan", "preflight", "report", "storage", "text", "trial"},
}
ONLY_IN = {
    "torch": {"engine", "replicas", "bench"},
    "ray": {"cluster", "places", "pipeline", "progress", "replicas", "isolation"},
    "rich": {"progress"},
    "fsspec": {"storage"},
    "safetensors": {"engine", "bench"},
    "duckdb": {"curation", "report"},
    "rensa": {"curation"},
}


def rooms() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        yield "" if first == "__init__" else first, path


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize(("room", "path"), list(rooms()), ids=lambda value: getattr(value, "name", value))
def test_imports_run_one_way(room: str, path: Path) -> None:
    for name in imports(path):
        top, *rest = name.split(".")
        if top == "armo_ray":
            target = rest[0] if (PACKAGE / rest[0]).exists() or (PACKAGE / f"{rest[0]}.py").exists() else ""
            assert target == room or target in MAY_IMPORT[room], f"{path.name} imports {name}"
        elif top in ONLY_IN:
            assert room in ONLY_IN[top], f"{path.name} imports {name}"


def modules_after(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


HEAVY = {"torch", "ray", "transformers", "pandas", "rich"}
WITHOUT = {
    "import": ("import armo_ray, armo_ray.engine", HEAVY | {"pyarrow", "pydantic", "numpy"}),
    "help": (
        "from armo_ray.cli import main\ntry: main(['score', '--help'])\nexcept SystemExit: pass",
        HEAVY | {"pyarrow"},
    ),
    "bench-help": (
        "from armo_ray.cli import main\ntry: main(['bench', '--help'])\nexcept SystemExit: pass",
        HEAVY | {"pyarrow", "numpy"},
    ),
    "mine-help": (
        "from armo_ray.cli import main\ntry: main(['mine', '--help'])\nexcept SystemExit: pass",
        HEAVY | {"pyarrow", "duckdb", "numpy"},
    ),
    "evaluate-help": (
        "from armo_ray.cli import main\ntry: main(['evaluate', '--help'])\nexcept SystemExit: pass",
        HEAVY | {"pyarrow", "duckdb", "numpy"},
    ),
    "report-help": (
        "from armo_ray.cli import main\ntry: main(['report', '--help'])\nexcept SystemExit: pass",
        HEAVY | {"pyarrow", "duckdb", "numpy"},
    ),
    "config-error": (
        "from armo_ray.cli import main\nassert main(['score', '--input', 'x']) == 2",
        HEAVY | {"pyarrow"},
    ),
    "no-model": (
        "from armo_ray.cli import main\nassert main('score --input x --output /tmp/x --model /none'.split()) == 2",
        HEAVY,
    ),
    "engine-parts": (
        "import armo_ray.engine.packing, armo_ray.engine.checkpoint",
        HEAVY | {"pyarrow", "pydantic"},
    ),
}


@pytest.mark.parametrize(("code", "absent"), WITHOUT.values(), ids=WITHOUT.keys())
def test_what_need_not_wait_loads_nothing_heavy(code: str, absent: set[str]) -> None:
    assert not absent & modules_after(code)


def test_planning_a_run_loads_neither_torch_nor_ray(tiny_model: Path, tmp_path: Path) -> None:
    sample = ROOT / "jobs" / "samples" / "llmbar.jsonl"
    options = f"input='{sample}', output='{tmp_path / 'out'}', model='{tiny_model}'"
    loaded = modules_after(
        f"from armo_ray.config import ScoreConfig\nfrom armo_ray.plan import prepare\nprepare(ScoreConfig({options}))"
    )
    assert not {"torch", "ray"} & loaded


def test_scoring_token_ids_needs_torch_and_transformers_only(tiny_model: Path) -> None:
    loaded = modules_after(
        f"from armo_ray.engine import RewardModel\nRewardModel.load('{tiny_model}', dtype='float32', device='cpu')"
    )
    assert not {"ray", "pydantic", "s3fs"} & loaded  # transformers itself takes pyarrow where there is one


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
