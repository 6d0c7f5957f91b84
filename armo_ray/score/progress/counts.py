"""Sums over the commit records of a run so far, which are all that the driver learns from the workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from armo_ray.score.passes import Committed
from armo_ray.storage.records import ForwardPasses, Totals, added

_NO_PASSES = ForwardPasses(0, 0, 0, 0, None, 0)


@dataclass(frozen=True)
class Counts:
    """Sums over the units that a run committed. Immutable, because other threads read them."""

    total_bytes: int  # of the input that the run has to score
    started: float | None = None  # start of the first unit, by the same clock as `now`
    units: int = 0
    source_bytes: int = 0
    scored: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)  # by reason
    num_tokens: int = 0  # of all conversations, each counted whole
    computed_tokens: int = 0  # that went through the model, padding included
    packed_tokens: int = 0  # the same without padding
    pack_capacity: int = 0  # tokens that the forward passes had room for
    model_s: float = 0.0  # of all replicas
    pack_s: float = 0.0
    wait_s: float = 0.0
    flops: int = 0
    possible_flops: float | None = 0.0  # at the devices' peak rate; None if it is unknown for one
    of_endpoint: bool = False  # whether a judge gives the scores
    requests: int = 0  # that a judge's endpoint answered
    cost: float = 0.0  # of these, at the prices of the options
    isolated: int = 0  # units that failed and were scored row by row
    restarts: int = 0  # replicas that were lost and loaded again
    replicas: int | None = None  # that are loaded; None: not known yet

    def plus(self, unit: Committed, now: float) -> "Counts":
        """The counts with one more committed unit; `now` is a time.monotonic."""
        record, timing, passes = unit.record, unit.record.timing, unit.record.passes
        assert timing is not None, "a unit of this run has its timing"
        passes = passes or _NO_PASSES  # an older version may have committed the unit at the same time
        seconds, asked = timing.seconds, dict(record.extra).get("asked") or {}
        possible = None
        if self.possible_flops is not None and passes.peak_flops is not None:
            possible = self.possible_flops + passes.peak_flops * timing.replica_seconds
        return replace(
            self,
            started=now - sum(seconds.values()) if self.started is None else self.started,
            units=self.units + 1,
            source_bytes=self.source_bytes + unit.source_bytes,
            scored=self.scored + record.scored,
            rejected=added(self.rejected, record.rejected),
            num_tokens=self.num_tokens + record.num_tokens,
            computed_tokens=self.computed_tokens + record.computed_tokens,
            packed_tokens=self.packed_tokens + passes.packed_tokens,
            pack_capacity=self.pack_capacity + passes.pack_capacity,
            flops=self.flops + passes.flops,
            requests=self.requests + asked.get("requests", 0),
            cost=self.cost + asked.get("cost", 0.0),
            possible_flops=possible,
            model_s=self.model_s + seconds["model"],
            pack_s=self.pack_s + seconds["pack"],
            wait_s=self.wait_s + seconds["wait"],
        )

    @property
    def totals(self) -> Totals:
        """The sums that are also in the manifest, without the number of shards."""
        return Totals(
            units=self.units,
            candidates=self.scored + self.all_rejected,
            scored=self.scored,
            num_tokens=self.num_tokens,
            computed_tokens=self.computed_tokens,
            rejected=self.rejected,
        )

    @property
    def all_rejected(self) -> int:
        return sum(self.rejected.values())

    @property
    def retries(self) -> int:
        """The number of replicas that were lost and of units that failed."""
        return self.restarts + self.isolated

    @property
    def done(self) -> float:
        """The fraction of the input, by bytes, that is committed."""
        return min(self.source_bytes / self.total_bytes, 1.0) if self.total_bytes else 1.0

    @property
    def sharing(self) -> float | None:
        """Tokens of conversations per computed token: the saving from shared prefixes, less padding."""
        return _ratio(self.num_tokens, self.computed_tokens)

    @property
    def pack_fill(self) -> float | None:
        """The fraction of the token capacity of forward passes that was used."""
        return _ratio(self.packed_tokens, self.pack_capacity)

    @property
    def idle(self) -> float | None:
        """The fraction of the replicas' time in which no forward pass ran."""
        idle = self.pack_s + self.wait_s
        return _ratio(idle, idle + self.model_s)

    @property
    def mfu(self) -> float | None:
        """The fraction of the peak FLOPs of the replicas' GPUs that was used; None if the peak is unknown."""
        return None if self.possible_flops is None else _ratio(self.flops, self.possible_flops)

    def rate(self, count: int, now: float) -> float | None:
        """A count per second since the first unit began; start-up is excluded."""
        return None if self.started is None else _ratio(count, now - self.started)

    def eta_s(self, now: float) -> float | None:
        """Estimated seconds for the rest of the input at the rate so far."""
        if self.started is None or not self.done:
            return None
        return (now - self.started) * (1 - self.done) / self.done


def _ratio(amount: float, total: float) -> float | None:
    return amount / total if total > 0 else None
