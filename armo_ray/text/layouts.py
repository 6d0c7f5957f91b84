"""Which columns of a shard hold the conversations."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from armo_ray.errors import ConfigError
from armo_ray.text import named_layouts
from armo_ray.text.input_columns import CARRIERS, Found, of_names
from armo_ray.text.messages import Reading
from armo_ray.text.paths import Rejected, root_of, steps_of, value_at

# The names under which public datasets carry each part of a conversation; the first of each is the field's own.
ALIASES = {
    "prompt": ("prompt", "instruction", "question", "query"),
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
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
    "rollouts": (("prompt", "responses"), ("prompt", "response"), ("prompt", "steps")),
    "messages": (("messages",),),
    "pairs": (("first", "second", "winner"), ("first", "second", "first_rating", "second_rating")),
}
_AROUND = ("input", "history", "system", "tools", "prefix")  # parts that rows may lack
OPTIONAL = {
    "preference": ("prompt", *_AROUND),
    "rollouts": _AROUND,
    "messages": ("system", "tools"),
    "pairs": ("prompt", *_AROUND),
}
LABELLED = ("preference", "pairs")  # kinds whose rows tell chosen and rejected answers
_ANSWERS = ("chosen", "rejected", "responses", "response", "steps", "messages", "first", "second")
_MESSAGE_KEYS = {"role", "content", "from", "value"}
_MORE = ("winner_values", "joint", "shape", "step_end", "ignored", "name")


def columns_read(identity: Mapping[str, Any]) -> list[str]:
    """The input columns that a run of this identity reads."""
    return [*Layout.of_record(identity["layout"]).sources, *identity.get("keep", {}).values()]


def layout_and_reading(identity: Mapping[str, Any]) -> tuple["Layout", Reading]:
    """How a run of this identity reads rows and messages."""
    return Layout.of_record(identity["layout"]), Reading.of(identity)


@dataclass(frozen=True)
class Layout:
    """Where the parts of a row lie, and what is made of them.

    kind: preference, rollouts, messages or pairs (two answers and which of them is preferred).
    columns: maps a part to the column, or the path, that holds it.
    winner_values: what the values of the part `winner` mean: first, second, tie or skip.
    joint: stands between prompt and input.
    shape: name of the function that makes parts of what no path can tell, in `text/shapes.py`.
    step_end: what the model wants between the steps of an answer.
    ignored: columns that the user, or the named layout, sets aside.
    name: of a layout in `text/named_layouts.py`.
    """

    kind: str
    columns: Mapping[str, str]
    winner_values: Mapping[str, str] = field(default_factory=dict)
    joint: str = "\n"
    shape: str | None = None
    step_end: str = ""
    ignored: tuple[str, ...] = ()
    name: str | None = None

    def record(self) -> dict[str, Any]:
        """As JSON has it in the identity of a run; `of_record` reads it again."""
        plain = Layout("", {})
        more = {name: getattr(self, name) for name in _MORE if getattr(self, name) != getattr(plain, name)}
        more |= {"ignored": list(self.ignored)} if self.ignored else {}
        return {"kind": self.kind, **self.columns, **more}

    @staticmethod
    def of_record(record: Mapping[str, Any]) -> "Layout":
        more = {name: record[name] for name in _MORE if name in record}
        more |= {"ignored": tuple(record["ignored"])} if "ignored" in record else {}
        columns = {part: path for part, path in record.items() if part not in ("kind", *_MORE)}
        return Layout(record["kind"], columns, **more)

    def count(self, row: Mapping[str, Any]) -> int:
        """About how many candidates a row holds, without taking it apart."""
        total = int("steps" in self.columns)  # one answer, of whatever steps
        for path, listed in self._counted:
            value = row[path] if path in row else _value(row, path)
            several = isinstance(value, list) and (listed or not value or not isinstance(value[0], dict))
            total += len(value) if several else 1
        return total

    @cached_property
    def _counted(self) -> tuple[tuple[str, bool], ...]:
        """The paths of answers, and whether each leads to a list of them in every row."""
        answers = ((part, self.columns[part]) for part in _ANSWERS if part in self.columns)
        return tuple((path, part == "responses") for part, path in answers if part != "steps")

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """The columns to read."""
        every = (name for path in self.columns.values() for name in (path, root_of(path)))
        return tuple(dict.fromkeys(every))

    @cached_property
    def candidate_columns(self) -> dict[str, bool]:
        """The columns that hold candidates, and whether each holds a list of them in every row."""
        return {
            root_of(self.columns[part]): part == "responses" and self.columns[part].count("[") < 2
            for part in _ANSWERS
            if part in self.columns
        }

    @cached_property
    def needed(self) -> frozenset[str]:
        """The columns that every row must have, but where a column bears the name of a whole path."""
        optional = OPTIONAL[self.kind]
        return frozenset(root_of(path) for part, path in self.columns.items() if part not in optional)

    def lacking(self, names: Container[str]) -> list[str]:
        """The columns that are needed and not among `names`."""
        paths = (path for part, path in self.columns.items() if part not in OPTIONAL[self.kind])
        return list(dict.fromkeys(root_of(p) for p in paths if p not in names and root_of(p) not in names))

    @cached_property
    def watched(self) -> frozenset[str]:
        """Columns that may hold a part of a conversation, and are neither read nor set aside."""
        return frozenset(CARRIERS) - {*self.sources, *self.ignored}

    @property
    def title(self) -> str:
        return self.kind if self.name is None else f"{self.name} ({self.kind})"


def _value(row: Mapping[str, Any], path: str) -> Any:
    try:
        return value_at(row, path)
    except Rejected:
        return None


def detect(
    found: Found | Iterable[str],
    kind: str = "auto",
    overrides: Mapping[str, str] | None = None,
    winner: Mapping[str, str] | None = None,
    ignored: Sequence[str] = (),
    step_end: str | None = None,
) -> Layout:
    """The layout of rows with the columns `found`.

    Args:
        kind: preference, rollouts, messages or pairs; a layout's name in the table; or auto.
        overrides: part -> column or path, for columns under other names.
        winner: what values of the part winner mean.
        ignored: columns that are set aside.
        step_end: of a process model, what ends a step of an answer.

    Raises:
        ConfigError: no layout, or more than one, fits; it lists the columns found.
    """
    seen = found if isinstance(found, Found) else of_names(found)
    overrides, told = (
        overrides or {},
        f"the input has the columns {', '.join(sorted(seen.names)) or '(none)'}",
    )
    _check_overrides(overrides, seen, told)
    if kind != "auto" and kind not in REQUIRED and kind not in named_layouts.NAMED:
        kinds = ", ".join(("auto", *REQUIRED))
        raise ConfigError(
            f"layout: unknown layout {kind}; expected {kinds}, or a name that armo-ray layouts lists"
        )
    preset = _preset(seen, kind, overrides, told)
    if preset is not None:
        layout = _of_preset(preset, seen, overrides)
    else:
        layout = _generic(seen, kind, overrides, told)
        _check_answers(layout, seen, told)
    layout = _with_steps(layout, seen, overrides, step_end)
    if winner:
        layout = replace(layout, winner_values=dict(winner))
    _check_winner(layout, winner)
    return replace(layout, ignored=tuple(sorted({*layout.ignored, *ignored})))


def _check_overrides(overrides: Mapping[str, str], seen: Found, told: str) -> None:
    for part, path in overrides.items():
        later = seen.open_ended and part in _AROUND  # a row that was not looked at may have it
        if path not in seen.names and root_of(path) not in seen.names and not later:
            raise ConfigError(f"--column {part}={path}: no column {root_of(path)}; {told}")
        if steps_of(path) and path not in seen.paths and _is_known(path, seen):
            raise ConfigError(f"--column {part}={path}: no such path; {told}")


def _is_known(path: str, seen: Found) -> bool:
    """Whether all that could lie at a path is known: a text on the way may hold JSON."""
    if seen.open_ended or "[" in path.replace("[]", ""):
        return False
    last = max((p for p in seen.paths if path.startswith((f"{p}.", f"{p}["))), key=len, default="")
    return any(p.startswith((f"{last}.", f"{last}[")) for p in seen.paths)


def _preset(seen: Found, kind: str, overrides: Mapping[str, str], told: str) -> named_layouts.Named | None:
    """The layout of the table that is asked for, or that alone fits."""
    if kind in named_layouts.NAMED:
        preset = named_layouts.NAMED[kind]
        if missing := [path for path in preset.required if not named_layouts.has(seen, path)]:
            raise ConfigError(f"layout {kind}: no {' and no '.join(missing)}; {told}")
        fits = [preset]
    elif kind == "auto" and set(overrides) <= {*_AROUND, "winner"}:
        fits = named_layouts.fitting(seen)
    else:
        return None
    if len(fits) > 1:
        names = " and ".join(one.name for one in fits)
        raise ConfigError(f"ambiguous layout: {told}, which fit {names}. Choose with --layout NAME")
    if fits and kind == "auto" and (others := _left_over(fits[0], seen)):
        raise ConfigError(
            f"ambiguous layout: {told}, which fit {fits[0].name}, but {' and '.join(others)} may belong to the "
            f"conversation too. Choose with --layout {fits[0].name}, or {', '.join(REQUIRED)}"
        )
    if fits and fits[0].refused:
        raise ConfigError(f"layout {fits[0].name}: {fits[0].refused}")
    return fits[0] if fits else None


def _left_over(preset: named_layouts.Named, seen: Found) -> list[str]:
    """Columns that a general layout would take for answers or the prompt, neither read nor set aside by this one."""
    paths = (*preset.required, *preset.optional.values(), *preset.aside)
    rest = seen.names - set(map(root_of, paths))
    pair = {"chosen", "rejected"} & rest
    parts = ("responses", "response", "messages", "prompt")
    found = {name for part in parts for name in ALIASES[part]} & rest
    return sorted(found | (pair if len(pair) == 2 else set()))


def _of_preset(preset: named_layouts.Named, seen: Found, overrides: Mapping[str, str]) -> Layout:
    more = {part: path for part, path in preset.optional.items() if named_layouts.has(seen, path)}
    columns = {**preset.columns, **more, **_around(seen, preset.columns), **overrides}
    return Layout(
        kind=preset.kind,
        columns=columns,
        winner_values=preset.winner,
        joint=preset.joint,
        shape=preset.shape,
        ignored=tuple(sorted(set(preset.aside).intersection(seen.names))),
        name=preset.name,
    )


def _around(seen: Found, columns: Mapping[str, str]) -> dict[str, str]:
    """System and tools of rows that have them and whose layout says nothing of them."""
    used = set(map(root_of, columns.values()))
    found = {
        part: [name for name in ALIASES[part] if name in seen.names - used] for part in ("system", "tools")
    }
    return {part: names[0] for part, names in found.items() if names and part not in columns}


def _generic(seen: Found, kind: str, overrides: Mapping[str, str], told: str) -> Layout:
    names = sorted(seen.names)
    parts = {part: _columns_of(part, names, overrides) for part in (*ALIASES, *overrides)}
    kinds = [kind] if kind != "auto" else list(REQUIRED)
    fits = [
        (k, need)
        for k in kinds
        for need in REQUIRED[k]
        if all(parts.get(part) for part in need) and set(overrides) <= {*need, *OPTIONAL[k]}
    ]
    if not fits:
        wanted = "; ".join(f"{k}: {' or '.join(' + '.join(need) for need in REQUIRED[k])}" for k in kinds)
        raise ConfigError(
            f"unknown layout: {told}; expected {wanted}. Name them with --column PART=COLUMN, or choose a layout "
            f"that armo-ray layouts lists"
        )
    if len(fits) > 1:
        options = ", ".join(f"{k} ({' + '.join(need)})" for k, need in fits)
        raise ConfigError(f"ambiguous layout: {told}, which fit {options}. Choose with --layout and --column")
    chosen_kind, need = fits[0]
    used = (*need, *(part for part in OPTIONAL[chosen_kind] if parts.get(part)))
    for part in used:
        if len(parts[part]) > 1:
            raise ConfigError(
                f"ambiguous layout: {' and '.join(parts[part])} could each be the {part}; {told}. "
                f"Choose with --column {part}=COLUMN"
            )
    columns = {part: parts[part][0] for part in used}
    return Layout(chosen_kind, columns | _alpaca(seen, chosen_kind, columns, overrides))


def _columns_of(part: str, names: list[str], overrides: Mapping[str, str]) -> list[str]:
    if part in overrides:
        return [overrides[part]]
    free = [name for name in ALIASES[part] if name in names and name not in overrides.values()]
    if part == "prompt" and not free and "input" in names and "input" not in overrides.values():
        return ["input"]  # as ms-swift reads it where there is no other
    return free[:1] if ALIASES[part][0] in free else free


def _alpaca(
    seen: Found, kind: str, columns: Mapping[str, str], overrides: Mapping[str, str]
) -> dict[str, str]:
    """The columns that Alpaca and LLaMA-Factory read besides the instruction, or ms-swift besides the query."""
    prompt, free = columns.get("prompt"), seen.names - set(overrides.values())
    if prompt not in ("instruction", "query") or prompt in overrides.values() or "input" in overrides:
        more = {}
    else:
        more = {"input": "input"} if "input" in free else {}
    if prompt is not None and "history[]" in seen.paths and "history" in free and "history" not in overrides:
        more["history"] = "history"
    return {part: name for part, name in more.items() if part in OPTIONAL[kind]}


def _check_answers(layout: Layout, seen: Found, told: str) -> None:
    """Refuse answers and prompts that are objects whose text lies under a key of its own."""
    for part, path in layout.columns.items():
        if part not in ("prompt", *_ANSWERS):
            continue
        for at in (path, f"{path}[]", f"{path}[][]"):
            fields = seen.below(at)
            if fields and not fields & _MESSAGE_KEYS:
                raise ConfigError(
                    f"{part} {path}: it holds objects with {', '.join(sorted(fields))}, not text or messages: "
                    f"{_remedy(part, at, fields)}; {told}"
                )


def _remedy(part: str, at: str, fields: set[str]) -> str:
    if part in ("prompt", "messages") and at.endswith("[]"):
        return "a message has role and content, or from and value: rename its keys"
    return f"name where its text lies with --column {part}={at}.{_likely(fields)}"


def _likely(fields: set[str]) -> str:
    return next(
        (name for name in ("text", "response", "answer", "completion", "output") if name in fields), "FIELD"
    )


def _with_steps(layout: Layout, seen: Found, overrides: Mapping[str, str], step_end: str | None) -> Layout:
    """A list of answers beside a list of labels is one answer of steps, for a model that judges steps."""
    answers = layout.columns.get("responses")
    if answers and "responses" not in overrides and layout.shape is None and "labels[]" in seen.paths:
        columns = {"steps" if part == "responses" else part: path for part, path in layout.columns.items()}
        layout = replace(layout, columns=columns)
    if "steps" not in layout.columns:
        return layout
    if step_end is None:
        path = layout.columns["steps"]
        raise ConfigError(
            f"{path}: its rows are steps of an answer, which a process model scores (--family prm-mistral, "
            f"prm-deepseek); --layout rollouts --column responses={path} scores each as an answer of its own"
        )
    mark = step_end if step_end[:1].isspace() else f" {step_end}"
    return replace(layout, step_end=mark)


def _check_winner(layout: Layout, winner: Mapping[str, str] | None) -> None:
    if layout.kind == "pairs" and "winner" in layout.columns and not layout.winner_values:
        raise ConfigError(
            f"winner={layout.columns['winner']}: say what its values mean with --winner VALUE=first|second|tie|skip ..."
        )
    if winner and "winner" not in layout.columns:
        raise ConfigError(
            f"--winner: the layout {layout.title} reads no column winner; add --column winner=COLUMN"
        )
