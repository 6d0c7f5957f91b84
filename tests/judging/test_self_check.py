"""What is measured of a judge before it is used."""

import pytest

from armo_ray.cli.main import main
from armo_ray.endpoint.client import Endpoint
from armo_ray.judging.judge import load_judge
from armo_ray.judging.self_check import self_check
from tests.support.fake_endpoint import control, fake_endpoint


def test_a_judge_that_always_prefers_the_first_is_found_out(capsys: pytest.CaptureFixture[str]) -> None:
    with fake_endpoint() as url:
        control(url, text="Better: A")
        found = self_check(load_judge("pair"), Endpoint(url, "fake"))
        assert (found.parsed, found.first, found.flips, found.right, found.longer) == (1, 1, 1, 0.5, 0.5)
        assert found.agrees == 1
        assert main(["verify", "--judge", "pair", "--endpoint", url, "--model", "fake"]) == 0
        told = capsys.readouterr().out.splitlines()
        assert "prefers the one shown first         100%" in told
        assert told[0] == f"replies with a verdict              100% of {found.requests}"


def test_a_judge_that_prefers_longer_answers_is_found_out() -> None:
    answers = r"(?s)<response_a>\n(.*?)\n</response_a>.*<response_b>\n(.*?)\n</response_b>"
    with fake_endpoint() as url:
        control(url, text="Better: {}", rule="longer", answers=answers)
        found = self_check(load_judge("pair"), Endpoint(url, "fake"))
        assert (found.longer, found.parsed) == (1, 1)
        assert found.flips == 0.25  # three pairs are of equal length


def test_replies_without_a_verdict_are_counted_by_reason() -> None:
    with fake_endpoint() as url:
        control(url, text="Both are fine.")
        found = self_check(load_judge("rating"), Endpoint(url, "fake"))
        assert (found.parsed, found.failures) == (0, {"unparsable": found.requests})
        assert (found.right, found.agrees, found.first) == (None, None, None)
