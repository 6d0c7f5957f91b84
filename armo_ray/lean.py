"""A quick start of the commands that need no pandas, and a quick end."""

import atexit
import contextlib
import os
import sys
from importlib.machinery import ModuleSpec

# packages that have something to do at the end of a process
_LASTING = frozenset(("ray", "torch"))


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
    """End the process without clearing its memory piece by piece, which takes a tenth of a second.

    Returns where more has to be done: for a package, for a profiler, or because output could not be written, of which
    the interpreter tells when it ends.
    """
    if _LASTING & sys.modules.keys() or _is_watched():
        return
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError):
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(status)


def _is_watched() -> bool:
    """Whether a debugger, a profiler or a prompt follows the program."""
    monitoring = getattr(sys, "monitoring", None)  # from Python 3.12 on
    is_monitored = monitoring is not None and any(map(monitoring.get_tool, range(6)))
    return bool(is_monitored or sys.gettrace() or sys.getprofile() or sys.flags.interactive)
