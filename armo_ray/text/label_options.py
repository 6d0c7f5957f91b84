"""The labels that --label names, or that a named layout has, checked against the columns of an input."""

from collections.abc import Mapping
from dataclasses import replace

from armo_ray.errors import ConfigError
from armo_ray.text.column_options import check_path
from armo_ray.text.input_columns import InputColumns
from armo_ray.text.labels import Label
from armo_ray.text.layouts import LABELLED, Layout
from armo_ray.text.named_layouts import NAMED, has

AUTO = "auto"  # stands for the labels of the named layout
_BUILT = ("tree", "prm800k")  # shapes that build responses of which a row has no list


def default_labels(layout: Layout, available: InputColumns) -> dict[str, Label]:
    """The labels of a named layout in columns that an input has and that are not ignored; none without a name."""
    declared = NAMED[layout.name].labels if layout.name is not None else {}
    labels = {name: Label(*one) for name, one in declared.items()}
    read = available.without(layout.ignored)
    found = {name: label for name, label in labels.items() if all(has(read, path) for path in label.paths)}
    for label in found.values():
        _check_two(label, layout)
    return found


def resolve(given: Mapping[str, str], layout: Layout, available: InputColumns) -> dict[str, Label]:
    """The labels that --label names, by name: NAME -> COLUMN or COLUMN,COLUMN; `auto` -> those of the named layout.

    Numbers in columns where the named layout has labels get their range, and are matched by name as those are. They
    are read in all rows, even if each of those labels is only in some.

    Raises ConfigError if a column is not in the input, two columns do not suit the layout, or `auto` stands for none.
    """
    declared = default_labels(layout, available)
    if AUTO in given and not declared:
        raise ConfigError(
            f"label: the layout {layout.title} has no labels in this input; name them with --label NAME=COLUMN"
        )
    if given and layout.shape in _BUILT:
        raise ConfigError(
            f"label: the layout {layout.title} builds its responses from a tree: no column has a number for each"
        )
    found = dict(declared) if AUTO in given else {}
    for name, text in given.items():
        if name == AUTO:
            continue
        label = Label(_columns(text, available))
        for path in label.columns:
            check_path(f"--label {name}={text}", path, available, sampled=True)
        _check_two(label, layout)
        found[name] = _as_declared(label, declared)
    lower: dict[str, str] = {}
    for name in found:
        if (other := lower.setdefault(name.lower(), name)) != name:
            raise ConfigError(f"label: {other} and {name} differ only in case, which many readers ignore")
    return found


def _as_declared(label: Label, declared: Mapping[str, Label]) -> Label:
    """The label with the range and the names of those in the same columns, as far as they all agree."""
    same = [one for one in declared.values() if one.columns == label.columns]
    ranges, matches = {(one.low, one.high) for one in same}, {one.match for one in same}
    if len(ranges) == 1:
        low, high = ranges.pop()
        label = replace(label, low=low, high=high)
    return replace(label, match=matches.pop()) if len(matches) == 1 else label


def _columns(text: str, available: InputColumns) -> tuple[str, ...]:
    if text in available.names:
        return (text,)
    columns = tuple(column.strip() for column in text.split(","))
    if len(columns) > 2 or not all(columns):
        raise ConfigError(f"label: {text}: expected COLUMN, or COLUMN,COLUMN for the two responses of a pair")
    return columns


def _check_two(label: Label, layout: Layout) -> None:
    """Raises ConfigError if there are two columns, but the layout does not hold its responses on two sides."""
    if len(label.columns) == 2 and (layout.kind not in LABELLED or layout.shape == "ranked"):
        raise ConfigError(
            f"label: {label.column}: the layout {layout.title} holds its responses in one place, so their labels have "
            f"one column too: a list with a number for each"
        )
