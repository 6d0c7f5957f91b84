"""The options that every command shares that reads rows of shards and commits what it makes of them."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from armo_ray.expressions.expressions import advice
from armo_ray.options import (
    DATE,
    DatedOptions,
    Day,
    Help,
    Name,
    Names,
    NewPlace,
    Place,
    Places,
    Seconds,
    day_of,
    listed,
)

ROLES = ("system", "user", "assistant", "tool")
COLUMN_ROLES = (
    *("prompt", "input", "history", "system", "tools", "prefix", "chosen", "rejected", "responses"),
    *("response", "steps", "messages", "first", "second", "winner", "first_rating", "second_rating"),
)


class RunOptions(DatedOptions):
    """What to read, how to read it, and where to write what is made of it."""

    command: ClassVar[str] = "score"
    labels_by_default: ClassVar[bool] = False  # whether those of a named layout are read without --label

    input: Annotated[Places, Help("required", "URI")] = Field(min_length=1)
    """Files, directories or globs of .parquet, .jsonl or .ndjson (.gz, .zst)."""
    output: Annotated[NewPlace, Help("required", "DIR")]
    """Directory or URI; a stopped run is resumed. Several models write to OUTPUT/NAME, or OUTPUT/NAME@REVISION."""
    layout: Annotated[Name, Help("reading", "NAME")] = "auto"
    """Kind of rows: preference, rollouts, messages, pairs, or a name that armo-ray layouts lists."""
    column: Annotated[Mapping[str, Name], Help("reading", "NAME=COLUMN")] = {}
    """Columns to read, by name: prompt=question.text, responses=outputs[].text."""
    winner: Annotated[Mapping[str, Name], Help("reading", "VALUE=RESULT")] = {}
    """Meaning of a value in the winner column: first, second, tie or skip."""
    ignore: Annotated[Names, Help("reading", "COLUMN")] = ()
    """Columns that are no part of a conversation, though they seem to be."""
    role: Annotated[Mapping[str, Name], Help("reading", "NAME=ROLE")] = {}
    """Role that a name in messages means: system, user, assistant or tool."""
    tool_calls: Annotated[Literal["template", "text"], Help("reading")] = "template"
    """Read tools, tool calls and reasoning by the chat template, or as text."""
    date: Annotated[Day, Help("reading", "YYYY-MM-DD")] = None
    """Replaces {date} in --input and --output; default: yesterday, UTC."""
    days: Annotated[int, Help("reading", "N")] = Field(1, ge=1)
    """Read the {date} inputs of N days up to --date."""

    only_where: Annotated[Name | None, Help("reading", "EXPRESSION")] = None
    """Read only rows whose candidates satisfy this in --earlier, such as 'margin < 0.1'."""
    earlier: Annotated[Place | None, Help("reading", "OUT")] = None
    """A complete output over the same input, for --only-where."""

    keep: Annotated[Mapping[str, Name], Help("what is written", "COLUMN")] = {}
    """Input columns to copy into the scores, as COLUMN or NAME=COLUMN."""
    label: Annotated[Mapping[str, Name], Help("what is written", "NAME=COLUMN")] = {}
    """Numbers given to responses, as NAME=COLUMN, NAME=FIRST,SECOND or auto."""
    keep_json: Annotated[Mapping[str, Name], Help("what is written", "COLUMN")] = {}
    """The same, as JSON text: for values that fit no single Parquet type."""
    keep_text: Annotated[bool, Help("what is written")] = False
    """Add prompt and response to the scores, as messages."""
    partition_by: Annotated[Names, Help("what is written", "COLUMN")] = ()
    """Columns to partition by, besides those of the input's directories."""

    unit_rows: Annotated[int, Help("stopping and resuming", "N")] = Field(2048, ge=1)
    """Candidates per unit, which is committed as a whole."""
    max_runtime: Annotated[Seconds, Help("stopping and resuming", "TIME")] = None
    """Stop cleanly after 90s, 45m or 8h; the same command goes on."""
    max_reject_fraction: Annotated[float, Help("stopping and resuming", "X")] = Field(0.01, ge=0, le=1)
    """Exit with status 3 if more of the candidates or shards are rejected."""
    redo: Annotated[Places, Help("stopping and resuming", "URI")] = ()
    """Shards or globs that changed: drop their scores and score them again."""
    forget: Annotated[Places, Help("stopping and resuming", "URI")] = ()
    """Shards or globs that are gone from the input: drop their scores."""

    @model_validator(mode="before")
    @classmethod
    def _of_days(cls, values: Any) -> Any:
        """Name each input with {date} once per day, the last day first."""
        inputs, count = values.get("input"), str(values.get("days", 1))
        days = int(count) if count.isdigit() else 1
        if days > 1 and DATE in str(values.get("output")):
            raise ValueError(
                f"output: with {DATE} in it, it is of one day, but --days {days} reads {days}: leave {DATE} out of "
                f"the output, to which every run then adds, or run once per day, with --date and without --days"
            )
        if not isinstance(inputs, str | list | tuple):
            return values
        try:
            last = day_of(values.get("date"))
        except ValueError:  # the field says so
            return values
        names = [str(last - timedelta(back)) for back in range(days)]
        uris = [_named(uri, name) for uri in listed(inputs) for name in names]
        return {**values, "input": list(dict.fromkeys(uris))}

    @model_validator(mode="after")
    def _both(self) -> "RunOptions":
        if (self.only_where is None) != (self.earlier is None):
            raise ValueError("only_where: give it together with --earlier OUT")
        return self

    @field_validator("column", "keep", "keep_json", "label", "winner", "role", mode="before")
    @classmethod
    def _paired(cls, value: Any) -> Any:
        """Convert ["a", "b=c"] to {"a": "a", "b": "c"}, and "a" to {"a": "a"}."""
        if not isinstance(value, list | tuple | str):
            return value
        pairs = [str(entry).partition("=")[::2] for entry in listed(value)]
        return {name: column or name for name, column in pairs}

    @field_validator("column")
    @classmethod
    def _parts(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(set(value) - set(COLUMN_ROLES)):
            raise ValueError(f"unknown name {', '.join(unknown)}; {advice(unknown[0], COLUMN_ROLES)}")
        return value

    @field_validator("winner")
    @classmethod
    def _verdicts(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if wrong := sorted(set(value.values()) - {"first", "second", "tie", "skip"}):
            raise ValueError(f"unknown verdict {wrong[0]}; expected VALUE=first, second, tie or skip")
        return value

    @field_validator("role")
    @classmethod
    def _roles(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        if unknown := sorted(set(value.values()) - set(ROLES)):
            raise ValueError(f"unknown role {unknown[0]}; expected NAME=ROLE with one of {', '.join(ROLES)}")
        return value


def _named(uri: Any, day: str) -> Any:
    return uri.replace(DATE, day) if isinstance(uri, str) else uri
