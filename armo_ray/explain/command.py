"""`armo-ray explain`: print the trace of rows."""

from collections.abc import Iterator

from armo_ray.errors import ConfigError
from armo_ray.explain.contrast import contrast
from armo_ray.explain.find import count_rejects, find
from armo_ray.explain.options import ExplainOptions
from armo_ray.explain.show import lines
from armo_ray.explain.table import Matches, matching

_RULE = "-" * 80


def run(options: ExplainOptions) -> None:
    """Print all that is known about rows. Raises ConfigError if there is no such output or row."""
    if (options.row is None) != bool(options.where):
        raise ConfigError("give either ROW_ID or --where, which says what rows to explain")
    if options.row is not None:
        print("\n".join(_explained(options, options.row)))
        return
    matches = matching(options.output, options.where, options.first)
    print("\n".join(_summary(matches)))
    for row_id in matches.explained:
        print("\n".join((_RULE, *_explained(options, row_id))))


def _explained(options: ExplainOptions, row: str) -> Iterator[str]:
    found = find(options.output, row)
    if row == "rejected":
        counts = count_rejects(options.output)
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
        yield f"rejects    {counts.total():,}, of which one is picked at random: {reasons}"
    yield from lines(found, options.model, options.all_tokens)
    if found.scores is not None and not options.alone:
        yield ""
        yield from contrast(options.output, found.scores)


def _summary(matches: Matches) -> Iterator[str]:
    explained = len(matches.explained)
    yield f"matching   {matches.number:,} rows" if matches.number > 1 else "matching   1 row"
    if matches.left_out:
        unnamed = matches.number - explained - len(matches.left_out)
        rest = f" and {unnamed:,} more" if unnamed else ""
        yield f"left out   {', '.join(matches.left_out)}{rest}: --first N explains more"
