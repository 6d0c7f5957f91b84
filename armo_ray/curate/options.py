"""The options of the commands that read scores, one frozen model each."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from armo_ray.options import Finite, Name, Names, Place, Places
from armo_ray.outputs.options import DatasetOptions


def _named(value: Any) -> Any:
    """["a=0.5"] as {"a": "0.5"}; anything but texts NAME=VALUE as it is."""
    value = [value] if isinstance(value, str) else value
    if not isinstance(value, list | tuple):
        return value
    pairs = [str(entry).rpartition("=") for entry in value]
    if wrong := [text for text, (_, sign, _) in zip(value, pairs, strict=True) if not sign]:
        raise ValueError(f"expected NAME=VALUE, got {wrong[0]!r}")
    return {name: number for name, _, number in pairs}


class MineOptions(DatasetOptions):
    """Preference pairs from the candidates of each prompt."""

    strategy: Literal["best-worst", "best-vs-sigma", "top-k-bottom-k", "all-above-margin", "best-random"] = (
        "best-worst"
    )
    """Which pairs of a prompt's candidates are taken."""
    k: int = Field(2, ge=1)
    """With top-k-bottom-k: how many of the best are paired with how many of the worst."""
    rank_by: Name = "score"
    """What ranks candidates, called value: a column or an expression such as 0.7*score + 0.3*ultrafeedback_honesty."""
    length_control: Literal["none", "residual"] = "none"
    """residual: take from value what longer answers to one prompt gain by their length (least squares)."""
    pareto: Names = ()
    """Columns in which chosen must be no worse than rejected, and in one of them better."""
    min_margin: Mapping[str, Finite] = {}
    """COLUMN=X, or value=X: chosen must have X more than rejected."""
    constraint: Names = ()
    """Expressions over chosen.COLUMN or rejected.COLUMN that a candidate must meet to be on that side."""
    max_length_ratio: Finite | None = Field(None, ge=1)
    """Of the longer answer's tokens to the shorter's."""
    min_candidates: int = Field(2, ge=2)
    """Prompts with fewer scored candidates give no pair."""
    max_pairs: int | None = Field(None, ge=1)
    """Pairs of a prompt that are kept: those with the largest margin of value."""
    near_duplicates: Finite | None = Field(None, gt=0, le=1)
    """Keep one of prompts whose runs of 3 words and signs are, by MinHash, at least this similar (Jaccard); where a
    script has no spaces, as Chinese, Japanese, Thai, Lao, Khmer and Burmese have none, of 3 characters."""
    decontaminate: Places = ()
    """Benchmark files (.parquet, .jsonl, .txt): prompts that share an n-gram of words with them are removed."""
    ngram: int = Field(13, ge=1)
    """Words of such an n-gram; shorter texts of a benchmark count as one, of fewer than 5 only as a whole prompt. Where
    a script has no spaces, 2 characters of Chinese or Japanese, or 3 of others, count as a word."""
    test_fraction: Finite = Field(0, ge=0, lt=1)
    """Share of the prompts, by a hash of each, whose pairs go to the split test."""
    seed: int = 0
    """Of the hashes behind best-random and --test-fraction."""
    keep: Names = ()
    """Columns of the scores to carry, as chosen_COLUMN and rejected_COLUMN."""
    layout: Literal["trl", "llama3-ultrafeedback-armorm"] = "trl"
    """Columns of the pairs: those that TRL reads, or those of princeton-nlp/llama3-ultrafeedback-armorm."""

    @field_validator("min_margin", mode="before")
    @classmethod
    def _paired(cls, value: Any) -> Any:
        """["a=0.5"] as {"a": "0.5"}."""
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, list | tuple):
            return value
        pairs = [str(entry).rpartition("=") for entry in value]
        if not all(name.strip() for name, _, _ in pairs):
            raise ValueError("expected COLUMN=X")
        return {name.strip(): number for name, _, number in pairs}


class FilterOptions(DatasetOptions):
    """The rows of a corpus that pass some rules."""

    where: Names = ()
    """Expressions that must all hold: "score >= q0.9 and helpsteer_verbosity < 0.6"; quantiles are of all rows."""
    per: Names = ()
    """Columns: quantiles are those of the rows that are equal in them."""
    top_k: int | None = Field(None, ge=1)
    """Keep at most this many of the rows of a group that pass, the best of them."""
    group: Names = ("prompt_id",)
    """With top-k: columns in which the rows of a group are equal."""
    by: Name = "score"
    """With top-k: the column or expression that is largest for the best; of equal rows the first is better."""


class ReweighOptions(DatasetOptions):
    """Other scores from the same rewards and gates."""

    weight: Annotated[Mapping[str, float], BeforeValidator(_named)] = {}
    """OBJECTIVE=WEIGHT: the score is the weighted sum of these rewards alone, the same for every prompt."""
    factor: Annotated[Mapping[str, float], BeforeValidator(_named)] = {}
    """OBJECTIVE=FACTOR: multiplies the weight that the model gives a reward."""
    mask: Names = ()
    """Objectives whose rewards are left out."""
    transform: Place | None = None
    """JSON file with another reward_transform_matrix; its rows are the input objectives."""
    length_penalty: float | None = Field(None, allow_inf_nan=False)
    """Taken from the score for every token of the response."""
    ensemble: Literal["mean", "min", "mean-std"] | None = None
    """Of the outputs of several models: what becomes of their standardized scores; the other options are for one."""
    risk: float = Field(1.0, ge=0, allow_inf_nan=False)
    """With mean-std: the mean less so many deviations between the models."""


class LabelOptions(DatasetOptions):
    """Labels of candidates to learn from."""

    shape: Literal["candidates", "pairs", "sft"] = "candidates"
    """A row per candidate with its labels, per pair with its probability, or per best answer of a prompt."""
    scale: Literal["raw", "standardized", "original"] = "raw"
    """Of the labels: as they are; less their mean and over their deviation; or as their raters gave them."""
    per: Names = ()
    """With standardized: columns; mean and deviation are those of the rows that are equal in them."""
    rescale: Annotated[Mapping[str, str], BeforeValidator(_named)] = {}
    """With original: OBJECTIVE=FACTOR:OFFSET for more than the HelpSteer objectives, which are 5 r - 0.5."""
    temperature: Finite | None = Field(None, gt=0)
    """Of probabilities; default: fitted on pairs with the roles chosen and rejected, 1 where there are none."""
    best: int = Field(1, ge=1)
    """With sft: answers of a prompt that are kept, the best first."""
    where: Names = ()
    """Expressions that must hold for a candidate to give a row."""
    min_candidates: int = Field(1, ge=1)
    """Prompts with fewer scored candidates give no row."""
    keep: Names = ()
    """Columns of the scores to carry, of candidates and sft."""
    text: bool = True
    """Add the messages; read again from the source shards where the scores have none."""
    test_fraction: Finite = Field(0, ge=0, lt=1)
    """Share of the prompts, by a hash of each, whose rows go to the split test."""
    seed: int = 0
    """Of that hash."""
