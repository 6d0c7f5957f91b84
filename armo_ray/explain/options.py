"""The options of `armo-ray explain`."""

from typing import Annotated

from armo_ray.options import DatedOptions, GivenPlace, Help, Name


class ExplainOptions(DatedOptions):
    """Trace one row."""

    output: Annotated[GivenPlace, Help("required", "OUT", word=True)]
    """Directory or URI that score wrote, complete or not."""
    row: Annotated[Name, Help("required", "ROW_ID", word=True)]
    """Value of row_id; or highest, lowest, random or rejected."""
    model: Annotated[Name | None, Help("what is shown", "MODEL")] = None
    """Where to read the model's tokenizer; default: the run's model."""
    all_tokens: Annotated[bool, Help("what is shown")] = False
    """List every token, not only those near one that the head reads."""
