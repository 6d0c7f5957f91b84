import sys
from itertools import count
from pathlib import Path
from types import FrameType
from typing import Any

from armo_ray.storage.scratch import scratch_directory


def test_a_scratch_directory_is_the_user_s_alone_and_goes_with_its_content(tmp_path: Path) -> None:
    with scratch_directory(tmp_path) as folder:
        assert folder.parent == tmp_path
        assert folder.stat().st_mode & 0o777 == 0o700
        (folder / "in").mkdir()
        (folder / "in" / "file").touch()
    assert not list(tmp_path.iterdir())


def test_a_scratch_directory_goes_wherever_an_interrupt_arrives(tmp_path: Path) -> None:
    for line in count():
        if _interrupted_at(line, tmp_path):
            assert not list(tmp_path.iterdir())
        else:
            assert line > 5
            return


def _interrupted_at(line: int, parent: Path) -> bool:
    """Whether making a scratch directory and entering it takes more than this many lines, where it is interrupted."""
    lines = count()

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line" and next(lines) == line:
            raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with scratch_directory(parent):
            sys.settrace(before)
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    return False
