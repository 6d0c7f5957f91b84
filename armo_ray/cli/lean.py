"""A quick start of the commands that need no pandas."""

import sys
from importlib.machinery import ModuleSpec


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
