"""The Arrow schemas of the output. They are spelled out here and never inferred from data."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from armo_ray.judging.reasons import REASONS

SCHEMA_VERSION = 1
METADATA_KEY = b"armo_ray"

REJECT_REASONS = (
    "unreadable_shard",  # the shard, or the rest of it, cannot be read
    "malformed_row",  # does not fit the layout: wrong types, unknown roles, no text
    "unsupported_content",  # tool calls, reasoning, images or turns that the chat template cannot render
    "unread_column",  # a column that may belong to the conversation and that the layout does not read
    "skipped",  # set aside by --winner VALUE=skip
    "empty_prompt",
    "empty_response",
    "no_answer_turn",  # the conversation does not end with an assistant's turn
    "too_long",  # more than max_length tokens
    "non_finite_score",  # the model returned NaN or infinity
    "poison",  # killed the worker twice
    *REASONS,  # of judges
)

FLAGS = (
    "special_token_text",  # text spells a special token; encoded as plain text unless --special-tokens reference
    "truncated",
    "tie",  # neither response of the row is preferred
    "kept_value_lost:NAME",  # null in a kept column, because its type cannot hold the input's value
    "label_lost:NAME",  # missing label, because the input's value is not a number or is not of one response
    "odd_roles",  # two consecutive assistant turns, or a system message after the start
    "structured",  # has tools, tool calls or reasoning that the template renders; prompt and response have them as text
    "tool_calls_as_text",  # tool calls were rendered as text, by --tool-calls text
    "nulls_dropped",  # nulls were dropped from arguments or schemas: a Parquet struct has null for missing keys
    "no_step_marker",  # a process model sees one step: nothing in the response marks steps
    "empty_steps",  # empty steps of a response were left out
    "missing_verdicts",  # some calls of a judge gave no verdict, but enough others did
)

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

CANDIDATE_FIELDS = (
    pa.field("prompt_id", pa.string()),  # 32 hex digits, a hash of the rendered prompt
    pa.field("source_row", pa.int64()),  # 0-based in the shard; line number in JSONL
    pa.field("candidate", pa.int32()),  # 0-based in the row
    pa.field("role", pa.string()),  # chosen, rejected, response
    pa.field("num_prompt_tokens", pa.int32()),
    pa.field("num_response_tokens", pa.int32()),
    pa.field("flags", pa.list_(pa.string())),  # values of FLAGS
)
TEXT_FIELDS = (pa.field("prompt", MESSAGES), pa.field("response", MESSAGES))

REJECTS = pa.schema(
    [
        ("source", pa.string()),
        ("source_row", pa.int64()),
        ("candidate", pa.int32()),  # null where the whole row failed
        ("role", pa.string()),
        ("reason", pa.string()),
        ("detail", pa.string()),
        ("raw", pa.string()),  # the columns read, as JSON; null if an earlier reject of the row has it
    ]
)

_ORDER = (
    "row_id",
    "prompt_id",
    "source",
    "source_row",
    "candidate",
    "role",
    "score",
    "rewards",
    "gating",
    "num_prompt_tokens",
    "num_response_tokens",
    "flags",
)
_SCORED = ("score", "rewards", "gating")  # columns that hidden states alone lack
STEP_SCORES = pa.field("step_scores", pa.list_(pa.float32()))  # only of process reward models

# only of judges
VERDICT = pa.struct(
    [
        ("text", pa.string()),  # what the judge wrote
        ("reasoning", pa.string()),  # if the server returns it apart
        ("finish_reason", pa.string()),
        ("value", pa.float32()),  # for this candidate: 1 win, 0.5 tie, 0 loss; or its rating
        ("opponent", pa.int32()),  # the other candidate of a pair, as numbered in the row
        ("place", pa.int32()),  # where it was shown: 0 first
        ("order", pa.int32()),  # 0 as given, 1 swapped
        ("sample", pa.int32()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("label_mass", pa.float32()),  # probability that all labels hold, if probabilities of tokens are read
        ("reason", pa.string()),  # why there is no value
    ]
)
JUDGE_FIELDS = (
    pa.field("verdicts", pa.list_(VERDICT)),  # one for each call about the candidate
    pa.field("agreement", pa.float32()),  # fraction of the verdicts that equal the most frequent one
    pa.field(
        "order_flips", pa.float32()
    ),  # fraction of its contests in which the order decides; null for ratings
)

# only of ensembles: share of the members' votes on the order of the candidate and another of its row that are not
# those of the majority; null without another
DISAGREEMENT = pa.field("disagreement", pa.float32())

# only where hidden states are kept: at the response's token that the head reads, and at the prompt's
HIDDEN_LAST, HIDDEN_GATE = "hidden_last", "hidden_gate"
HIDDEN_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}  # of each number, by its type

OWN_FIELDS = (STEP_SCORES, *JUDGE_FIELDS, DISAGREEMENT)  # columns that only some kinds of model have
RESERVED = frozenset((*_ORDER, *(field.name for field in OWN_FIELDS), HIDDEN_LAST, "prompt", "response"))

# names that the queries of commands that read scores use beside their columns, DuckDB's own among them
OF_QUERIES = frozenset(
    (
        *("file_row_number", "file_index", "__file", "__part", "__row", "__output", "__id"),
        *("__split", "__text", "__rejected"),
    )
)


def hidden_field(name: str, size: int, dtype: str) -> pa.Field:
    """The column of hidden states: bytes of `size` little-endian numbers; bfloat16 has the upper half of a float32."""
    return pa.field(name, pa.binary(size * HIDDEN_BYTES[dtype]))


def prompts_schema(size: int, dtype: str, metadata: Mapping[bytes, bytes]) -> pa.Schema:
    """Schema of a part of prompts: the hidden state at the gate's token, once for each prompt of a unit."""
    return pa.schema(
        [pa.field("prompt_id", pa.string()), hidden_field(HIDDEN_GATE, size, dtype)], metadata=metadata
    )


def scores_schema(
    reward_names: Sequence[str] | None,
    kept: pa.Schema,
    keep_text: bool,
    metadata: Mapping[str, Any],
    own: Sequence[pa.Field] = (),
) -> pa.Schema:
    """Schema of a part of scores: the fixed columns, those of a kind of model, then those kept from the input.

    `rewards` and `gating` are structs of float32 with one field per reward name; `gating` is null if the model has
    no gates. Without reward names, there are no scores either: of hidden states alone. `metadata` goes into the footer
    as JSON under the key armo_ray.
    """
    order = [name for name in _ORDER if reward_names is not None or name not in _SCORED]
    vector = pa.struct([(name, pa.float32()) for name in reward_names or ()])
    fields = {f.name: f for f in CANDIDATE_FIELDS} | {
        "row_id": pa.field("row_id", pa.string()),
        "source": pa.field("source", pa.string()),
        "score": pa.field("score", pa.float32()),
        "rewards": pa.field("rewards", vector),
        "gating": pa.field("gating", vector),
    }
    text = TEXT_FIELDS if keep_text else ()
    return pa.schema(
        [*(fields[name] for name in order), *own, *kept, *text],
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )


def footer(schema: pa.Schema) -> dict[str, Any]:
    """The metadata in the footer of a part of scores: model, revision, fingerprints, dtype, transform, versions.

    Raises ValueError if there is none.
    """
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise ValueError(
            "no armo_ray metadata: this is not the schema of a part of scores as armo-ray wrote it"
        )
    content: dict[str, Any] = json.loads(raw)
    return content


def coefficients(scores: pa.Table) -> npt.NDArray[np.float32]:
    """The weight of every reward in every score, float32 of shape (rows, rewards).

    For a model with gates this is gating · transformᵀ; for one without, and for scores reweighed with fixed weights, it
    is the same in every row. Factors of reweighed scores are applied. `recomputed` computes scores from these weights.

    Takes rows of scores with their metadata, as pyarrow reads them. Raises ValueError without metadata, and for an
    ensemble by min or mean-std, which has no weights.
    """
    content = footer(scores.schema)
    if content.get("ensemble") in ("min", "mean-std"):
        raise ValueError(f"the {content['ensemble']} of several scores has no weights; use recomputed")
    if content.get("fixed_weights") is not None:
        weights = np.tile(np.array(content["fixed_weights"], np.float32), (scores.num_rows, 1))
    else:
        weights = vectors(scores, "gating") @ np.array(content["reward_transform_matrix"], np.float32).T
    return weights * np.array(content.get("objective_factors") or 1.0, np.float32)


def recomputed(scores: pa.Table) -> npt.NDArray[np.float32]:
    """The scores computed again from the rewards and metadata of rows, float32 of shape (rows,).

    A score is Σ rewards · coefficients. In an ensemble the rewards are the scores of its models, and the score is
    their mean, their minimum, or their mean minus `risk` standard deviations. Reweighed scores may subtract a penalty
    per token of the response.
    """
    content, values = footer(scores.schema), vectors(scores).astype(np.float64)
    if content.get("ensemble") == "min":
        total = values.min(axis=1)
    elif content.get("ensemble") == "mean-std":
        total = values.mean(axis=1) - content["risk"] * values.std(axis=1)
    else:
        total = (values * coefficients(scores)).sum(axis=1)
    if penalty := content.get("length_penalty"):
        total = total - penalty * scores["num_response_tokens"].to_numpy()
    result: npt.NDArray[np.float32] = total.astype(np.float32)
    return result


def vectors(scores: pa.Table, column: str = "rewards") -> npt.NDArray[np.float32]:
    """The structs of `rewards` or `gating` as a float32 array of shape (rows, rewards)."""
    structs = scores[column].combine_chunks()
    fields = [structs.field(i).to_numpy(zero_copy_only=False) for i in range(structs.type.num_fields)]
    return np.stack(fields, axis=1).astype(np.float32)
