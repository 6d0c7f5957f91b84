"""The named layouts as readable text."""

import json
from collections.abc import Iterator

from armo_ray.errors import ConfigError
from armo_ray.text.named_layouts import NAMED, Declared, Named


def lines(name: str | None) -> Iterator[str]:
    """Lines that describe one layout, or all. Raises ConfigError if there is no layout with this name."""
    if name is not None and name not in NAMED:
        raise ConfigError(f"{name}: no such layout; armo-ray layouts lists them")
    for layout in NAMED.values() if name is None else (NAMED[name],):
        yield from _of(layout)


def _of(layout: Named) -> Iterator[str]:
    how = "" if layout.recognized else "; general layouts read it too, or --layout chooses it"
    yield f"{layout.name} ({layout.kind}{how})"
    yield f"  reads     {', '.join(f'{role}={path}' for role, path in layout.columns.items())}"
    if layout.needs:
        yield f"  requires  {', '.join(layout.needs)} too"
    if layout.optional:
        yield f"  optional  {', '.join(f'{role}={path}' for role, path in layout.optional.items())}"
    if layout.winner:
        yield f"  winner    {', '.join(f'{value}: {verdict}' for value, verdict in layout.winner.items())}"
    elif "first_rating" in layout.columns:
        yield "  winner    the response with the higher rating; equal ratings are a tie"
    if layout.labels:
        yield f"  labels    {', '.join(f'{name}={_label(one)}' for name, one in layout.labels.items())}"
    if layout.aside:
        yield f"  set aside {', '.join(layout.aside)}"
    if layout.refused or layout.note:
        yield f"  note      {layout.refused or layout.note}"
    yield f"  columns   {'' if layout.verified else 'not verified; '}{layout.source}"
    yield f"  example   {json.dumps(layout.example, ensure_ascii=False)}"


def _label(label: Declared) -> str:
    """The columns of a label and its range."""
    where = "" if label.where is None else f" where {label.where[0]} is {label.where[1]}"
    return f"{','.join(label.columns)}{where} ({label.low:g}-{label.high:g})"
