"""`armo-ray models`: print the families of reward models."""

from collections.abc import Iterator

from armo_ray.errors import ConfigError
from armo_ray.formatting.tables import markdown_table
from armo_ray.model.catalog import CATALOG, HEADS, table
from armo_ray.model.families import FAMILIES
from armo_ray.model.recognize import recognized_by
from armo_ray.models.options import ModelsOptions


def run(options: ModelsOptions) -> None:
    """Print one family, or all. Raises ConfigError if there is none of the name."""
    if options.name is not None and options.name not in CATALOG:
        raise ConfigError(f"{options.name}: no such family; armo-ray models lists them")
    names = list(CATALOG) if options.name is None else [options.name]
    if options.markdown:
        print(markdown_table(HEADS, [row for row in table() if row[0].strip("`") in names]))
    else:
        print("\n".join(line for name in names for line in _lines(name)))


def _lines(name: str) -> Iterator[str]:
    entry, family = CATALOG[name], FAMILIES[name]
    unverified = f"; except: {family.unverified}" if family.unverified else ""
    yield name
    for title, text in (
        ("models", entry.models),
        ("recognized", f"by {recognized_by(family)}"),
        ("rewards", entry.rewards),
        ("score", entry.score),
        ("checked", f"against {entry.checked}{unverified}"),
    ):
        yield f"  {title:<10}  {text.replace('`', '')}"
