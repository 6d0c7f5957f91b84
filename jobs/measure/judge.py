"""Measure what share of the requests that a bound allows `armo-ray judge` sends, and whether its driver's memory stays.

python -m jobs.measure.judge

The server is the one of the tests, in a process of its own; it answers after a fixed time. The rate is that from the
first request's arrival at it to the last answer, so it has the ramp and the tail of a run, but not the start of Ray.
Before and after the command, a loop around aiohttp sends as many requests of the same size from one process: what it
reaches beside that server is as much as this machine allows at that time.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from tests.support.fake_endpoint import control, fake_endpoint
from tests.support.judge_outputs import RATING

_ANSWER = "It is the second answer, and a long one. " * 40  # about 1.6 kB
_BINS = 20  # of the timeline


def _write(folder: Path, requests: int) -> list[str]:
    """The options of a run that sends so many."""
    (folder / "rating.toml").write_text(RATING, "utf-8")
    with (folder / "in.jsonl").open("w", encoding="utf-8") as file:
        for i in range(requests):
            file.write(json.dumps({"prompt": f"Question {i}?", "response": f"{_ANSWER}{i}"}) + "\n")
    names = {"--judge": "rating.toml", "--input": "in.jsonl", "--output": "out"}
    return [word for option, name in names.items() for word in (option, str(folder / name))]


def _watch(run: subprocess.Popen[bytes]) -> list[tuple[float, float]]:
    """The driver's memory that is its own, in MiB, about twice a second until it ends, each with its time."""
    process, seen = psutil.Process(run.pid), []
    while run.poll() is None:
        try:
            seen.append((time.monotonic(), process.memory_full_info().uss / 2**20))
        except psutil.Error:
            break
        time.sleep(0.5)
    return seen


async def _send_plainly(url: str, requests: int, in_flight: int) -> None:
    numbers = iter(range(requests))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(
        connector=connector, headers={"Content-Type": "application/json"}
    ) as session:

        async def sender() -> None:
            for i in numbers:
                message = {"role": "user", "content": f"Question {i}? | {_ANSWER}{i}"}
                body = json.dumps({"model": "fake", "messages": [message]}).encode()
                async with session.post(f"{url}/v1/chat/completions", data=body) as response:
                    await response.read()

        await asyncio.gather(*(sender() for _ in range(in_flight)))


def _show(what: str, counted: Mapping[str, Any], given: argparse.Namespace) -> None:
    """The rate, and how many requests were in flight at the server over the time from the first to the last."""
    arrived, left = sorted(counted["arrived"]), sorted(counted["left"])
    first, seconds, allowed = arrived[0], left[-1] - arrived[0], given.in_flight / given.delay_s
    rate, edge = given.requests / seconds, given.requests // 5
    steady = (given.requests - 2 * edge) / (arrived[-edge - 1] - arrived[edge])
    width = seconds / _BINS
    inside = [
        sum(min(max(t - first - k * width, 0.0), width) for t in left)
        - sum(min(max(t - first - k * width, 0.0), width) for t in arrived)
        for k in range(_BINS)
    ]
    print(
        f"{what}: {rate:.0f} requests/s from the first to the last, {rate / allowed:.1%} of {allowed:.0f}; without "
        f"the first and last fifth {steady:.0f}, {steady / allowed:.1%}; most in flight {counted['most_in_flight']}; "
        f"in flight over {seconds:.2f} s: {' '.join(f'{held / width:.0f}' for held in inside)}"
    )


def _plain(url: str, given: argparse.Namespace) -> None:
    control(url, delay_s=given.delay_s)
    asyncio.run(_send_plainly(url, given.requests, given.in_flight))
    _show("plain aiohttp", control(url), given)


def _measure(url: str, folder: Path, given: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "armo_ray", "judge", "--endpoint", url, "--model", "fake"]
    command += [*_write(folder, given.requests), "--in-flight", str(given.in_flight)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment["RAY_worker_niceness"] = (
        "0"  # as the plain client; Ray's 15 gives way to other work on this machine
    )
    control(url, delay_s=given.delay_s)
    began = time.monotonic()
    with subprocess.Popen(command, env=environment) as run:
        memory = _watch(run)
    assert run.returncode == 0
    counted = control(url)
    assert counted["requests"] == len(counted["by_key"]) == given.requests
    assert counted["most_in_flight"] <= given.in_flight
    _show("armo-ray judge", counted, given)
    until_first = min(counted["arrived"]) - began
    print(f"{time.monotonic() - began:.1f} s in all, {until_first:.1f} until the first request")
    asking = [mib for at, mib in memory if at - began >= until_first and mib] or [memory[-1][1]]
    print(
        f"driver: {asking[0]:.0f} MiB at the first request, {max(asking):.0f} at most, {asking[-1]:.0f} at the end"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--delay-s", type=float, default=0.05)
    given = parser.parse_args()
    settings = json.dumps({"rule": "rating", "text": "Rating: {}", "delay_s": given.delay_s})
    with fake_endpoint("--settings", settings) as url, tempfile.TemporaryDirectory() as folder:
        _plain(url, given)
        _measure(url, Path(folder), given)
        _plain(url, given)


if __name__ == "__main__":
    main()
