"""The Arrow schemas of the output, written out. Nothing about them is inferred from what is written."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

SCHEMA_VERSION = 1
METADATA_KEY = b"armo_ray"

REJECT_REASONS = (
    "unreadable_shard",  # the shard, or the rest of it, cannot be read
    "malformed_row",  # not of the layout: wrong types, unknown roles, not text
    "unsupported_content",  # tool calls, reasoning, images or turns that the chat template does not render
    "unread_column",  # a column that may hold a part of the conversation, and that the layout does not read
    "skipped",  # by --winner VALUE=skip
    "empty_prompt",
    "empty_response",
    "no_answer_turn",  # the conversation does not end with an assistant's turn
    "too_long",  # more than max_length tokens
    "non_finite_score",  # the model returned NaN or infinity
    "poison",  # killed the worker twice
)

FLAGS = (
    "special_token_text",  # a text spells a special token; it is read as text, unless --special-tokens reference
    "truncated",
    "tie",  # neither answer of the row is preferred
    "kept_value_lost:NAME",  # a kept column cannot hold what the input has, and is null
    "odd_roles",  # two turns of the assistant in a row, or a system message after the start
    "structured",  # with tools, calls or reasoning that the template renders; prompt and response have them as text
    "tool_calls_as_text",  # by --tool-calls text
    "nulls_dropped",  # of arguments or schemas: a struct of Parquet has null for what a row lacks
    "no_step_marker",  # one step to a process model: nothing cuts the answer
    "empty_steps",  # left out
)

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

CANDIDATE_FIELDS = (
    pa.field("prompt_id", pa.string()),  # 32 hex digits, a hash of the rendered prompt
    pa.field("source_row", pa.int64()),  # 0-based in the shard; line number in JSONL
    pa.field("candidate", pa.int32()),  # 0-based in the row
    pa.field("role", pa.string()),  # chosen, rejected, response
    pa.field("num_prompt_tokens", pa.int32()),
    pa.field("num_response_tokens", pa.int32()),
    pa.field("flags", pa.list_(pa.string())),  # of FLAGS
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
        (
            "raw",
            pa.string(),
        ),  # the row as JSON, of the columns read; null where an earlier reject of the row has it
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
RESERVED = frozenset((*_ORDER, "step_scores", "prompt", "response"))
STEP_SCORES = pa.field("step_scores", pa.list_(pa.float32()))  # of a process reward model


def scores_schema(
    reward_names: Sequence[str],
    carried: pa.Schema,
    keep_text: bool,
    metadata: Mapping[str, Any],
    step_scores: bool = False,
) -> pa.Schema:
    """Columns of a scores part: the fixed ones, then those carried from the input.

    `rewards` and `gating` are structs of float32 with one field per reward name; `gating` is null where the
    model has none. `metadata` goes into the footer as JSON under the key armo_ray.
    """
    vector = pa.struct([(name, pa.float32()) for name in reward_names])
    fields = {f.name: f for f in CANDIDATE_FIELDS} | {
        "row_id": pa.field("row_id", pa.string()),
        "source": pa.field("source", pa.string()),
        "score": pa.field("score", pa.float32()),
        "rewards": pa.field("rewards", vector),
        "gating": pa.field("gating", vector),
    }
    steps = (STEP_SCORES,) if step_scores else ()
    text = TEXT_FIELDS if keep_text else ()
    return pa.schema(
        [*(fields[name] for name in _ORDER), *steps, *carried, *text],
        metadata={METADATA_KEY: json.dumps(metadata, sort_keys=True)},
    )


def footer(schema: pa.Schema) -> dict[str, Any]:
    """What the footer of a scores part says: model, revision, fingerprints, dtype, transform, versions."""
    raw = (schema.metadata or {}).get(METADATA_KEY)
    if raw is None:
        raise ValueError("no armo_ray metadata: not the schema of a scores part as it was written")
    content: dict[str, Any] = json.loads(raw)
    return content


def coefficients(scores: pa.Table) -> npt.NDArray[np.float32]:
    """The weight of every reward in every score, shape (rows, objectives), float32: gating · transformᵀ of a model
    with gates, and the same in every row of one without.

    Of reweighed scores: the fixed weights if there are any, and each times the factor of its objective.
    `recomputed` puts scores together with them. Takes rows of scores with the metadata they were written
    with, as pyarrow reads them; raises ValueError without it.
    """
    content = footer(scores.schema)
    if content.get("ensemble") in ("min", "mean-std"):
        raise ValueError(f"the {content['ensemble']} of several scores has no weights; use recomputed")
    if content.get("fixed_weights") is not None:
        found = np.tile(np.array(content["fixed_weights"], np.float32), (scores.num_rows, 1))
    else:
        found = vectors(scores, "gating") @ np.array(content["reward_transform_matrix"], np.float32).T
    return found * np.array(content.get("objective_factors") or 1.0, np.float32)


def recomputed(scores: pa.Table) -> npt.NDArray[np.float32]:
    """The scores that the rewards of some rows, and the metadata they were written with, make, shape (rows,).

    Σ rewards · coefficients; of an ensemble, whose rewards are the scores of its models, their mean, their least,
    or their mean less `risk` times their deviation; of reweighed scores, less a penalty for every token of the
    response.
    """
    content, values = footer(scores.schema), vectors(scores).astype(np.float64)
    if content.get("ensemble") == "min":
        total = values.min(axis=1)
    elif content.get("ensemble") == "mean-std":
        total = values.mean(axis=1) - content["risk"] * values.std(axis=1)
    else:
        total = (values * coefficients(scores)).sum(axis=1)
    penalty = content.get("length_penalty") or 0.0
    found: npt.NDArray[np.float32] = (total - penalty * scores["num_response_tokens"].to_numpy()).astype(
        np.float32
    )
    return found


def vectors(scores: pa.Table, column: str = "rewards") -> npt.NDArray[np.float32]:
    """The structs of `rewards` or `gating` as an array, shape (rows, objectives), float32."""
    structs = scores[column].combine_chunks()
    fields = [structs.field(i).to_numpy(zero_copy_only=False) for i in range(structs.type.num_fields)]
    return np.stack(fields, axis=1).astype(np.float32)
