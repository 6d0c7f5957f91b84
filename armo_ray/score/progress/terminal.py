"""The counts on a terminal: a progress bar and numbers below the log, redrawn in place and removed at the end."""

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.columns import Columns
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from armo_ray.formatting.numbers import UNKNOWN, clock, percent, rate, times
from armo_ray.score.progress.counts import Counts

_DRAWS_PER_S = 2  # each takes 4 ms
_MOST_REASONS = 4
_NAME, _VALUE = 12, 10  # widths of a number's name and of the number, in characters


@contextmanager
def shown(draw: Callable[[], RenderableType]) -> Iterator[None]:
    """Show the result of `draw` at the bottom of the terminal while the body runs; log lines appear above it."""
    console = Console(stderr=True)
    live = Live(
        get_renderable=draw,
        console=console,
        refresh_per_second=_DRAWS_PER_S,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # Ray writes to stdout too; if it is a pipe, leave it alone
    )
    direct = sys.stderr
    handlers = [
        handler
        for handler in logging.root.handlers
        if isinstance(handler, logging.StreamHandler) and handler.stream is direct
    ]
    with live:  # sys.stderr now writes above the display
        for handler in handlers:
            handler.setStream(sys.stderr)
        try:
            yield
        finally:
            for handler in handlers:
                handler.setStream(direct)


def render(counts: Counts, now: float) -> RenderableType:
    """A progress bar, and numbers in as many columns as fit the terminal."""
    bar = Table.grid(padding=(0, 1), expand=True)
    bar.add_column(ratio=1)
    bar.add_column(no_wrap=True)
    if counts.started is None:
        bar.add_row(ProgressBar(pulse=True), f"waiting for the first unit, replicas up: {_replicas(counts)}")
        return bar
    bar.add_row(
        ProgressBar(total=1.0, completed=counts.done), f"{counts.done:4.0%}  ETA {clock(counts.eta_s(now))}"
    )
    # all of the same width, so that nothing moves
    cells = [
        Text.assemble((f"{name:<{_NAME}}", "dim"), f"{value:>{_VALUE}}")
        for name, value in _figures(counts, now).items()
    ]
    lines: list[RenderableType] = [bar, Columns(cells, padding=(0, 3))]
    if counts.rejected:
        lines.append(Text(f"rejected: {_reasons(counts)}", style="yellow", overflow="ellipsis", no_wrap=True))
    return Group(*lines)


def _figures(counts: Counts, now: float) -> dict[str, str]:
    def per_second(count: int) -> str:
        return rate(counts.rate(count, now), grouped=True)

    return {
        "units": f"{counts.units:,}",
        "scored": f"{counts.scored:,}",
        "rejected": f"{counts.all_rejected:,}",
        "candidates/s": per_second(counts.scored),
        "tokens/s": per_second(counts.num_tokens),
        **(_of_endpoint(counts, now) if counts.of_endpoint else _of_model(counts, now)),
    }


def _of_endpoint(counts: Counts, now: float) -> dict[str, str]:
    return {
        "requests": f"{counts.requests:,}",
        "requests/s": rate(counts.rate(counts.requests, now), grouped=True),
        "cost": f"{counts.cost:,.2f}",
    }


def _of_model(counts: Counts, now: float) -> dict[str, str]:
    return {
        "computed/s": rate(counts.rate(counts.computed_tokens, now), grouped=True),
        "sharing": times(counts.sharing),
        "pack fill": percent(counts.pack_fill, unit="%"),
        "MFU": percent(counts.mfu, unit="%"),
        "idle": percent(counts.idle, unit="%"),
        "replicas": _replicas(counts),
        "retries": f"{counts.retries:,}",
    }


def _replicas(counts: Counts) -> str:
    return UNKNOWN if counts.replicas is None else f"{counts.replicas}"


def _reasons(counts: Counts) -> str:
    """The most frequent reject reasons with their counts, and the sum of the other counts."""
    ranked = sorted(counts.rejected.items(), key=lambda entry: (-entry[1], entry[0]))
    named = [f"{count:,} {reason}" for reason, count in ranked[:_MOST_REASONS]]
    rest = sum(count for _, count in ranked[_MOST_REASONS:])
    return ", ".join(named + ([f"{rest:,} for other reasons"] if rest else []))
