"""The counts as one line of a log."""

from typing import Any

from armo_ray.formatting.numbers import UNKNOWN, clock, percent, rate, times
from armo_ray.score.progress.counts import Counts


def line(counts: Counts, now: float) -> str:
    """All counts and rates as key=value words; `now` is in seconds of the monotonic clock."""
    reasons = ",".join(f"{reason}:{n}" for reason, n in sorted(counts.rejected.items()))
    words = {
        "done": f"{counts.done:.1%}",
        "eta": clock(counts.eta_s(now)),
        "units": counts.units,
        "scored": counts.scored,
        "rejected": counts.all_rejected,
        **({"reasons": reasons} if reasons else {}),
        "candidates/s": rate(counts.rate(counts.scored, now)),
        "tokens/s": rate(counts.rate(counts.num_tokens, now)),
        **(_of_endpoint(counts, now) if counts.of_endpoint else _of_model(counts, now)),
    }
    return "progress " + " ".join(f"{name}={value}" for name, value in words.items())


def _of_endpoint(counts: Counts, now: float) -> dict[str, Any]:
    return {
        "requests": counts.requests,
        "requests/s": rate(counts.rate(counts.requests, now)),
        "cost": f"{counts.cost:.2f}",
    }


def _of_model(counts: Counts, now: float) -> dict[str, Any]:
    return {
        "computed-tokens/s": rate(counts.rate(counts.computed_tokens, now)),
        "sharing": times(counts.sharing),
        "fill": percent(counts.pack_fill, unit="%"),
        "mfu": percent(counts.mfu, unit="%"),
        "idle": percent(counts.idle, unit="%"),
        "replicas": UNKNOWN if counts.replicas is None else counts.replicas,
        "retries": counts.retries,
    }
