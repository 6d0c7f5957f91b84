"""Measure what share of the requests that a bound allows a client sends, and whether its memory stays.

python -m jobs.measure.endpoint

The server is the one of the tests, in a process of its own; it answers after a fixed time.
"""

import argparse
import asyncio
import re
import time
from pathlib import Path

from armo_ray.endpoint.client import Client, Endpoint
from armo_ray.endpoint.limits import Gate
from armo_ray.endpoint.reply import Reply
from tests.support.fake_endpoint import control, fake_endpoint

_PROMPT = "Which of the two answers is better? " * 50  # about 1.8 kB


async def _ask(client: Client, requests: int) -> float:
    """The seconds that so many requests take."""
    began = time.perf_counter()
    sent = (
        client.send([{"role": "user", "content": f"{_PROMPT}{i}"}], {"max_tokens": 16})
        for i in range(requests)
    )
    replies = await asyncio.gather(*sent)
    assert all(isinstance(reply, Reply) for reply in replies)
    return time.perf_counter() - began


async def _measure(url: str, given: argparse.Namespace) -> None:
    async with Client(Endpoint(url, "fake"), Gate(given.in_flight)) as client:
        await _ask(client, 2 * given.in_flight)  # opens the connections
        control(url, delay_s=given.delay_s)
        allowed = given.in_flight / given.delay_s
        for _ in range(given.passes):
            before, cpu = _private_mib(), time.process_time()
            seconds = await _ask(client, given.requests)
            cpu = time.process_time() - cpu
            print(
                f"{given.requests / seconds:.0f} requests/s, {given.requests / seconds / allowed:.1%} of "
                f"{allowed:.0f}, "
                f"{1e6 * cpu / given.requests:.0f} us of CPU each; {before:.1f} MiB before, {_private_mib():.1f} after"
            )
        counted = control(url)
        assert counted["most_in_flight"] <= given.in_flight
        print(f"most in flight: {counted['most_in_flight']}")


def _private_mib() -> float:
    status = Path("/proc/self/status").read_text("utf-8")
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--in-flight", type=int, default=64)
    parser.add_argument("--delay-s", type=float, default=0.05)
    parser.add_argument("--passes", type=int, default=3)
    given = parser.parse_args()
    with fake_endpoint("--delay-s", str(given.delay_s)) as url:
        asyncio.run(_measure(url, given))


if __name__ == "__main__":
    main()
