"""Parameters of which only some are tried by day, and all with `--all`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def by_day(values: Iterable[Any], daily: Collection[Any]) -> list[Any]:
    """The values as parameters; all but the daily ones are nightly."""
    return [
        pytest.param(value, marks=() if value in daily else pytest.mark.nightly, id=str(value))
        for value in values
    ]
