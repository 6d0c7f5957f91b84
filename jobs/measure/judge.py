"""Measure what share of the requests that a bound allows `armo-ray judge` sends, and whether its driver's memory stays.

python -m jobs.measure.judge

The server is the one of the tests, in a process of its own; it answers after a fixed time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from tests.support.fake_endpoint import control, fake_endpoint
from tests.support.judge_outputs import RATING

_ANSWER = "It is the second answer, and a long one. " * 40  # about 1.6 kB


def _write(folder: Path, requests: int) -> list[str]:
    """The options of a run that sends so many."""
    (folder / "rating.toml").write_text(RATING, "utf-8")
    with (folder / "in.jsonl").open("w", encoding="utf-8") as file:
        for i in range(requests):
            file.write(json.dumps({"prompt": f"Question {i}?", "response": f"{_ANSWER}{i}"}) + "\n")
    names = {"--judge": "rating.toml", "--input": "in.jsonl", "--output": "out"}
    return [word for option, name in names.items() for word in (option, str(folder / name))]


def _watch(run: subprocess.Popen[bytes]) -> list[float]:
    """The driver's memory that is its own, in MiB, twice a second until it ends."""
    process, seen = psutil.Process(run.pid), []
    while run.poll() is None:
        try:
            seen.append(process.memory_full_info().uss / 2**20)
        except psutil.Error:
            break
        time.sleep(0.5)
    return seen


def _measure(url: str, folder: Path, given: argparse.Namespace) -> None:
    command = [sys.executable, "-m", "armo_ray", "judge", "--endpoint", url, "--model", "fake"]
    command += [*_write(folder, given.requests), "--in-flight", str(given.in_flight)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    began = time.monotonic()
    with subprocess.Popen(command, env=environment) as run:
        memory = _watch(run)
    assert run.returncode == 0
    counted = control(url)
    assert counted["requests"] == len(counted["by_key"]) == given.requests
    assert counted["most_in_flight"] <= given.in_flight
    arrived = sorted(counted["arrived"])
    seconds, allowed = arrived[-1] - arrived[0] + given.delay_s, given.in_flight / given.delay_s
    rate, edge = given.requests / seconds, given.requests // 5
    steady = (given.requests - 2 * edge) / (arrived[-edge - 1] - arrived[edge])
    print(
        f"{rate:.0f} requests/s from the first to the last, {rate / allowed:.1%} of {allowed:.0f}; without the first "
        f"and last fifth {steady:.0f}, {steady / allowed:.1%}; most in flight {counted['most_in_flight']}"
    )
    print(f"{time.monotonic() - began:.1f} s in all, {arrived[0] - began:.1f} until the first request")
    asking = memory[int(2 * (arrived[0] - began)) :]
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
        _measure(url, Path(folder), given)


if __name__ == "__main__":
    main()
