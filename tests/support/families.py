"""Families as tests use them: which must be asked for, and one of every kind."""

from armo_ray.model.families import FAMILIES
from armo_ray.model.recognize import recognized_by

# One family for every text, set of positions and kind of result: what reads rows and tokens does not differ within one.
# A policy, which is scored beside another model, has tests of its own.
KINDS = list(
    {
        (f.text, f.reads, f.gated, bool(f.append), f.system is not None): name
        for name, f in reversed(FAMILIES.items())
        if f.reads != "response"
    }.values()
)


def asked(family: str) -> str | None:
    """The name of a family that its tensors do not tell."""
    return family if recognized_by(FAMILIES[family]) == "`--family`" else None
