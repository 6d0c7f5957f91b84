"""The options of commands that read scores, and of those that make datasets of them."""

from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from armo_ray.options import NewPlace, Options, Place, Places

Size = Annotated[str, StringConstraints(pattern=r"^\d+(\.\d+)? ?[KMGT]i?B$", strip_whitespace=True)]


class ScoresOptions(Options):
    """What every command that reads scores takes."""

    scores: Places = Field(min_length=1)
    """Complete outputs of armo-ray score, all of one model."""
    memory: Size = "2GB"
    """What DuckDB may hold in memory before it spills to disk; with ray, in each task."""
    threads: int | None = Field(None, ge=1)
    """Threads of DuckDB; default: one per core, with ray one in each task."""
    spill: Place | None = None
    """Directory for what does not fit in memory; default: the system's for temporary files."""


class DatasetOptions(ScoresOptions):
    """What every command that makes a dataset takes."""

    output: NewPlace
    """Directory or URI of the new dataset; nothing may be there yet."""
    format: Literal["parquet", "jsonl"] = "parquet"
    """Of the files that are written."""
    engine: Literal["duckdb", "ray"] = "duckdb"
    """This machine alone, or the same tasks on a Ray cluster; the rows are the same."""
    task_rows: int = Field(250_000, ge=1)
    """Candidates that a task works on at once; fewer need less memory."""
