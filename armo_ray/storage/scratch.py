"""Directories that last as long as the work they are for."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import gettempdir
from uuid import uuid4


@contextmanager
def scratch_directory(parent: str | Path | None = None, prefix: str = "armo-ray-") -> Iterator[Path]:
    """A new directory in the parent, by default where temporary files go, deleted at the end with its content.

    tempfile.TemporaryDirectory is left behind if a signal arrives while it is being made.
    """
    folder = Path(parent or gettempdir()) / f"{prefix}{uuid4().hex}"
    try:
        folder.mkdir(mode=0o700)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
