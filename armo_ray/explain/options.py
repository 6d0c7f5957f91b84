"""The options of `armo-ray explain`."""

from typing import Annotated

from pydantic import Field

from armo_ray.options import DatedOptions, GivenPlace, Help, Name, Names


class ExplainOptions(DatedOptions):
    """Trace rows."""

    output: Annotated[GivenPlace, Help("required", "OUT", word=True)]
    """Directory or URI that score wrote, complete or not."""
    row: Annotated[Name | None, Help("which rows", "ROW_ID", word=True)] = None
    """Value of row_id; or highest, lowest, random or rejected."""
    where: Annotated[Names, Help("which rows", "EXPR")] = ()
    """Instead of ROW_ID: conditions that must all hold, as for filter."""
    first: Annotated[int, Help("which rows", "N")] = Field(3, ge=1)
    """With --where: explain the first N of the rows."""
    model: Annotated[Name | None, Help("what is shown", "MODEL")] = None
    """Where to read the model's tokenizer; default: the run's model."""
    all_tokens: Annotated[bool, Help("what is shown")] = False
    """List every token, not only those near one that the head reads."""
    alone: Annotated[bool, Help("what is shown")] = False
    """Leave out the prompt's other candidates; the rest of OUT is not read."""
