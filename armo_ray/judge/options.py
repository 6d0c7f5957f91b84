"""The options of a run with a judge."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from armo_ray.judging.reasons import REASONS
from armo_ray.options import Help, ModelName, Name, Names
from armo_ray.score.run_options import RunOptions


class JudgeOptions(RunOptions):
    """What to judge, with which prompt and model, and where to write it."""

    command: ClassVar[str] = "judge"

    judge: Annotated[Name, Help("required", "JUDGE")]
    """Prompt and how verdicts are read: a TOML file, the name of a built-in judge, or a kind of reward server."""
    model: Annotated[Name, Help("required", "NAME")]
    """Model, as the server names it."""

    endpoint: Annotated[Name | None, Help("the endpoint", "URL")] = None
    """OpenAI-compatible server, such as http://localhost:8000/v1."""
    serve: Annotated[Literal["vllm"] | None, Help("the endpoint")] = None
    """Instead of --endpoint: serve the model on the GPUs of the cluster, by vllm serve."""
    serve_args: Annotated[Names, Help("the endpoint", "ARG")] = ()
    """Further arguments of vllm serve, such as --serve-args=--max-model-len=8192."""
    gpus_per_server: Annotated[int, Help("the endpoint", "N")] = Field(1, ge=0)
    """With --serve: GPUs of one server; the cluster gets as many servers as it has room for."""
    wait: Annotated[float, Help("the endpoint", "MINUTES")] = Field(10, ge=0)
    """With --serve: how long to wait for the GPUs of the first server."""
    api_key_env: Annotated[Name | None, Help("the endpoint", "VARIABLE")] = None
    """Environment variable that holds the key of the endpoint."""
    tokenizer: Annotated[ModelName | None, Help("the endpoint", "MODEL")] = None
    """Of a reward server that takes text: the model whose template and tokenizer make it."""
    activation: Annotated[bool, Help("the endpoint")] = False
    """Of a reward server: accept values that all lie between 0 and 1."""
    in_flight: Annotated[int, Help("the endpoint", "N")] = Field(64, ge=1)
    """Most requests in flight at once, in the whole cluster; with --serve, at each server."""
    tokens_in_flight: Annotated[int | None, Help("the endpoint", "N")] = Field(None, ge=1)
    """Also bound their tokens: the prompt's, at four bytes each, and max_tokens."""
    timeout: Annotated[float, Help("the endpoint", "SECONDS")] = Field(600, gt=0)
    """How long to wait for one reply."""
    input_price: Annotated[float, Help("the endpoint", "X")] = Field(0.0, ge=0)
    """Price of a million prompt tokens."""
    output_price: Annotated[float, Help("the endpoint", "X")] = Field(0.0, ge=0)
    """Price of a million tokens that the model writes."""
    max_cost: Annotated[float | None, Help("the endpoint", "X")] = Field(None, gt=0)
    """Stop cleanly once this run has cost so much; the same command goes on."""
    unit_rows: Annotated[int, Help("stopping and resuming", "N")] = Field(256, ge=1)
    """Candidates per unit, which is committed as a whole; replies are kept one by one."""
    verify: Annotated[bool, Help("the endpoint")] = False
    """First ask the judge about a small set of answers, as armo-ray verify --judge; the report shows the result."""
    dry_run: Annotated[bool, Help("the endpoint")] = False
    """Ask nothing: print how many requests a run makes, what they cost, and the first of them."""
    retry: Annotated[Names, Help("stopping and resuming", "REASON")] = ()
    """Ask again about candidates that an earlier run rejected for these reasons."""

    @model_validator(mode="after")
    def _one_place(self) -> "JudgeOptions":
        if (self.endpoint is None) == (self.serve is None):
            raise ValueError("endpoint: give either --endpoint URL or --serve vllm")
        if any("api-key" in argument for argument in self.serve_args):
            raise ValueError("serve_args: a server that an actor starts needs no key")
        if self.verify and self.serve:
            raise ValueError("verify: a judge is checked at an --endpoint; --serve starts its servers later")
        return self

    @field_validator("retry")
    @classmethod
    def _reasons(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if unknown := sorted(set(value) - set(REASONS)):
            raise ValueError(f"unknown reason {unknown[0]}; expected {', '.join(REASONS)}")
        return value

    @field_validator("max_cost")
    @classmethod
    def _priced(cls, value: float | None, info: Any) -> float | None:
        if value is not None and not (info.data.get("input_price") or info.data.get("output_price")):
            raise ValueError("give --input-price and --output-price, of a million tokens each")
        return value
