"""The columns that options name, checked against those of an input."""

import logging
from collections.abc import Mapping, Sequence

from armo_ray.errors import ConfigError
from armo_ray.expressions.expressions import advice
from armo_ray.text.input_columns import COLUMN_ROLE_OF, InputColumns
from armo_ray.text.layouts import CONTEXT_ROLES
from armo_ray.text.paths import root_of, steps_of

logger = logging.getLogger(__name__)


def check_overrides(overrides: Mapping[str, str], available: InputColumns) -> None:
    """Raises ConfigError if --column names a column or path that an input does not have."""
    for role, path in overrides.items():
        later = available.open_ended and role in CONTEXT_ROLES  # a row that was not sampled may have it
        if not later or root_of(path) in available.names:
            check_path(f"--column {role}={path}", path, available)


def check_ignored(ignored: Sequence[str], overrides: Mapping[str, str], available: InputColumns) -> None:
    """Raises ConfigError if --ignore names a column that an input does not have, or that --column reads."""
    for name in ignored:
        if role := next((role for role, path in overrides.items() if name in (path, root_of(path))), None):
            raise ConfigError(
                f"--ignore {name}: --column {role}={overrides[role]} reads it; leave out one of the two"
            )
        if name in available.names:
            continue
        if not available.open_ended or name not in COLUMN_ROLE_OF:
            raise ConfigError(f"--ignore {name}: no column {name}; {advice(name, sorted(available.names))}")
        logger.warning("--ignore %s: no row that was sampled has a column %s", name, name)


def check_path(option: str, path: str, available: InputColumns, sampled: bool = False) -> None:
    """Raises ConfigError if an input does not have a path; the message begins with `option`.

    With `sampled`, the rows that were sampled must have it too, as far as their values are not JSON text.
    """
    if path not in available.names and root_of(path) not in available.names:
        raise ConfigError(
            f"{option}: no column {root_of(path)}; {advice(root_of(path), sorted(available.names))}"
        )
    if steps_of(path) and path not in available.paths and _is_known(path, available, sampled):
        raise ConfigError(f"{option}: no such path; {advice(path, sorted(available.paths))}")


def _is_known(path: str, available: InputColumns, sampled: bool) -> bool:
    """Whether it is certain which paths exist there: text on the way could hold JSON with more of them."""
    if (available.open_ended and not sampled) or "[" in path.replace("[]", ""):
        return False
    last = max((p for p in available.paths if path.startswith((f"{p}.", f"{p}["))), key=len, default="")
    return any(p.startswith((f"{last}.", f"{last}[")) for p in available.paths)
