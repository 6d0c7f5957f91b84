"""Formatting numbers for people, and the progress line of the log."""

from armo_ray.score.progress.counts import Counts

UNKNOWN = "-"


def line(counts: Counts, now: float) -> str:
    """The counts as one line of key=value words."""
    reasons = ",".join(f"{reason}:{n}" for reason, n in sorted(counts.rejected.items()))
    words = {
        "done": f"{counts.done:.1%}",
        "eta": clock(counts.eta_s(now)),
        "units": counts.units,
        "scored": counts.scored,
        "rejected": counts.all_rejected,
        **({"reasons": reasons} if reasons else {}),
        "candidates/s": number(counts.rate(counts.scored, now)),
        "tokens/s": number(counts.rate(counts.num_tokens, now)),
        "computed/s": number(counts.rate(counts.computed_tokens, now)),
        "sharing": times(counts.sharing),
        "fill": percent(counts.pack_fill),
        "mfu": percent(counts.mfu),
        "idle": percent(counts.idle),
        "replicas": UNKNOWN if counts.replicas is None else counts.replicas,
        "retries": counts.retries,
    }
    return "progress " + " ".join(f"{name}={value}" for name, value in words.items())


def number(value: float | None, grouped: bool = False) -> str:
    """A number with at least three significant digits: 0.523, 34.1, 12345; with `grouped`, 12,345."""
    if value is None:
        return UNKNOWN
    if value < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if grouped else f"{value:.0f}"


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def times(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.2f}x"


def clock(seconds: float | None) -> str:
    """Seconds as hours, minutes and seconds: 1:02:03."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
