"""The options of `armo-ray nightly`, and those of the sections of its file that no other command has."""

from typing import Annotated, Any

from pydantic import Field

from armo_ray.options import Day, Finite, Help, Name, NewPlace, Options, Seconds


class NightlyOptions(Options):
    """Score, make datasets, judge them and publish them."""

    file: Annotated[Name, Help("required", "NIGHT.toml", word=True)]
    """Sections score, filter, mine, label, report, gate and publish."""
    date: Annotated[Day, Help("running", "YYYY-MM-DD")] = None
    """Replaces {date} in the file; default: yesterday, UTC."""
    max_runtime: Annotated[Seconds, Help("running", "TIME")] = None
    """Stop the night cleanly after 90s, 45m or 8h; the same command goes on."""
    replicas: Annotated[Any, Help("running", "MIN:MAX")] = None
    """Replaces replicas in [score]: model replicas, N or MIN:MAX."""
    gpus_per_replica: Annotated[Any, Help("running", "X")] = None
    """Replaces gpus_per_replica in [score]."""
    force_latest: Annotated[bool, Help("publishing")] = False
    """Point LATEST.json to this night, even if it names a later one."""


class GateOptions(Options):
    """What a night must pass to be published."""

    max_reject_fraction: Annotated[float | None, Field(ge=0, le=1)] = None
    """Of the candidates, or of the shards, of this night; default: that of [score]."""
    max_psi: Annotated[Finite | None, Field(gt=0)] = None
    """Of every column, between [report].scores and [report].against; default: that of [report]."""
    max_ks: Annotated[Finite | None, Field(gt=0, le=1)] = None
    """The same for the Kolmogorov-Smirnov distance."""
    min_pairs: Annotated[int | None, Field(ge=0)] = None
    """Pairs that [mine] made in this night."""
    min_mean_margin: Finite | None = None
    """Mean margin of these pairs."""


class PublishOptions(Options):
    """Where to publish."""

    to: NewPlace
    """Directory or URI of LATEST.json, dates/ and nights/."""
