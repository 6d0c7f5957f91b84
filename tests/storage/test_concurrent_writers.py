"""Commands that write one output at the same time: one does it whole, the other is told why it cannot."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from armo_ray.cli.main import main
from armo_ray.errors import ConfigError
from armo_ray.evaluate import command as evaluate
from armo_ray.evaluate.options import EvaluateOptions
from armo_ray.outputs.dataset import names_in, new_output, own_files
from armo_ray.score.job import prepare
from armo_ray.storage import commits, lock
from armo_ray.storage.json_files import to_json
from armo_ray.storage.store import Store
from armo_ray.verify.output import verify_output
from tests.support.by_day import by_day
from tests.support.local import config_for
from tests.support.paths import ROOT, SAMPLE
from tests.support.served_commands import serve
from tests.support.synthetic_outputs import score_synthetically

pytest_plugins = ("tests.support.s3_server",)

COMMANDS = {
    "mine": ["mine", "a", "--decontaminate", "benchmark.txt"],
    "mine-jsonl": ["mine", "a", "--format", "jsonl", "--test-fraction", "0.3"],
    "label": ["label", "a", "--no-text", "--temperature", "1"],
    "filter": ["filter", "a", "--where", "score >= q0.3"],
    "filter-jsonl": ["filter", "a", "--where", "score >= q0.3", "--format", "jsonl"],
    "reweigh": ["reweigh", "a", "--mask", "helpsteer_verbosity"],
    "ensemble": ["reweigh", "a", "b", "--ensemble", "mean-std"],
    "evaluate": ["evaluate", "a", "--bootstrap", "100"],
    "compare": ["compare", "a", "b"],
}
REFUSALS = (
    "is being written by another command: process",
    "holds a dataset",
    "is not empty, and holds no complete",
)


@pytest.fixture(scope="module")
def scores(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two outputs, a and b, and a benchmark of one text."""
    folder = tmp_path_factory.mktemp("scores")
    (folder / "benchmark.txt").write_text("A question that is in none of the prompts.\n")
    for seed, name in enumerate("ab"):
        score_synthetically(folder / name, SAMPLE, seed=seed)
    return folder


def command_of(name: str, scores: Path | str, output: Path | str) -> list[str]:
    first, *rest = COMMANDS[name]
    words = [f"{scores}/{word}" if word in ("a", "b", "benchmark.txt") else word for word in rest]
    return [first, *words, "--output", str(output)]


@pytest.fixture(scope="module")
def together() -> Iterator[Callable[..., list[tuple[int, str]]]]:
    """Runs two commands in two warm processes at the same moment."""
    context = multiprocessing.get_context("spawn")
    start, pipes = context.Barrier(2), [context.Pipe() for _ in range(2)]
    processes = [context.Process(target=serve, args=(there, start), daemon=True) for _, there in pipes]
    for process in processes:
        process.start()

    def run(*commands: list[str]) -> list[tuple[int, str]]:
        for (here, _), command in zip(pipes, commands, strict=True):
            here.send(
                (command, {k: v for k, v in os.environ.items() if k.upper().startswith(("AWS_", "NO_PROXY"))})
            )
        return [here.recv() for here, _ in pipes]

    yield run
    for here, _ in pipes:
        here.send(None)
    for process in processes:
        process.join(10)


def assert_whole(output: Path | str, alone: Path | str) -> None:
    """The output holds what the command makes alone, and nothing else."""
    store, expected = Store(str(output)), Store(str(alone))
    names = set(names_in(store))
    assert names == set(names_in(expected))
    varying = {
        "README.md",
        commits.SUCCESS,
        commits.RUN,
        "comparison.json",
    }  # dates, and the last digits of sums
    for name in names - varying:
        if not name.startswith(commits.COMMITS):
            assert store.read(name) == expected.read(name), name
    manifest = store.read_json(commits.SUCCESS) or {"parts": []}
    assert all(len(store.read(part["path"])) == part["bytes"] for part in manifest["parts"])
    if commits.RUN in names:
        assert verify_output(str(output))[1] == []


def assert_one_won(results: list[tuple[int, str]]) -> None:
    (won, _), (lost, told) = sorted(results)
    assert (won, lost) == (0, 2), results
    assert any(refusal in told for refusal in REFUSALS), told


@pytest.mark.parametrize("name", by_day(COMMANDS, {"mine", "reweigh", "compare"}))
def test_of_two_commands_on_one_output_one_makes_it_whole_and_the_other_is_told(
    name: str, scores: Path, together: Callable[..., Any], tmp_path: Path
) -> None:
    assert main(command_of(name, scores, tmp_path / "alone")) == 0
    assert_one_won(together(*[command_of(name, scores, tmp_path / "deep/er")] * 2))
    assert_whole(tmp_path / "deep/er", tmp_path / "alone")
    assert own_files(names_in(Store(str(tmp_path / "alone")))) == names_in(Store(str(tmp_path / "alone")))


def test_of_two_commands_on_one_output_in_an_object_store_one_makes_it_whole(
    s3: str, scores: Path, together: Callable[..., Any]
) -> None:
    assert main(command_of("mine-jsonl", scores, f"{s3}/alone")) == 0
    assert_one_won(together(*[command_of("mine-jsonl", scores, f"{s3}/out")] * 2))
    assert_whole(f"{s3}/out", f"{s3}/alone")


def test_of_two_commands_of_different_kinds_one_wins(
    scores: Path, together: Callable[..., Any], tmp_path: Path
) -> None:
    names = ("label", "filter")
    for name in names:
        assert main(command_of(name, scores, tmp_path / name)) == 0
    results = together(*[command_of(name, scores, tmp_path / "out") for name in names])
    assert_one_won(results)
    assert_whole(tmp_path / "out", tmp_path / names[[status for status, _ in results].index(0)])


def test_a_run_does_not_begin_where_a_dataset_is_made(tiny_model: Path, tmp_path: Path) -> None:
    with new_output(str(tmp_path / "out"), "mine") as store:
        with pytest.raises(
            ConfigError, match=r"being written by another command: process .*\(armo-ray mine\)"
        ):
            prepare(config_for(tiny_model, SAMPLE, tmp_path / "out"))
        assert names_in(store) == [lock.LOCK]


def test_a_dataset_is_not_made_where_a_run_is_at_work(
    scores: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(str(tmp_path / "out"))
    with lock.held(store):
        store.write("scores/part-1.parquet", b"of the run")
        before = names_in(store)
        for name in COMMANDS:
            assert main(command_of(name, scores, store.uri)) == 2
            assert "is being written by another command" in capsys.readouterr().err
        assert names_in(store) == before


def test_a_second_evaluation_of_a_model_stops_before_it_scores(
    tiny_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--input", str(SAMPLE), "--model", str(tiny_model), "--output", str(tmp_path / "out")]
    with lock.held(Store(str(tmp_path / "out"))):
        assert main(["evaluate", *given]) == 2
    assert "is being written by another command" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_of_two_models_written_to_one_directory_one_is_there_whole(tmp_path: Path) -> None:
    for seed in "01":
        assert main(["tiny-model", str(tmp_path / seed), "--seed", seed]) == 0
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda seed: main(["tiny-model", str(tmp_path / "x"), "--seed", seed]), "01"))
    assert sorted(found) == [0, 2]
    contents = [
        {p.name: p.read_bytes() for p in (tmp_path / n).iterdir()} for n in ("x", str(found.index(0)))
    ]
    assert contents[0] == contents[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "x"]


def fail_in(output: Path) -> None:
    """A command that wrote some of everything, and somebody else beside it, before it failed."""
    with new_output(str(output), "mine") as store:
        for name in (
            "data/train/part-00000.parquet",
            "_work/a/b.parquet",
            "README.md",
            "notes.txt",
            "data/own.txt",
        ):
            store.write(name, b"something")
        raise ZeroDivisionError


def test_a_failure_deletes_what_the_command_wrote_and_nothing_else(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        fail_in(tmp_path / "out")
    assert sorted(names_in(Store(str(tmp_path / "out")))) == ["data/own.txt", "notes.txt"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["data", "notes.txt"]


@pytest.mark.parametrize("existing", ["", "deep"])
def test_a_failure_removes_the_directories_that_the_command_made_and_no_others(
    existing: str, tmp_path: Path
) -> None:
    (tmp_path / existing).mkdir(exist_ok=True)

    def fail() -> None:
        with new_output(str(tmp_path / "deep" / "out"), "mine") as store:
            store.write("data/train/part-00000.parquet", b"something")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [existing][: len(existing)]
    assert not (tmp_path / "deep" / "out").exists()


def test_what_another_command_took_over_is_left_to_it(tmp_path: Path) -> None:
    def lose() -> None:
        with new_output(str(tmp_path), "mine") as store:
            store.write("data/train/part-00000.parquet", b"of the other by now")
            store.write(lock.LOCK, to_json({"run": "o", "host": "other", "pid": 1, "since": "now"}))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        lose()
    assert sorted(names_in(Store(str(tmp_path)))) == [lock.LOCK, "data/train/part-00000.parquet"]


def test_a_place_that_holds_something_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("of somebody")
    tmp_path.chmod(0o555)
    before = tmp_path.stat().st_mtime_ns
    with (
        pytest.raises(ConfigError, match=r"is not empty.*\(notes.txt\): delete it"),
        new_output(str(tmp_path), "mine"),
    ):
        pass
    tmp_path.chmod(0o755)
    assert tmp_path.stat().st_mtime_ns == before


_KILLED = """
import os, signal, sys
from armo_ray.outputs.dataset import new_output
with new_output(sys.argv[1], "mine", sys.argv[2]) as store:
    for name in sys.argv[3:]:
        store.write(name, b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(output: Path, *names: str, engine: str = "duckdb") -> "subprocess.Popen[bytes]":
    """A command that was killed, and that nobody has asked how it ended."""
    process = subprocess.Popen([sys.executable, "-c", _KILLED, str(output), engine, *names], cwd=ROOT)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return process


PARTS = ("data/train/part-00000.parquet", "_work/1.parquet", f"data/train/.part-00001.parquet.{'0' * 32}")


@pytest.fixture
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_LOOK_S", 0.05)
    monkeypatch.setattr(lock, "STALE_S", 1e9)


@pytest.mark.usefixtures("_short")
def test_what_a_killed_command_left_is_deleted_by_the_next(
    scores: Path, tmp_path: Path, tiny_model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = killed(tmp_path / "out", *PARTS)
    shutil.copytree(tmp_path / "out", tmp_path / "kept")
    for name in ("out", "alone"):
        assert main(command_of("mine-jsonl", scores, tmp_path / name)) == 0
    assert_whole(tmp_path / "out", tmp_path / "alone")
    (tmp_path / "kept" / "notes.txt").write_text("of somebody")
    before = {p: p.read_bytes() for p in (tmp_path / "kept").rglob("*") if p.is_file() and p.name[0] != "."}
    with pytest.raises(ConfigError, match=r"left unfinished by process .*\(armo-ray mine\).* Delete it, or"):
        prepare(config_for(tiny_model, SAMPLE, tmp_path / "kept"))
    assert {
        p: p.read_bytes() for p in (tmp_path / "kept").rglob("*") if p.is_file() and p.name[0] != "."
    } == before
    assert main(command_of("mine-jsonl", scores, tmp_path / "kept")) == 2
    assert "holds no complete dataset" in capsys.readouterr().err
    assert {"notes.txt", PARTS[0], PARTS[1]} == set(names_in(Store(str(tmp_path / "kept"))))
    process.wait()


@pytest.mark.usefixtures("_short")
@pytest.mark.parametrize(
    ("engine", "names"), [("ray", PARTS), ("duckdb", (*PARTS, commits.SUCCESS))], ids=["tasks", "whole"]
)
def test_what_a_killed_command_left_is_kept_where_it_may_be_whole_or_tasks_may_write_on(
    engine: str, names: tuple[str, ...], tmp_path: Path
) -> None:
    process = killed(tmp_path, *names, engine=engine)
    before = set(names) - {PARTS[2]}
    for _ in range(2):
        with (
            pytest.raises(ConfigError, match="delete it, or choose another"),
            new_output(str(tmp_path), "label"),
        ):
            pass
        assert set(names_in(Store(str(tmp_path)))) == before
    process.wait()


@pytest.mark.usefixtures("_short")
def test_what_a_killed_run_left_is_not_deleted_by_a_command_that_makes_a_dataset(tmp_path: Path) -> None:
    code = _KILLED.replace(
        'new_output(sys.argv[1], "mine", sys.argv[2]) as store', "lock.held(Store(sys.argv[1]))"
    )
    code = code.replace("    for", "    store = Store(sys.argv[1])\n    for")
    code = f"from armo_ray.storage import lock\nfrom armo_ray.storage.store import Store\n{code}"
    names = ("_run.json", "scores/part-1.parquet")
    subprocess.run([sys.executable, "-c", code, str(tmp_path), "-", *names], cwd=ROOT, check=False)
    assert set(names_in(Store(str(tmp_path)))) == {lock.LOCK, *names}
    with (
        pytest.raises(ConfigError, match="Run that command again to finish it"),
        new_output(str(tmp_path), "label"),
    ):
        pass
    assert set(names_in(Store(str(tmp_path)))) == {lock.LOCK, *names}


def test_a_command_that_is_stopped_leaves_neither_spill_nor_output(scores: Path, tmp_path: Path) -> None:
    spill = tmp_path / "spill"
    spill.mkdir()
    command = command_of("mine-jsonl", scores, tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-m", "armo_ray", *command, "--spill", str(spill)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    while not any(spill.iterdir()):
        assert process.poll() is None
        time.sleep(0.001)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1, told
    assert "stopped; nothing is left" in told
    assert [path.name for path in tmp_path.rglob("*")] == ["spill"]


def test_sigterm_stops_every_command_as_ctrl_c_does(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        assert main(["verify", str(tmp_path)]) == 2
        assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_tables_are_replaced_once_the_new_are_known_and_no_file_of_another_is_deleted(
    scores: Path, tmp_path: Path
) -> None:
    given: Any = {"scores": [str(scores / "a")], "output": str(tmp_path / "tables"), "bootstrap": 100}
    evaluate.run(EvaluateOptions(**given))
    for name in ("old.svg", "notes.txt"):
        (tmp_path / "tables" / name).write_text("")
    before = {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()}
    with pytest.raises(ConfigError, match="no column"):
        evaluate.run(EvaluateOptions(**given, by=("missing",)), replace=True)
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == before
    evaluate.run(EvaluateOptions(**given), replace=True)
    del before["old.svg"]
    assert {path.name: path.read_bytes() for path in (tmp_path / "tables").iterdir()} == before
