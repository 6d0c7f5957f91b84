"""The options of commands that read scores, and of those that make datasets from them."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from armo_ray.options import DatedNames, DatedOptions, Help, NewPlace, Place, Places, stripped

Size = Annotated[str, BeforeValidator(stripped), Field(pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$")]


class ScoresOptions(DatedOptions):
    """The options of every command that reads scores."""

    scores: Annotated[Places, Help("required", "OUT", word=True)] = Field(min_length=1)
    """Complete outputs of score, all of one model."""
    memory: Annotated[Size, Help("running", "SIZE")] = "2GB"
    """Memory of DuckDB before it spills, per task with ray."""
    threads: Annotated[int | None, Help("running", "N")] = Field(None, ge=1)
    """Threads of DuckDB; default: one per core, or one per task with ray."""
    spill: Annotated[Place | None, Help("running", "DIR")] = None
    """Where to spill; default: the system's temporary directory."""
    partition: Annotated[DatedNames, Help("running", "NAME=X")] = ()
    """Read only these directories: date=2026-11-20, or date=FIRST..LAST."""


class DatasetOptions(ScoresOptions):
    """The options of every command that makes a dataset."""

    output: Annotated[NewPlace, Help("required", "DIR")]
    """Directory or URI of the new dataset; nothing may be there yet."""
    format: Annotated[Literal["parquet", "jsonl"], Help("what is written")] = "parquet"
    """File format of the output."""
    engine: Annotated[Literal["duckdb", "ray"], Help("running")] = "duckdb"
    """Run here, or on a Ray cluster; the rows are the same."""
    task_rows: Annotated[int, Help("running", "N")] = Field(250_000, ge=1)
    """Candidates per task; fewer need less memory."""
