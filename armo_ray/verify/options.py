"""The options of `armo-ray verify`: those for an output, and those for a model."""

from typing import Annotated

from armo_ray.options import Beta, DatedOptions, Dtype, FamilyName, GivenPlace, Help, ModelName, Name


class VerifyOptions(DatedOptions):
    """Check an output, or a dataset of mine or label."""

    output: Annotated[GivenPlace, Help("to check an output", "OUT", word=True)]
    """Directory or URI that score or another command wrote."""
    repair: Annotated[bool, Help("to check an output")] = False
    """Delete what is damaged; the same score command then redoes it."""


class VerifyModelOptions(DatedOptions):
    """Check a model on this machine: its template and tokens, then every way of scoring against float32."""

    model: Annotated[ModelName, Help("to check a model", "MODEL")]
    """Checkpoint: a directory, its URI, or a hub id."""
    revision: Annotated[Name | None, Help("to check a model", "NAME")] = None
    """Branch, tag or commit on the hub."""
    family: Annotated[FamilyName | None, Help("to check a model", "NAME")] = None
    """Family of the model; default: recognized by its tensors."""
    reference_model: Annotated[ModelName | None, Help("to check a model", "MODEL")] = None
    """Of dpo or prm-eurus: the model before training; memory holds both."""
    reference_revision: Annotated[Name | None, Help("to check a model", "NAME")] = None
    """Branch, tag or commit of the reference model."""
    beta: Annotated[Beta | None, Help("to check a model", "X")] = None
    """Factor of log ratios; default: of dpo 0.1, of prm-eurus 0.001."""
    length_normalized: Annotated[bool, Help("to check a model")] = False
    """With --family dpo: divide the reward by the number of response tokens."""
    dtype: Annotated[Dtype, Help("to check a model")] = "bfloat16"
    """Type of the backbone's weights."""
    device: Annotated[Name | None, Help("to check a model", "NAME")] = None
    """Device, as torch names it; default: cuda if there is a GPU."""
    record: Annotated[GivenPlace | None, Help("to check a model", "FILE")] = None
    """Write the model's values to this file, for --against."""
    against: Annotated[GivenPlace | None, Help("to check a model", "FILE")] = None
    """Compare with the values in a file that --record wrote."""


class VerifyJudgeOptions(DatedOptions):
    """Check a judge: ask it about a small set of answers, and tell what it gets right and what sways it."""

    judge: Annotated[Name, Help("to check a judge", "JUDGE")]
    """Prompt and how verdicts are read: a TOML file, or the name of a built-in judge."""
    endpoint: Annotated[Name, Help("to check a judge", "URL")]
    """OpenAI-compatible server, such as http://localhost:8000/v1."""
    model: Annotated[Name, Help("to check a judge", "NAME")]
    """Model, as the server names it."""
    api_key_env: Annotated[Name | None, Help("to check a judge", "VARIABLE")] = None
    """Environment variable that holds the key of the endpoint."""
