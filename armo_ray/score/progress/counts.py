"""What a run has done so far, added up from its commit records: the driver knows nothing else of the workers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from armo_ray.score.passes import Committed
from armo_ray.storage.records import Totals, added


@dataclass(frozen=True)
class Counts:
    """Sums over the units that a run committed. Adding a unit makes new sums: other threads may read these."""

    total_bytes: int  # of the input that the run has to do
    started: float | None = None  # when the first unit was, in seconds of the clock that `now` is of
    units: int = 0
    source_bytes: int = 0
    scored: int = 0
    rejected: Mapping[str, int] = field(default_factory=dict)  # by reason
    num_tokens: int = 0  # of all conversations, each counted whole
    computed_tokens: int = 0  # that went through the model, padding included
    packed_tokens: int = 0  # and without
    pack_capacity: int = 0  # tokens that the forward passes had room for
    model_s: float = 0.0  # of all replicas
    pack_s: float = 0.0
    wait_s: float = 0.0
    flops: int = 0
    possible_flops: float | None = 0.0  # in the replicas' time; None where a device's rate is not known
    isolated: int = 0  # units that failed and were done row by row
    restarts: int = 0  # replicas that were lost and loaded again
    replicas: int | None = None  # that are up; None: not known yet

    def plus(self, unit: Committed, now: float) -> "Counts":
        """With one more committed unit."""
        record, timing, passes = unit.record, unit.record.timing, unit.record.passes
        assert timing is not None, "a unit of this run has its timing"
        assert passes is not None, "a unit of this run has its forward passes"
        seconds = timing.seconds
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
            possible_flops=possible,
            model_s=self.model_s + seconds["model"],
            pack_s=self.pack_s + seconds["pack"],
            wait_s=self.wait_s + seconds["wait"],
        )

    @property
    def totals(self) -> Totals:
        """The sums that the manifest has too; of the shards nothing is known."""
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
        """Replicas that were lost, and units that failed."""
        return self.restarts + self.isolated

    @property
    def done(self) -> float:
        """The fraction of the input, by bytes, that is committed."""
        return min(self.source_bytes / self.total_bytes, 1.0) if self.total_bytes else 1.0

    @property
    def sharing(self) -> float | None:
        """Tokens of conversations for each that was computed: what sharing prefixes saves, less padding."""
        return _ratio(self.num_tokens, self.computed_tokens)

    @property
    def pack_fill(self) -> float | None:
        """The fraction of the room in forward passes that tokens took."""
        return _ratio(self.packed_tokens, self.pack_capacity)

    @property
    def idle(self) -> float | None:
        """The fraction of the replicas' time that no forward pass ran."""
        idle = self.pack_s + self.wait_s
        return _ratio(idle, idle + self.model_s)

    @property
    def mfu(self) -> float | None:
        """The fraction of what the replicas' GPUs can do in theory; None where that is not known."""
        return None if self.possible_flops is None else _ratio(self.flops, self.possible_flops)

    def rate(self, count: int, now: float) -> float | None:
        """So many a second, since the first unit began: start-up would spoil it."""
        return None if self.started is None else _ratio(count, now - self.started)

    def eta_s(self, now: float) -> float | None:
        """Seconds that the rest of the input will take at the rate so far."""
        if self.started is None or not self.done:
            return None
        return (now - self.started) * (1 - self.done) / self.done


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole > 0 else None
