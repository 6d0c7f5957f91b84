"""Pages and cards from the package's templates. In a template of HTML, all that is not Markup is escaped."""

import re
from functools import cache
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from armo_ray.formatting import numbers, svg
from armo_ray.formatting.tables import markdown_table

if TYPE_CHECKING:
    from jinja2 import Environment


def render(name: str, **values: Any) -> str:
    """Fill in a template; `name` is its path within the package, `*.html.jinja` for HTML or `*.md.jinja`."""
    return _environment().get_template(name).render(values)


@cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined  # 10 MB that only rendering needs

    environment = Environment(
        loader=PackageLoader("armo_ray", ""),
        autoescape=lambda name: name is not None and name.endswith(".html.jinja"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for form in (numbers.number, numbers.signed, numbers.percent, numbers.date, breakable):
        environment.filters[form.__name__] = form
    functions = (
        svg.histogram,
        svg.small_histogram,
        svg.curve,
        svg.heatmap,
        svg.cell_bar,
        markdown_table,
        zip,
    )
    environment.globals.update({function.__name__: function for function in functions})
    return environment


def breakable(text: object) -> Markup:
    """Text in which lines may break within names and paths."""
    return Markup("<wbr>").join(re.split(r"(?<=[_/=])", str(text)))
