"""A run stops, and says why, when a process that it depends on is gone."""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from armo_ray.cli.main import main
from armo_ray.cluster import connect, watchdog
from armo_ray.cluster.watchdog import Endpoint, Lost, watched
from jobs.measure.scale import descendants
from tests.support.paths import ROOT, SAMPLE
from tests.support.runs import free_ports, program_of


def listener(port: int = 0) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def endpoint_of(server: socket.socket, patience: float, what: str = "the raylet") -> Endpoint:
    return Endpoint(what, "127.0.0.1", server.getsockname()[1], patience)


def test_work_stops_when_one_of_its_processes_is_gone_and_the_error_names_that_one() -> None:
    began = time.monotonic()
    with listener() as stays, listener() as goes:
        threading.Timer(0.5, goes.close).start()
        both = [endpoint_of(stays, 0, "the head"), endpoint_of(goes, 0)]
        with (
            pytest.raises(Lost, match=r"^the raylet is gone\. Do it again$"),
            watched(both, "Do it again"),
        ):
            time.sleep(30)
    assert time.monotonic() - began < 10


def test_a_process_that_comes_back_in_time_stops_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with listener() as first:
        endpoint = endpoint_of(first, 20)
        with watched([endpoint], "Do it again"):
            first.close()
            while "does not answer: stopping in 20 s" not in caplog.text:
                time.sleep(0.05)
            with listener(endpoint.port) as second:
                second.settimeout(10)
                second.accept()
    with listener(endpoint.port), pytest.raises(KeyError), watched([endpoint], "Do it again"):
        raise KeyError  # an error of the work's own stays what it is


def test_an_error_that_the_loss_caused_is_reported_as_the_loss() -> None:
    with listener() as server:
        endpoint = endpoint_of(server, 60)
        with (
            pytest.raises(Lost, match=r"^the raylet is gone\. Do it again$"),
            watched([endpoint], "Do it again"),
        ):
            fail_with(server)


def fail_with(server: socket.socket) -> None:
    server.close()
    raise KeyError


def test_ctrl_c_and_an_end_before_the_loss_are_left_alone() -> None:
    with listener() as server:
        with pytest.raises(KeyboardInterrupt), watched([endpoint_of(server, 0)], ""):
            signal.raise_signal(signal.SIGINT)
        with watched([endpoint_of(server, 0)], ""):
            server.close()


HANGS = """
import socket, sys, time
from armo_ray.cluster import watchdog

watchdog.command = "armo-ray score"
watchdog._GRACE_S = 0.5
server = socket.create_server(("127.0.0.1", 0))
with watchdog.watched([watchdog.Endpoint("the head", *server.getsockname(), 0)], "Do it again"):
    try:
        server.close()
        time.sleep(60)
    finally:
        time.sleep(60)  # as a call that waits for an answer
"""
IS_ENDED = HANGS.replace(
    "time.sleep(60)\n    finally", "watchdog.os._exit(1)  # as Ray does in a call\n    finally"
)


@pytest.mark.parametrize("program", [HANGS, IS_ENDED])
def test_work_that_hangs_or_is_ended_without_a_word_ends_with_the_error_as_the_last_line(
    program: str,
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    how = "" if program == HANGS else ", and the process ended with it"
    assert done.stderr.splitlines()[-1] == f"armo-ray score: failed: the head is gone{how}. Do it again"


def test_a_local_ray_is_watched_by_its_raylet_and_its_head(local_ray: str) -> None:
    watched_ports = {
        endpoint.what.split(" of ")[0]: endpoint.port for endpoint in connect._endpoints("local")
    }
    programs = {"this node's raylet": "raylet", "the head": "gcs_server"}
    assert watched_ports.keys() == programs.keys()
    for what, program in programs.items():
        (pid,) = (pid for pid in descendants(os.getpid()) if program_of(pid) == program)
        listening = {c.laddr.port for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"}
        assert watched_ports[what] in listening


def test_a_cluster_that_is_not_there_is_told_with_what_to_do(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    address = f"127.0.0.1:{free_ports(1)[0]}"
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(watchdog, "HEAD_PATIENCE_S", 0.5)
    command = ["score", "--input", str(SAMPLE), "--output", str(tmp_path), "--model", str(tiny_model)]
    assert main(command) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(
        f"armo-ray score: failed: the Ray cluster at {address} cannot be joined: nothing listened"
    )
    assert "run the same command again" in told
    assert not (tmp_path / "_lock.json").exists()
