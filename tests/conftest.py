"""Fixtures that more than one module needs. Nothing here stands in for the real thing but the weights."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise each Ray has one more process, and reports
os.environ.setdefault("OMP_NUM_THREADS", "1")  # more only wait for each other on a busy machine

import fcntl
import gc
import gzip
import importlib.util
import json
import re
import signal
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from armo_ray.model.chat import Chat
from armo_ray.tiny.armorm import LLAMA3_SPLIT, SPECIAL_TOKENS, write_tiny_model
from tests.support.paths import SAMPLE

# whatever the environment says: rewriting the asserts of all test modules takes as long as their imports
sys.dont_write_bytecode = False

# a shell's background job ignores it, and so would all that tests start
signal.signal(signal.SIGINT, signal.default_int_handler)


# tests/engine/test_gpu.py also runs where only the engine's packages and pytest are installed
def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


if _installed("hypothesis"):
    from hypothesis import HealthCheck, settings

    # the same examples on every run, however slow the machine is
    settings.register_profile(
        "suite", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
    )
    settings.load_profile("suite")


def pytest_addoption(parser: pytest.Parser) -> None:
    if not _installed("pytest_timeout"):
        parser.addini("timeout", "of a test, in seconds; does nothing without pytest-timeout")
    parser.addoption("--all", action="store_true", help="run the nightly tests too, and longer searches")
    parser.addoption("--soak", action="store_true", help="run the tests that inject faults for hours")
    parser.addoption("--soak-faults", type=int, default=1000, help="faults that they inject (default: 1000)")
    parser.addoption("--soak-seed", type=int, default=0, help="of their kinds and times (default: 0)")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The soak without the rest, or the rest without the soak; tests that need Ray first, all on one worker."""
    soak, nightly = config.getoption("--soak"), config.getoption("--soak") or config.getoption("--all")
    others = [item for item in items if _is(item, "soak") != soak or (_is(item, "nightly") and not nightly)]
    config.hook.pytest_deselected(items=others)
    items[:] = sorted((item for item in items if item not in others), key=_order)


def pytest_collection_finish() -> None:
    """What is imported by now stays: garbage collection need not look at it again and again."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    gc.unfreeze()


def _is(item: pytest.Item, mark: str) -> bool:
    return item.get_closest_marker(mark) is not None  # keywords hold the names of folders too


def _order(item: pytest.Item) -> int:
    """Tests on the shared Ray come first, then others of modules that need Ray, then all others."""
    if "local_ray" in getattr(item, "fixturenames", ()):
        return 0
    return 1 if _needs_ray(item.path) else 2


@cache
def _needs_ray(module: Path) -> bool:
    return re.search(r"\blocal_ray\b|\bmark\.ray\b", module.read_text("utf-8")) is not None


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """A worker does a module at a time, whose tests share fixtures, and one worker does all that need Ray.

    The groups of `--dist loadgroup` would do, but xdist 3.8 does not find them under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class ByModule(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            module = nodeid.split("::")[0]
            return "ray" if _needs_ray(config.rootpath / module) else module

    return ByModule(config, log)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What tests counted, which `-q` would swallow."""
    for report in terminalreporter.getreports("passed"):
        for name, value in report.user_properties:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture
def local_ray() -> str:
    """A Ray on this machine, shared by the tests that ask for it; returns its address. It exports metrics every
    three seconds, not every ten."""
    import ray  # takes seconds, which not every test wants

    if not ray.is_initialized():
        ray.init(
            "local",
            num_cpus=3,
            include_dashboard=False,
            log_to_driver=False,
            _system_config={"metrics_report_interval_ms": 3000},
        )
    address: str = ray.get_runtime_context().gcs_address
    return address


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """The shared Ray ends where the next test does not use it, also one that a test asked for as it ran."""
    if "ray" in sys.modules and (nextitem is None or _order(nextitem) > 0):
        import ray

        ray.shutdown()


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random ArmoRM with its own small vocabulary."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    write_tiny_model(path)
    return path


@pytest.fixture(scope="session")
def tiny_chat(tiny_model: Path) -> Chat:
    return Chat.load(tiny_model)


@pytest.fixture(scope="session")
def llama3_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random ArmoRM with the real Llama-3 vocabulary: 128,257 tokens. Workers share it: whoever comes first
    converts the vocabulary, which takes seconds."""
    models = pytest.importorskip("llama_models", reason="needs the package llama-models (no dependencies)")
    of_all = tmp_path_factory.getbasetemp()
    folder = (of_all.parent if "PYTEST_XDIST_WORKER" in os.environ else of_all) / "llama3"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "whole").exists():
            vocabulary = Path(models.__path__[0]) / "llama3" / "tokenizer.model"
            write_tiny_model(folder / "model", tokenizer=_llama3_tokenizer(vocabulary))
            (folder / "whole").touch()
    return folder / "model"


def _llama3_tokenizer(vocabulary: Path) -> Tokenizer:
    """The real Llama-3 vocabulary with ArmoRM's [PAD]."""
    from transformers.convert_slow_tokenizer import TikTokenConverter

    converter = TikTokenConverter(
        vocab_file=str(vocabulary), pattern=LLAMA3_SPLIT, extra_special_tokens=list(SPECIAL_TOKENS)
    )
    tokenizer: Tokenizer = converter.converted()
    return tokenizer


@pytest.fixture(scope="session")
def llama3_chat(llama3_model: Path) -> Chat:
    return Chat.load(llama3_model)


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample twice over, in 13 shards."""
    folder = tmp_path_factory.mktemp("shards")
    lines = SAMPLE.read_text("utf-8").splitlines(keepends=True) * 2
    for i in range(13):
        (folder / f"{i:02}.jsonl").write_text("".join(lines[20 * i : 20 * i + 20]), "utf-8")
    return folder


@pytest.fixture(scope="session")
def formats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's rows in a Parquet shard of many row groups, JSON lines, and both kinds of compressed ones."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path_factory.mktemp("formats")
    lines = SAMPLE.read_bytes().splitlines(keepends=True)
    table = pa.Table.from_pylist([json.loads(line) for line in lines[:70]])
    pq.write_table(table, folder / "a.parquet", row_group_size=4)
    (folder / "b.jsonl").write_bytes(b"".join(lines[70:100]))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(b"".join(lines[100:115])))
    (folder / "d.jsonl.zst").write_bytes(pa.compress(b"".join(lines[115:]), "zstd", asbytes=True))
    return folder


@pytest.fixture(scope="session")
def scored_pairs(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's pairs, scored, in several parts of two partitions; one row is rejected."""
    folder = tmp_path_factory.mktemp("pairs")
    from tests.support.local import score_locally  # takes torch, which not every test wants

    lines = SAMPLE.read_text("utf-8").splitlines()
    for day, some in (("2026-11-01", lines[::2]), ("2026-11-02", [*lines[1::2], '{"id": "broken"}'])):
        shard = folder / "in" / f"day={day}" / "shard.jsonl"
        shard.parent.mkdir(parents=True)
        shard.write_text("\n".join(some) + "\n", "utf-8")
    score_locally(tiny_model, folder / "in", folder / "scores", keep=["id", "subset"], unit_rows=40)
    return folder / "scores"


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Outputs of judges: the sample's first pairs compared as `pairs` and rated as `ratings`, which keeps the text and
    rejects some, in two partitions; and lists of four as `lists`, compared two by two as `contests`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from tests.support import judge_outputs as judges

    folder = tmp_path_factory.mktemp("judged")
    rows = [json.loads(line) for line in SAMPLE.read_text("utf-8").splitlines()][:24]
    for day, some in (("2026-11-01", rows[:12]), ("2026-11-02", rows[12:])):
        judges.write_rows(folder / "in" / f"day={day}" / "shard.jsonl", some)
    answers = [row["chosen"] for row in rows]
    lists = [
        {"prompt": row["prompt"], "responses": [*answers[i:], *answers][:4]} for i, row in enumerate(rows)
    ]
    pq.write_table(pa.Table.from_pylist(lists), folder / "lists.parquet")
    prices, kept = {"input_price": 2.0, "output_price": 8.0}, {"keep": ["id", "subset"], "unit_rows": 10}
    for name, text, answer, options in (
        ("pairs", judges.PAIR, judges.prefers, prices),
        ("ratings", judges.RATING, judges.rates_mostly, {"keep_text": True, **prices}),
    ):
        judges.judge_locally(text, answer, folder / "in", folder / name, **kept, **options)
    judges.judge_locally(judges.LIST, judges.picks, folder / "lists.parquet", folder / "lists", unit_rows=16)
    contests = {"unit_rows": 16, "keep_text": True}
    judges.judge_locally(
        judges.PAIR, judges.prefers, folder / "lists.parquet", folder / "contests", **contests
    )
    return folder
