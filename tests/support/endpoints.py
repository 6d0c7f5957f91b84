"""Servers that tests share, each in a process of its own, as fixtures."""

from collections.abc import Iterator

import pytest

from tests.support.fake_endpoint import SETTINGS, control, fake_endpoint
from tests.support.llm_server import llm_server, missing


@pytest.fixture(scope="session")
def fake_server() -> Iterator[str]:
    """The URL of one server for all tests: `fake_chat` sets it back for each."""
    with fake_endpoint() as url:
        yield url


@pytest.fixture
def fake_chat(fake_server: str) -> str:
    """The URL of a server that replies "[[A]]" at once, and has counted nothing yet."""
    control(fake_server, **SETTINGS)
    return fake_server


@pytest.fixture(scope="session")
def real_chat() -> Iterator[str]:
    """The URL of one server for all tests, which is not to be killed; `llm_server` starts one that may be."""
    if reason := missing():
        pytest.skip(reason)
    with llm_server() as server:
        yield server.url
