"""System prompts: that of a template, and that of a family."""

from pathlib import Path

import pytest

from armo_ray.model.chat import Chat
from armo_ray.model.steps import has_system
from armo_ray.score.job import prepare
from armo_ray.tiny.families import write_family
from tests.support.local import config_for
from tests.support.paths import SAMPLE


def test_a_system_prompt_of_the_template_is_told_where_worldpm_would_be_scored_with_it(
    tmp_path: Path, tiny_chat: Chat, caplog: pytest.LogCaptureFixture
) -> None:
    write_family(tmp_path / "m", "worldpm")
    assert has_system(Chat.load(tmp_path / "m"))
    assert not has_system(tiny_chat)
    for family, told in ((None, True), ("worldpm", False)):
        caplog.clear()
        prepare(config_for(tmp_path / "m", SAMPLE, tmp_path / "out", family=family), write=False)
        assert ("give --family worldpm" in caplog.text) == told
