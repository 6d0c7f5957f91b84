"""The counts as Prometheus metrics, which Ray exports on the driver's node.

Ray adds the prefix `ray_` to a name, and the suffix `_total` to a counter: `SERIES` has the names that Prometheus sees.
The driver sets the metrics, so scoring does not wait for them; they end with the driver.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from armo_ray.score.progress.counts import Counts

TAGS = ("output", "model")
Values = Mapping[str, float | None]  # by the value of a metric's additional tag


class Metric(NamedTuple):
    name: str
    about: str
    values: Callable[[Counts, float], Values]
    tag: str | None = None  # an additional tag besides TAGS
    counter: bool = False

    @property
    def series(self) -> str:
        return f"ray_{self.name}" + "_total" * self.counter


def _gauge(name: str, about: str, value: Callable[[Counts, float], float | None]) -> Metric:
    return Metric(f"armo_ray_{name}", about, lambda counts, now: {"": value(counts, now)})


def _counter(name: str, about: str, value: Callable[[Counts], float]) -> Metric:
    return Metric(f"armo_ray_{name}", about, lambda counts, _: {"": value(counts)}, counter=True)


def _counters(name: str, tag: str, about: str, values: Callable[[Counts], Values]) -> Metric:
    return Metric(f"armo_ray_{name}", about, lambda counts, _: values(counts), tag, counter=True)


METRICS = (
    _counter("units", "Units of work that this run committed", lambda c: c.units),
    _counter("scored", "Candidates scored", lambda c: c.scored),
    _counters("rejected", "reason", "Candidates or rows rejected", lambda c: c.rejected),
    _counter("tokens", "Tokens of conversations, each counted whole", lambda c: c.num_tokens),
    _counter("computed_tokens", "Tokens that went through the model", lambda c: c.computed_tokens),
    _counter("flops", "Floating-point operations of the decoder", lambda c: c.flops),
    _counters(
        "replica_seconds",
        "phase",
        "Seconds of all replicas",
        lambda c: {"model": c.model_s, "pack": c.pack_s, "wait": c.wait_s},
    ),
    _counters(
        "retries",
        "kind",
        "Replicas lost and loaded again, and failed units scored row by row",
        lambda c: {"replica": c.restarts, "unit": c.isolated},
    ),
    _gauge("done_ratio", "Fraction of the input, by bytes, that is committed", lambda c, _: c.done),
    _gauge("eta_seconds", "Estimated seconds for the rest of the input", lambda c, now: c.eta_s(now)),
    _gauge("replicas", "Replicas of the model that are loaded", lambda c, _: c.replicas),
    _gauge(
        "pack_fill_ratio", "Fraction of the forward passes' capacity that is used", lambda c, _: c.pack_fill
    ),
    _gauge("sharing_ratio", "Tokens of conversations per computed token", lambda c, _: c.sharing),
    _gauge("idle_ratio", "Fraction of the replicas' time without a forward pass", lambda c, _: c.idle),
    _gauge("mfu_ratio", "Fraction of the GPUs' peak FLOPs, if known", lambda c, _: c.mfu),
)
SERIES = {metric.series: metric for metric in METRICS}


class Exporter:
    """Exports the counts of one run through Ray, which must be running."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        from ray.util.metrics import Counter, Gauge

        self.tags = dict(tags)
        self.exported: dict[tuple[str, str], float] = {}  # present values of the counters
        self.metrics: dict[str, Any] = {}
        for metric in METRICS:
            keys = (*TAGS, metric.tag) if metric.tag else TAGS
            kind = Counter if metric.counter else Gauge
            self.metrics[metric.name] = kind(metric.name, metric.about, tag_keys=keys)

    def export(self, counts: Counts, now: float) -> None:
        """Set every metric whose value is known."""
        for metric in METRICS:
            for label, value in metric.values(counts, now).items():
                if value is None:
                    continue
                tags = self.tags | ({metric.tag: label} if metric.tag else {})
                if not metric.counter:
                    self.metrics[metric.name].set(value, tags)
                    continue
                key = (metric.name, label)
                if (more := value - self.exported.get(key, 0.0)) > 0:
                    self.metrics[metric.name].inc(more, tags)
                    self.exported[key] = value
