"""One run at a time in an output: the second is told of the first, and a dead one is in nobody's way."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from armo_ray.errors import ConfigError
from armo_ray.signals import stop_on_sigterm
from armo_ray.storage import lock
from armo_ray.storage.commits import now
from armo_ray.storage.json_files import to_json
from armo_ray.storage.store import Store

pytest_plugins = ["tests.support.s3_server"]


ENDED = subprocess.run(
    [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True
)
OF_THE_DEAD: Any = {**lock._whereabouts(), "pid": int(ENDED.stdout)}


@pytest.fixture(autouse=True)
def _short_times(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_S", 0.1)
    monkeypatch.setattr(lock, "STALE_S", 1.0)
    monkeypatch.setattr(lock, "_LOOK_S", 0.05)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(str(tmp_path) if request.param == "local" else request.getfixturevalue("s3") + "/lock")


def left_by(store: Store, **owner: Any) -> None:
    store.write(lock.LOCK, to_json({"run": "old", "host": "elsewhere", "pid": 1, "since": "then", **owner}))


def test_a_second_run_stops_and_names_the_first(store: Store) -> None:
    with (
        lock.held(store),
        pytest.raises(
            ConfigError, match=r"is being written by another command: process \d+ on \S+, running since 20"
        ),
        lock.held(store),
    ):
        pass
    with lock.held(store):  # both are over, and the second took nothing along
        assert store.read_json(lock.LOCK) is not None
    assert store.read_json(lock.LOCK) is None


def test_a_lock_that_nobody_renews_is_taken_over(store: Store) -> None:
    left_by(store)
    with lock.held(store):
        assert (store.read_json(lock.LOCK) or {})["run"] != "old"
    assert store.read_json(lock.LOCK) is None


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_over_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 1e9)
    left_by(store, **OF_THE_DEAD)
    with lock.held(store):
        pass


def test_a_run_waits_for_one_that_ends_in_time(store: Store) -> None:
    left_by(store)
    threading.Timer(0.3, store.delete, [lock.LOCK]).start()
    with lock.held(store):
        pass


def test_an_error_frees_the_output(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with pytest.raises(ZeroDivisionError), lock.held(store):
        raise ZeroDivisionError
    assert not (tmp_path / lock.LOCK).exists()


def test_a_run_that_lost_its_lock_stops_and_leaves_the_new_owner_s(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    stop_on_sigterm()

    def hold_and_lose() -> None:
        with lock.held(store):
            left_by(store, run="new")
            time.sleep(60)

    with pytest.raises(KeyboardInterrupt):
        hold_and_lose()
    assert json.loads((tmp_path / lock.LOCK).read_text())["run"] == "new"


def test_of_many_runs_that_find_a_dead_one_s_lock_one_goes_on(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LOOK_S", 0.5)
    monkeypatch.setattr(lock, "STALE_S", 1e-9)

    def goes_on(run: int) -> bool:
        owner = {
            **lock._whereabouts(),
            "run": str(run),
            "pid": os.getpid(),
            "since": "now",
            "command": "score",
        }
        return lock._taken_over(store, owner) is not None

    for _ in range(3):
        left_by(store, **OF_THE_DEAD)
        with ThreadPoolExecutor(6) as pool:
            taken = list(pool.map(goes_on, range(6)))
        assert sum(taken) == 1
        assert (store.read_json(lock.LOCK) or {})["run"] == str(taken.index(True))


def test_a_process_of_another_container_on_this_host_is_not_taken_for_a_dead_one(store: Store) -> None:
    left_by(store, **OF_THE_DEAD | {"space": "pid:[1]"})
    began = time.monotonic()
    with lock.held(store):
        assert time.monotonic() - began >= 1  # it waited for a sign


def test_the_lock_of_a_live_process_of_this_machine_is_told_at_once(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 1e9)
    monkeypatch.setattr(lock, "RENEW_S", 1e9)  # no sign of life is to be waited for
    with (
        lock.held(store, "mine"),
        pytest.raises(ConfigError, match=rf"process {os.getpid()} on .*armo-ray mine"),
        lock.held(store, "label"),
    ):
        pass


@pytest.mark.parametrize("ended", ["reused", "zombie"])
def test_a_process_that_has_ended_is_told_from_one_that_has_its_id_now(
    ended: str, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_S", 1e9)
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        owner = {"pid": process.pid} if ended == "zombie" else {"pid": os.getpid(), "began": "1"}
        left_by(store, **OF_THE_DEAD | owner | {"renewed": now()})
        with lock.held(store):
            pass


def test_a_live_process_that_renews_its_lock_no_more_is_waited_for_only_so_long(store: Store) -> None:
    began = lock._beginning_of(os.getpid())
    left_by(
        store, **OF_THE_DEAD | {"pid": os.getpid(), "began": began, "renewed": "2026-01-01T00:00:00+00:00"}
    )
    started = time.monotonic()
    with lock.held(store):
        assert time.monotonic() - started >= 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"run": "a',
        b"{}",
        b"[]",
        b"null",
        b"\xff",
        b'{"run": "a", "host": "b", "since": "c", "pid": "1"}',
    ],
    ids=["empty", "truncated", "object", "list", "null", "binary", "kinds"],
)
def test_a_damaged_lock_is_told_at_once_and_stays(
    content: bytes, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    store.write(lock.LOCK, content)
    with pytest.raises(ConfigError, match=r"_lock.json: damaged: .* Delete that file"), lock.held(store):
        pass
    assert caplog.text == ""
    assert store.read(lock.LOCK) == content


def test_a_lock_that_is_damaged_meanwhile_stops_nobody(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    with lock.held(store):
        store.write(lock.LOCK, b"{}")
        time.sleep(0.3)
    assert store.read(lock.LOCK) == b"{}"


def test_an_output_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ConfigError, match="cannot be written"),
        lock.held(Store(str(tmp_path / "file" / "out"))),
    ):
        pass
    with pytest.raises(ConfigError, match="cannot be written"), lock.held(Store(str(tmp_path / "file"))):
        pass


def test_what_killed_writers_left_is_deleted_and_what_live_ones_may_be_writing_is_not(tmp_path: Path) -> None:
    store, end = Store(str(tmp_path)), "." + "0123456789abcdef" * 2
    theirs = [
        "scores/day=1/.part-1.parquet",
        "rejects/.part-1.parquet",
        "_commits/.1.json",
        "data/train/.part-1.jsonl",
    ]
    nested = ["pairs/data/.part-1.parquet", ".report.html", ".old.html"]
    for name in theirs + nested:
        store.write(name + end, b"half")
    store.write("scores/.hidden", b"")
    os.utime(tmp_path / f".old.html{end}", (0, 0))
    with lock.held(store, folders=()):
        pass
    assert {name + end for name in theirs} <= names_in(store)
    with lock.held(store):
        pass
    assert names_in(store) == {*(name + end for name in nested[:2]), "scores/.hidden"}


def names_in(store: Store) -> set[str]:
    return {path.removeprefix(f"{store.root}/") for path in store.find("")}


def test_what_a_killed_run_left_is_deleted_when_its_lock_is_taken_over(
    tmp_path: Path,
) -> None:
    store = Store(str(tmp_path))
    store.write(f"_commits/.1.json.{'0' * 32}", b"half")
    left_by(store, **OF_THE_DEAD)
    with lock.held(store, folders=()):
        assert names_in(store) == {lock.LOCK}


@pytest.mark.parametrize("before", [{}, OF_THE_DEAD], ids=["free", "of a dead process"])
def test_an_interruption_while_the_lock_is_taken_leaves_none_of_ours(
    tmp_path: Path, before: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "_LOOK_S", 1e-3)
    store = Store(str(tmp_path))
    handler = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for moment in range(50, 4000, 25):  # microseconds
            if before:
                left_by(store, **before)
            with suppress(KeyboardInterrupt, RuntimeError):  # the latter by threading, in mid-start
                signal.setitimer(signal.ITIMER_REAL, moment / 1e6, 0.5)  # again, if it is lost in a callback
                with lock.held(store):
                    time.sleep(1)
                    pytest.fail("not interrupted")
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert (store.read_json(lock.LOCK) or {"run": "old"})["run"] == "old", moment
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
