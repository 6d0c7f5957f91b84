"""The options of the commands that make datasets from scores."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from armo_ray.options import Finite, Help, Name, Names, Place, Places
from armo_ray.outputs.options import DatasetOptions


def _named(value: Any) -> Any:
    """["a=0.5"] as {"a": "0.5"}; anything but a text or a list as it is."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        return value
    pairs = [str(entry).rpartition("=") for entry in value]
    if wrong := [text for text, (name, _, _) in zip(value, pairs, strict=True) if not name.strip()]:
        raise ValueError(f"expected NAME=VALUE, got {wrong[0]!r}")
    return {name.strip(): number for name, _, number in pairs}


class MineOptions(DatasetOptions):
    """Make preference pairs from the candidates of each prompt."""

    strategy: Annotated[
        Literal["best-worst", "best-vs-sigma", "top-k-bottom-k", "all-above-margin", "best-random"],
        Help("which pairs", "NAME"),
    ] = "best-worst"
    """best-worst, best-vs-sigma, best-random, top-k-bottom-k or all-above-margin."""
    k: Annotated[int, Help("which pairs", "N")] = Field(2, ge=1)
    """With top-k-bottom-k: pair the N best with the N worst."""
    rank_by: Annotated[Name, Help("which pairs", "EXPR")] = "score"
    """Column or expression to rank by, called value below."""
    length_control: Annotated[Literal["none", "residual"], Help("which pairs", "NAME")] = "none"
    """residual: subtract the effect of length on value."""
    pareto: Annotated[Names, Help("which pairs", "COLUMN")] = ()
    """Chosen must be no worse in any of these, and better in one."""
    min_margin: Annotated[Mapping[str, Finite], BeforeValidator(_named), Help("which pairs", "COLUMN=X")] = {}
    """Chosen must exceed rejected by X in this column, or in value."""
    constraint: Annotated[Names, Help("which pairs", "EXPR")] = ()
    """Conditions on chosen.COLUMN or rejected.COLUMN."""
    max_length_ratio: Annotated[Finite | None, Help("which pairs", "X")] = Field(None, ge=1)
    """Largest ratio of the longer response's tokens to the shorter's."""
    max_pairs: Annotated[int | None, Help("which pairs", "N")] = Field(None, ge=1)
    """Keep at most N pairs per prompt, those with the largest margin."""

    min_candidates: Annotated[int, Help("which prompts", "N")] = Field(2, ge=2)
    """Drop prompts with fewer scored candidates."""
    near_duplicates: Annotated[Finite | None, Help("which prompts", "X")] = Field(None, gt=0, le=1)
    """Keep one of the prompts this similar (MinHash Jaccard, word 3-grams)."""
    exclude: Annotated[Places, Help("which prompts", "DATASET")] = ()
    """Drop prompts that are in these outputs of mine, label or score."""
    decontaminate: Annotated[Places, Help("which prompts", "URI")] = ()
    """Drop prompts sharing an n-gram, even one of a template, with these .parquet, .jsonl, .txt files."""
    ngram: Annotated[int, Help("which prompts", "N")] = Field(13, ge=1)
    """Words per n-gram; in Chinese, 2 characters are a word."""
    test_fraction: Annotated[Finite, Help("which prompts", "X")] = Field(0, ge=0, lt=1)
    """Share of the prompts to put in the test split."""
    seed: Annotated[int, Help("which prompts", "N")] = 0
    """Seed for best-random and for the train/test split."""

    keep: Annotated[Names, Help("what is written", "COLUMN")] = ()
    """Columns to copy, as chosen_COLUMN and rejected_COLUMN."""
    layout: Annotated[Literal["trl", "llama3-ultrafeedback-armorm"], Help("what is written", "NAME")] = "trl"
    """trl, or llama3-ultrafeedback-armorm."""
    append: Annotated[bool, Help("what is written")] = False
    """Add what was scored since the last run to an existing dataset."""


class FilterOptions(DatasetOptions):
    """Keep the scored rows that satisfy conditions."""

    where: Annotated[Names, Help("which rows", "EXPR")] = ()
    """Conditions that must all hold; q0.9 is a quantile of all rows."""
    per: Annotated[Names, Help("which rows", "COLUMN")] = ()
    """Take quantiles separately for each value of these columns."""
    top_k: Annotated[int | None, Help("which rows", "N")] = Field(None, ge=1)
    """Keep at most the N best of the rows of a group that pass."""
    group: Annotated[Names, Help("which rows", "COLUMN")] = ("prompt_id",)
    """With top-k: columns whose values define the groups."""
    by: Annotated[Name, Help("which rows", "EXPR")] = "score"
    """With top-k: what to rank by; the first row wins a tie."""

    text: Annotated[bool, Help("what is written")] = False
    """Add the messages, from the source shards if not kept."""
    append: Annotated[bool, Help("what is written")] = False
    """Add what was scored since the last run to an existing output."""


class ReweighOptions(DatasetOptions):
    """Make new scores from stored rewards and gates, from the scores of several models, or from labelled pairs."""

    weight: Annotated[
        Mapping[str, float], BeforeValidator(_named), Help("from one model", "OBJECTIVE=WEIGHT")
    ] = {}
    """Use these weights, and no others, for every prompt."""
    factor: Annotated[
        Mapping[str, float], BeforeValidator(_named), Help("from one model", "OBJECTIVE=FACTOR")
    ] = {}
    """Multiply the weight that the model gives to a reward."""
    mask: Annotated[Names, Help("from one model", "OBJECTIVE")] = ()
    """Leave these rewards out."""
    transform: Annotated[Place | None, Help("from one model", "FILE")] = None
    """JSON with another reward_transform_matrix; rows are input objectives."""
    length_penalty: Annotated[float | None, Help("from one model", "X")] = Field(None, allow_inf_nan=False)
    """Subtract X from the score for every token of the response."""
    ensemble: Annotated[
        Literal["mean", "min", "mean-std", "majority"] | None, Help("from several models")
    ] = None
    """mean, min or mean-std of the standardized scores, or majority: votes on the order within a row."""
    risk: Annotated[float, Help("from several models", "X")] = Field(1.0, ge=0, allow_inf_nan=False)
    """With mean-std: deviations between models to subtract."""

    fit_pairs: Annotated[Places, Help("from labelled pairs", "OUT")] = ()
    """Outputs of score with the roles chosen and rejected, to fit to."""
    fit: Annotated[Literal["weights", "temperature"], Help("from labelled pairs")] = "weights"
    """A weight of each reward, or one factor of the score."""
    test_fraction: Annotated[Finite, Help("from labelled pairs", "X")] = Field(0.2, gt=0, lt=1)
    """Share of the prompts to measure on instead."""
    folds: Annotated[int, Help("from labelled pairs", "N")] = Field(5, ge=2)
    """Folds of prompts by which the L2 penalty of weights is chosen."""
    seed: Annotated[int, Help("from labelled pairs", "N")] = 0
    """Seed for the held-out prompts and the folds."""

    append: Annotated[bool, Help("what is written")] = False
    """Add what was scored since the last run to an existing output."""


class LabelOptions(DatasetOptions):
    """Make labels from scores, to train on."""

    shape: Annotated[Literal["candidates", "pairs", "sft"], Help("which rows")] = "candidates"
    """A row per candidate, pair, or best response."""
    best: Annotated[int, Help("which rows", "N")] = Field(1, ge=1)
    """With sft: keep the N best responses to a prompt."""
    where: Annotated[Names, Help("which rows", "EXPR")] = ()
    """Conditions that a candidate must satisfy."""
    min_candidates: Annotated[int, Help("which rows", "N")] = Field(1, ge=1)
    """Drop prompts with fewer scored candidates."""
    test_fraction: Annotated[Finite, Help("which rows", "X")] = Field(0, ge=0, lt=1)
    """Share of the prompts to put in the test split."""
    seed: Annotated[int, Help("which rows", "N")] = 0
    """Seed for the train/test split."""

    scale: Annotated[Literal["raw", "standardized", "original"], Help("which labels")] = "raw"
    """As stored, standardized, or in the units of the raters."""
    per: Annotated[Names, Help("which labels", "COLUMN")] = ()
    """With standardized: do so separately for each value of these columns."""
    rescale: Annotated[
        Mapping[str, str], BeforeValidator(_named), Help("which labels", "OBJECTIVE=FACTOR:OFFSET")
    ] = {}
    """With original: for objectives other than HelpSteer's (5:-0.5)."""
    temperature: Annotated[Finite | None, Help("which labels", "X")] = Field(None, gt=0)
    """For probabilities; default: fitted on chosen/rejected pairs, else 1."""

    keep: Annotated[Names, Help("what is written", "COLUMN")] = ()
    """Columns to copy, with candidates and sft."""
    text: Annotated[bool, Help("what is written")] = True
    """Add the messages, from the source shards if not kept."""
    append: Annotated[bool, Help("what is written")] = False
    """Add what was scored since the last run to an existing dataset."""
