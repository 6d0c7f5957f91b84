"""A quick start of the commands that need no pandas, and a quick end of those that leave nothing open."""

import contextlib
import os
import sys
from importlib.machinery import ModuleSpec

_ENDS = frozenset(("ray", "torch"))  # packages that have something to do at the end of a process


class _NoPandas:
    """Tells whoever imports pandas that there is none."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name == "pandas":
            raise ModuleNotFoundError(name)
        return None


def leave_pandas_out() -> None:
    """Keep pyarrow from importing pandas, which takes 0.3 seconds, only to tell values of pandas from others.

    pyarrow looks for pandas once, at its first conversion. `to_pandas` looks again, and works as ever.
    """
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _NoPandas)
    try:
        import pyarrow as pa

        pa.array([])
    finally:
        sys.meta_path.remove(_NoPandas)


def end(status: int) -> None:
    """End the process at once: to clear its memory piece by piece would take a tenth of a second.

    Returns if a package is loaded that has something to do at the end, or if output cannot be written.
    """
    if _ENDS & sys.modules.keys():
        return
    with contextlib.suppress(OSError):  # the interpreter will say it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
