"""A journal keeps every reply that was added, whatever becomes of the process."""

import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from armo_ray.endpoint.journal import Entry, Journal, request_key
from armo_ray.endpoint.reply import Reply
from armo_ray.storage.store import Store
from tests.support.paths import ROOT

pytest_plugins = ("tests.support.s3_server",)
REPLY = Reply(
    "a\nb \u2028 \ud800", "stop", "m", 3, 4, likely=((("A", -0.1), ("B", -2.5)),), values={"x": 1.5}
)
WRITER = """
import sys
from armo_ray.endpoint.journal import Journal
from armo_ray.endpoint.reply import Reply
from armo_ray.storage.store import Store
journal, i = Journal(Store(sys.argv[1]), "u"), 0
while True:
    journal.add(f"{sys.argv[2]}-{i}", Reply("x" * 5000, "stop", "m", 1, i))
    print(i, flush=True)
    i += 1
"""


@pytest.mark.parametrize("place", ["disk", "s3"])
def test_two_attempts_at_once_are_both_read(
    place: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = Store(str(tmp_path) if place == "disk" else request.getfixturevalue("s3"))
    one, two = Journal(store, "u"), Journal(store, "u")
    for i in range(70):
        (one if i % 2 else two).add(str(i), REPLY)
    one.flush()
    two.flush()
    assert Journal(store, "u").read() == {str(i): Entry(REPLY) for i in range(70)}
    assert Journal(store, "other").read() == {}


def test_a_torn_last_line_is_ignored(tmp_path: Path) -> None:
    journal = Journal(Store(str(tmp_path)), "u")
    journal.add("a", REPLY)
    journal.add("b", REPLY)
    (file,) = (tmp_path / "_journal" / "u").iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert Journal(Store(str(tmp_path)), "u").read() == {"a": Entry(REPLY)}
    journal.flush()


def test_a_reply_that_is_set_aside_is_asked_for_again_and_the_next_one_counts(tmp_path: Path) -> None:
    journal = Journal(Store(str(tmp_path)), "u")
    journal.add("good", REPLY)
    journal.add("bad", REPLY, "unparsable")
    journal.set_aside(["unparsable"])
    assert journal.read() == {"good": Entry(REPLY), "bad": Entry(None, None, 1)}
    second = replace(REPLY, text="better")
    journal.add("bad", second)
    journal.add("bad", REPLY)  # of another attempt at the same time
    journal.set_aside(["unparsable"])
    assert journal.read()["bad"] == Entry(second, None, 1)
    journal.flush()


def killed_while_writing(
    uri: str, attempt: str, lines: int, is_time: Callable[[], bool] = lambda: True
) -> set[str]:
    """The keys that a process had added when it was killed: it had printed so many lines, and then it was time."""
    command = [sys.executable, "-c", WRITER, uri, attempt]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = [process.stdout.readline() for _ in range(lines)]
        while not is_time():
            seen += [process.stdout.readline() for _ in range(100)]
        process.kill()
        seen += process.stdout.readlines()
    return {f"{attempt}-{line.strip()}" for line in seen if line.endswith("\n")}


def test_kill_9_loses_no_reply_that_was_added(tmp_path: Path) -> None:
    added = set[str]()
    for attempt in range(3):
        added |= killed_while_writing(str(tmp_path), str(attempt), 50 + 17 * attempt)
    assert len(added) >= 200
    assert added <= Journal(Store(str(tmp_path)), "u").read().keys()


@pytest.mark.nightly
def test_kill_9_at_any_moment_loses_no_reply_that_was_added(tmp_path: Path) -> None:
    draw, added = random.Random(0), set[str]()
    for attempt in range(30):
        added |= killed_while_writing(str(tmp_path), str(attempt), draw.randint(1, 400))
    read = Journal(Store(str(tmp_path)), "u").read()
    assert added <= read.keys()
    assert len(read) <= len(added) + 30  # at most the one that was being added


@pytest.mark.nightly
def test_kill_9_with_an_object_store_loses_no_more_than_what_was_not_flushed(s3: str) -> None:
    for attempt in range(3):

        def read_of(attempt: int = attempt) -> set[str]:
            return {key for key in Journal(Store(s3), "u").read() if key.startswith(f"{attempt}-")}

        added = killed_while_writing(s3, str(attempt), 1000, lambda: bool(read_of()))
        read = read_of()
        kept = {f"{attempt}-{i}" for i in range(len(read))}
        assert read == kept  # the first ones, without a hole
        assert read <= added | {f"{attempt}-{len(added)}"}
        assert len(read) >= 64


def test_a_key_depends_on_all_that_changes_an_answer() -> None:
    messages = [{"role": "user", "content": "a"}]
    same = request_key("m", messages, {"a": 1, "b": 2}, 0, 0)
    assert same == request_key("m", messages, {"b": 2, "a": 1}, 0, 0)
    others: list[Any] = [
        ("n", messages, {}, 0, 0),
        ("m", messages, {}, 1, 0),
        ("m", messages, {}, 0, 1),
        ("m", [], {}, 0, 0),
    ]
    assert len({same, *(request_key(*other) for other in others)}) == 5
