"""Which columns of a shard hold the conversations."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from armo_ray.errors import ConfigError

# The names under which public datasets carry each part of a conversation; the first of each is the field's own.
ALIASES = {
    "prompt": ("prompt", "instruction", "question", "query"),
    "system": ("system", "system_prompt"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "responses": (
        "responses",
        "completions",
        "all_generated_responses",
        "generations",
        "candidates",
        "outputs",
        "answers",
    ),
    "response": ("response", "completion", "generation", "output", "answer"),
    "messages": ("messages", "conversation", "conversations"),
}
REQUIRED = {
    "preference": (("chosen", "rejected"),),
    "rollouts": (("prompt", "responses"), ("prompt", "response")),
    "messages": (("messages",),),
}
OPTIONAL = {"preference": ("prompt", "system"), "rollouts": ("system",), "messages": ("system",)}


@dataclass(frozen=True)
class Layout:
    """`kind` is preference, rollouts or messages; `columns` maps a part to the column that holds it."""

    kind: str
    columns: Mapping[str, str]

    def count(self, row: Mapping[str, Any]) -> int:
        """About how many candidates a row holds, without taking it apart."""
        values = [(row.get(column), listed) for column, listed in self.candidate_columns.items()]
        return sum(
            len(v) if isinstance(v, list) and (listed or not v or not isinstance(v[0], dict)) else 1
            for v, listed in values
        )

    @property
    def candidate_columns(self) -> dict[str, bool]:
        """The columns that hold candidates, and whether each holds a list of them in every row."""
        return {
            self.columns[part]: part == "responses"
            for part in ("chosen", "rejected", "responses", "response", "messages")
            if part in self.columns
        }


def detect(found: Iterable[str], kind: str = "auto", overrides: Mapping[str, str] | None = None) -> Layout:
    """The layout of a shard with the columns `found`.

    Args:
        kind: preference, rollouts or messages, or auto.
        overrides: part -> column, for columns under other names.

    Raises:
        ConfigError: no layout, or more than one, fits; it lists the columns found.
    """
    names = sorted(found)
    overrides = overrides or {}
    told = f"the first shard has the columns {', '.join(names) or '(none)'}"
    for part, column in overrides.items():
        if column not in names:
            raise ConfigError(f"--column {part}={column}: no column {column}; {told}")
    parts = {part: _columns_of(part, names, overrides) for part in ALIASES}
    kinds = [kind] if kind != "auto" else list(REQUIRED)
    fits = [
        (k, need)
        for k in kinds
        for need in REQUIRED[k]
        if all(parts[part] for part in need) and set(overrides) <= {*need, *OPTIONAL[k]}
    ]
    if not fits:
        wanted = "; ".join(f"{k}: {' or '.join(' + '.join(need) for need in REQUIRED[k])}" for k in kinds)
        raise ConfigError(f"unknown layout: {told}; expected {wanted}. Name them with --column PART=COLUMN")
    if len(fits) > 1:
        options = ", ".join(f"{k} ({' + '.join(need)})" for k, need in fits)
        raise ConfigError(f"ambiguous layout: {told}, which fit {options}. Choose with --layout and --column")
    chosen_kind, need = fits[0]
    used = (*need, *(part for part in OPTIONAL[chosen_kind] if parts[part]))
    for part in used:
        if len(parts[part]) > 1:
            raise ConfigError(
                f"ambiguous layout: {' and '.join(parts[part])} could each be the {part}; {told}. "
                f"Choose with --column {part}=COLUMN"
            )
    return Layout(chosen_kind, {part: parts[part][0] for part in used})


def _columns_of(part: str, names: list[str], overrides: Mapping[str, str]) -> list[str]:
    if part in overrides:
        return [overrides[part]]
    free = [name for name in ALIASES[part] if name in names and name not in overrides.values()]
    return free[:1] if ALIASES[part][0] in free else free
