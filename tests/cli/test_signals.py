"""Stopping a command: a body that is asked to end may do so by itself."""

import os
import signal
import threading
import time

import pytest

from armo_ray.signals import OutOfTime, gently, limited


def test_the_first_interruption_asks_the_body_to_end_and_the_second_ends_it() -> None:
    asked, steps = threading.Event(), []
    with pytest.raises(KeyboardInterrupt), gently(asked.set, 60) as interruption:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert asked.wait(10)
        steps.append("goes on")
        assert interruption.asked
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(10)
        steps.append("too long")
    assert steps == ["goes on"]


@pytest.mark.parametrize(
    "ignored", [signal.SIGUSR1, signal.SIGINT]
)  # the latter in the background of a script
def test_a_body_that_does_not_end_by_itself_is_interrupted(ignored: int) -> None:
    before = [
        signal.signal(ignored, signal.SIG_IGN),
        signal.signal(signal.SIGTERM, signal.default_int_handler),
    ]
    try:
        with pytest.raises(KeyboardInterrupt), gently(lambda: None, 0.2):  # noqa: PT012
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
    finally:
        signal.signal(ignored, before[0])
        signal.signal(signal.SIGTERM, before[1])


def test_the_end_of_a_time_limit_is_told_by_a_body_that_ended_by_itself() -> None:
    asked = threading.Event()
    with pytest.raises(OutOfTime), limited(0.1), gently(asked.set, 60) as interruption:  # noqa: PT012
        assert asked.wait(10)
        interruption.check()
