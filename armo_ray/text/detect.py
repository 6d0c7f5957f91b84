"""Detection of the layout of an input from its columns, the options and the table of named layouts."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from armo_ray.errors import ConfigError
from armo_ray.model.families import FAMILIES
from armo_ray.text import named_layouts
from armo_ray.text.column_options import check_ignored, check_overrides
from armo_ray.text.input_columns import InputColumns, of_names
from armo_ray.text.layouts import ALIASES, CONTEXT_ROLES, OPTIONAL, REQUIRED, RESPONSE_ROLES, Layout
from armo_ray.text.paths import root_of

_MESSAGE_KEYS = {"role", "content", "from", "value"}


def detect(
    columns: InputColumns | Iterable[str],
    kind: str = "auto",
    overrides: Mapping[str, str] | None = None,
    winner: Mapping[str, str] | None = None,
    ignored: Sequence[str] = (),
    step_end: str | None = None,
) -> Layout:
    """The layout of an input with these columns.

    Args:
        columns: the columns of the input, or only their names.
        kind: preference, rollouts, messages or pairs; the name of a named layout; or auto.
        overrides: maps a column role to a column or path, for columns under other names.
        winner: maps a value of the role winner to first, second, tie or skip.
        ignored: columns that are no part of the conversation; the data set is still recognized by them.
        step_end: for a process model, the text that ends a step of a response.

    Raises:
        ConfigError: no layout fits, or more than one does; the message lists the columns of the input. Or a column in
            `ignored` is not in the input, or no layout can be read without it.
    """
    available = columns if isinstance(columns, InputColumns) else of_names(columns)
    overrides = overrides or {}
    check_overrides(overrides, available)
    check_ignored(ignored, overrides, available)
    attempt = partial(_detect, available, kind, overrides, winner, step_end)
    try:
        return attempt(ignored)
    except ConfigError as error:
        if ignored and (reason := _use(attempt, ignored)):
            raise ConfigError(f"{reason}. Without it: {error}") from None
        raise


def _use(attempt: Callable[[Sequence[str]], Layout], ignored: Sequence[str]) -> str:
    """What the ignored columns are if they are not ignored, or "" if that is not why no layout can be read."""
    try:
        layout = attempt(())
    except ConfigError:
        return ""
    places = {name: role for role, path in layout.columns.items() for name in (path, root_of(path))}
    told = [f"{name} as the {places[name]}" for name in ignored if name in places]
    return f"--ignore: the layout {layout.title} reads {' and '.join(told)}" if told else ""


def _detect(
    available: InputColumns,
    kind: str,
    overrides: Mapping[str, str],
    winner: Mapping[str, str] | None,
    step_end: str | None,
    ignored: Sequence[str],
) -> Layout:
    read = available.without(ignored)
    aside = f" besides {', '.join(ignored)}" if ignored else ""
    listing = f"the input has the columns {', '.join(sorted(read.names)) or '(none)'}{aside}"
    if kind != "auto" and kind not in REQUIRED and kind not in named_layouts.NAMED:
        kinds = ", ".join(("auto", *REQUIRED))
        raise ConfigError(
            f"layout: unknown layout {kind}; expected {kinds}, or a name that armo-ray layouts lists"
        )
    preset = _preset(available, read, kind, overrides, listing)
    if preset is not None:
        layout = _of_preset(preset, read, overrides)
    else:
        layout = _generic(read, kind, overrides, listing)
        _check_responses(layout, read, listing)
    layout = _with_steps(layout, read, overrides, step_end)
    if winner:
        layout = replace(layout, winner_values=dict(winner))
    _check_winner(layout, winner)
    return replace(layout, ignored=tuple(sorted({*layout.ignored, *ignored})))


def _preset(
    available: InputColumns, read: InputColumns, kind: str, overrides: Mapping[str, str], listing: str
) -> named_layouts.Named | None:
    """The named layout that `kind` names or, with auto, the only one that fits; None if none does."""
    if kind in named_layouts.NAMED:
        preset = named_layouts.NAMED[kind]
        if missing := named_layouts.lacking(preset, available, read):
            raise ConfigError(f"layout {kind}: no {' and no '.join(missing)}; {listing}")
        fits = [preset]
    elif kind == "auto" and set(overrides) <= {*CONTEXT_ROLES, "winner"}:
        fits = named_layouts.fitting(available, read)
    else:
        return None
    if len(fits) > 1:
        names = " and ".join(layout.name for layout in fits)
        raise ConfigError(f"ambiguous layout: {listing}, which fit {names}. Choose with --layout NAME")
    if fits and kind == "auto" and (others := _left_over(fits[0], read)):
        raise ConfigError(
            f"ambiguous layout: {listing}, which fit {fits[0].name}, but {' and '.join(others)} may belong to the "
            f"conversation too. Choose with --layout {fits[0].name}, or {', '.join(REQUIRED)}"
        )
    if fits and fits[0].refused:
        raise ConfigError(f"layout {fits[0].name}: {fits[0].refused}")
    return fits[0] if fits else None


def _left_over(preset: named_layouts.Named, available: InputColumns) -> list[str]:
    """Columns that this layout neither reads nor sets aside, and a general layout would read as prompt or response."""
    paths = (*preset.required, *preset.optional.values(), *preset.aside)
    rest = available.names - set(map(root_of, paths))
    pair = {"chosen", "rejected"} & rest
    roles = ("responses", "response", "messages", "prompt")
    readable = {name for role in roles for name in ALIASES[role]} & rest
    return sorted(readable | (pair if len(pair) == 2 else set()))


def _of_preset(preset: named_layouts.Named, available: InputColumns, overrides: Mapping[str, str]) -> Layout:
    roles = {**preset.columns, **preset.optional}
    columns = {role: path for role, path in roles.items() if named_layouts.has(available, path)}
    columns |= {**_system_and_tools(available, preset.columns), **overrides}
    return Layout(
        kind=preset.kind,
        columns=columns,
        winner_values=preset.winner,
        joint=preset.joint,
        shape=preset.shape,
        ignored=tuple(sorted(set(preset.aside).intersection(available.names))),
        name=preset.name,
    )


def _system_and_tools(available: InputColumns, columns: Mapping[str, str]) -> dict[str, str]:
    """The columns for the roles system and tools, where a named layout does not use these roles itself."""
    used = set(map(root_of, columns.values()))
    names = {
        role: [name for name in ALIASES[role] if name in available.names - used]
        for role in ("system", "tools")
    }
    return {role: aliases[0] for role, aliases in names.items() if aliases and role not in columns}


def _generic(available: InputColumns, kind: str, overrides: Mapping[str, str], listing: str) -> Layout:
    names = sorted(available.names)
    matches = {role: _columns_of(role, names, overrides) for role in (*ALIASES, *overrides)}
    kinds = [kind] if kind != "auto" else list(REQUIRED)
    fits = [
        (k, required)
        for k in kinds
        for required in REQUIRED[k]
        if all(matches.get(role) for role in required) and set(overrides) <= {*required, *OPTIONAL[k]}
    ]
    if not fits and "steps[]" in available.paths and not any(map(matches.get, RESPONSE_ROLES)):
        return _generic(available, kind, {**overrides, "steps": "steps"}, listing)  # they are the response
    if not fits:
        expected = "; ".join(f"{k}: {' or '.join(' + '.join(roles) for roles in REQUIRED[k])}" for k in kinds)
        raise ConfigError(
            f"unknown layout: {listing}; expected {expected}. Name them with --column NAME=COLUMN, or choose a layout "
            f"that armo-ray layouts lists"
        )
    if len(fits) > 1:
        options = ", ".join(f"{k} ({' + '.join(required)})" for k, required in fits)
        raise ConfigError(
            f"ambiguous layout: {listing}, which fit {options}. Choose with --layout and --column"
        )
    chosen_kind, required = fits[0]
    used = (*required, *(role for role in OPTIONAL[chosen_kind] if matches.get(role)))
    for role in used:
        if len(matches[role]) > 1:
            raise ConfigError(
                f"ambiguous layout: {' and '.join(matches[role])} could each be the {role}; {listing}. "
                f"Choose with --column {role}=COLUMN"
            )
    columns = {role: matches[role][0] for role in used}
    return Layout(chosen_kind, columns | _alpaca(available, chosen_kind, columns, overrides))


def _columns_of(role: str, names: list[str], overrides: Mapping[str, str]) -> list[str]:
    """The columns that could have this role."""
    if role in overrides:
        return [overrides[role]]
    free = [name for name in ALIASES[role] if name in names and name not in overrides.values()]
    if role == "prompt" and not free and "input" in names and "input" not in overrides.values():
        return ["input"]  # as ms-swift does if there is no other prompt column
    return free[:1] if ALIASES[role][0] in free else free


def _alpaca(
    available: InputColumns, kind: str, columns: Mapping[str, str], overrides: Mapping[str, str]
) -> dict[str, str]:
    """The columns that Alpaca and LLaMA-Factory read in addition to instruction, and ms-swift to query."""
    prompt, free = columns.get("prompt"), available.names - set(overrides.values())
    if prompt not in ("instruction", "query") or prompt in overrides.values() or "input" in overrides:
        more = {}
    else:
        more = {"input": "input"} if "input" in free else {}
    has_history = "history[]" in available.paths and "history" in free and "history" not in overrides
    if prompt is not None and has_history:
        more["history"] = "history"
    return {role: name for role, name in more.items() if role in OPTIONAL[kind]}


def _check_responses(layout: Layout, available: InputColumns, listing: str) -> None:
    """Refuse responses and prompts that are objects with their text in a field of its own."""
    for role, path in layout.columns.items():
        if role not in ("prompt", *RESPONSE_ROLES):
            continue
        for at in (path, f"{path}[]", f"{path}[][]"):
            fields = available.below(at)
            if fields and not fields & _MESSAGE_KEYS:
                raise ConfigError(
                    f"{role} {path}: it holds objects with {', '.join(sorted(fields))}, not text or messages: "
                    f"{_remedy(role, at, fields)}; {listing}"
                )


def _remedy(role: str, at: str, fields: set[str]) -> str:
    if role in ("prompt", "messages") and at.endswith("[]"):
        return "a message has role and content, or from and value: rename its keys"
    likely = ("text", "response", "answer", "completion", "output")
    field = next((name for name in likely if name in fields), "FIELD")
    return f"say which field has the text with --column {role}={at}.{field}"


def _with_steps(
    layout: Layout, available: InputColumns, overrides: Mapping[str, str], step_end: str | None
) -> Layout:
    """The layout with a list of responses read as the steps of one response if a list of labels accompanies it."""
    responses = layout.columns.get("responses")
    has_labels = "labels[]" in available.paths
    if responses and "responses" not in overrides and layout.shape is None and has_labels:
        columns = {"steps" if role == "responses" else role: path for role, path in layout.columns.items()}
        layout = replace(layout, columns=columns)
    if "steps" not in layout.columns:
        return layout
    if step_end is None:
        path = layout.columns["steps"]
        scoring = ", ".join(name for name, family in FAMILIES.items() if family.by_step)
        raise ConfigError(
            f"{path}: its rows are steps of a response, which a process model scores (--family {scoring}); --layout "
            f"rollouts --column responses={path} scores each step as a response of its own"
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
