"""Drivers, askers and servers that are killed cost no reply twice, and the output is that of an undisturbed run."""

import json
import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from armo_ray.storage.store import Store
from jobs.measure.scale import descendants
from tests.support.fake_endpoint import fake_endpoint
from tests.support.invariants import check_equal, check_whole
from tests.support.judge_outputs import PAIR, write_rows
from tests.support.judging import execute_here, judge, pairs, start
from tests.support.runs import finish, free_ports, kill, kill_run

pytest_plugins = ("tests.support.s3_server",)
pytestmark = [pytest.mark.nightly, pytest.mark.timeout(1800)]

KILLS, ROWS, IN_FLIGHT, DELAY_S = 10, 600, 8, 0.1
SETTINGS = {"rule": "drawn", "text": "{key}\nBetter: {}", "delay_s": DELAY_S}
OPTIONS = ("--unit-rows", "100", "--in-flight", str(IN_FLIGHT))


class Server:
    """A server that comes back after a kill, at the same place; its file tells of all requests it ever got."""

    def __init__(self, folder: Path) -> None:
        self.log, self.port = folder / "requests.log", free_ports(1)[0]
        self.running = ExitStack()
        self.url = self.start()

    def start(self) -> str:
        options = ("--port", str(self.port), "--log", str(self.log), "--settings", json.dumps(SETTINGS))
        return self.running.enter_context(fake_endpoint(*options))

    def kill(self) -> None:
        self.running.close()
        time.sleep(random.uniform(0, 1))
        self.start()

    def arrived(self) -> Counter[str]:
        return Counter(self.log.read_text().split())


def askers() -> list[int]:
    """Processes that ask for the replies of a unit."""
    return [pid for pid in descendants(os.getpid()) if b"AskingActor" in command_of(pid)]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def wait(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 180
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


class Life:
    """Runs into one output until it is whole, with a kill from time to time."""

    def __init__(self, server: Server, file: Path, inputs: Path, out: str, ray: str | None) -> None:
        self.server, self.out = server, out
        variables = {} if ray is None else {"RAY_ADDRESS": ray}
        self.start: Callable[[], subprocess.Popen[str]] = lambda: start(
            server.url, file, inputs, out, *OPTIONS, **variables
        )
        self.joins = ray is not None
        self.run = self.start()
        self.kept: list[tuple[frozenset[str], Counter[str]]] = []

    def kill(self, kind: str) -> None:
        """Kill one when some more requests were sent, which must be before the run ends."""
        more = self.server.arrived().total() + random.randrange(1, 80)
        wait(lambda: self.server.arrived().total() >= more or self.run.poll() is not None, "no request")
        assert self.run.poll() is None, f"the run ended before: {self.run.communicate()[1]}"
        if kind == "server":
            self.server.kill()
        elif kind == "asker":
            kill([pid := random.choice(askers())])
            wait(lambda: b"AskingActor" not in command_of(pid), "it lives")
        elif kind == "driver" and self.joins:
            self.run.kill()
            self.run.communicate()
            wait(lambda: not askers(), "askers outlive the run")
        elif kind == "driver":
            kill_run(self.run)
        before = self.server.arrived()
        self.kept.append((self.keys_in_journal(), before))
        if kind == "driver":
            self.run = self.start()

    def keys_in_journal(self) -> frozenset[str]:
        """Of the requests whose replies are kept."""
        store = Store(self.out)
        content = b"".join(store.read(p.removeprefix(f"{store.root}/")) for p in store.find("_journal"))
        return frozenset(re.findall(r"[0-9a-f]{64}(?=\\nBetter)", content.decode()))


@pytest.mark.ray
@pytest.mark.parametrize("place", ["disk", "s3"])
def test_ten_kills_cost_no_reply_twice(
    place: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(0)
    file = tmp_path / "pair.toml"
    file.write_text(PAIR)
    inputs = write_rows(tmp_path / "in.jsonl", pairs(ROWS))
    server = Server(tmp_path)
    with server.running:
        out, ray = str(tmp_path / "out"), None
        if place == "s3":
            out = request.getfixturevalue("s3") + "/out"  # its workers need the variables of the server
        else:
            ray = request.getfixturevalue("local_ray")
        life = Life(server, file, inputs, out, ray)
        kinds = [("driver", "asker", "server")[i % 3] for i in range(KILLS)]
        random.shuffle(kinds)
        for kind in kinds:
            life.kill(kind)
        finish(life.run)
        arrived = server.arrived()
        check(life, arrived, place)
        with monkeypatch.context() as patch:
            patch.setattr("armo_ray.judge.pipeline.execute", execute_here)
            assert judge(server.url, file, inputs, tmp_path / "undisturbed", *OPTIONS) == 0
    check_whole(out)
    check_equal(out, tmp_path / "undisturbed")


def check(life: Life, arrived: Counter[str], place: str) -> None:
    assert len(arrived) == len(life.keys_in_journal()) == 2 * ROWS
    for kept, before in life.kept:
        again = {key: (before[key], arrived[key]) for key in kept if arrived[key] != before[key]}
        assert again == {}, "replies were in the journal, and asked for again"
    at_once = (
        IN_FLIGHT + (place == "s3") * IN_FLIGHT / DELAY_S * 1.5
    )  # what a second of replies is, and its writing
    print(f"{place}: {arrived.total()} requests for {len(arrived)} replies")
    assert arrived.total() <= len(arrived) + KILLS * at_once
