"""How a row was scored, or why it was rejected, as text for people."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.explain.find import Found
from armo_ray.explain.tokens import Trace, trace
from armo_ray.explain.verdicts import judged, shortened
from armo_ray.model.family_file import recorded
from armo_ray.outputs.schema import coefficients, footer, recomputed, vectors

_BAR = 24
_AROUND = 6  # tokens shown on either side of a marked one
_RAW = 1200  # characters shown of a rejected row
_TOLERANCE = 1e-4

ADVICE = {
    "unreadable_shard": "replace it with a complete file; the next run scores it",
    "malformed_row": "fix the row in a new shard, or name its columns with --layout and --column",
    "unsupported_content": "score into a new output with --tool-calls text: tool calls and reasoning become text",
    "unread_column": "score into a new output with --column NAME=COLUMN to read the column, or --ignore COLUMN",
    "skipped": "--winner skips such rows; score into a new output if the value means something else",
    "empty_prompt": "a response without a prompt has no score; add a prompt in a new shard, or leave the row out",
    "empty_response": "an empty response has no score; add its text in a new shard, or leave it out",
    "no_answer_turn": "end the conversation with the assistant turn to score, in a new shard",
    "too_long": "score into a new output with a larger --max-length, if the model has one",
    "non_finite_score": "score into a new output with --dtype bfloat16 or float32, which overflow less",
    "poison": "it killed its worker twice or made it fail; try it alone with a smaller --token-budget or --max-length",
    "unparsable": "no verdict can be read from what the judge wrote: ask again with --retry unparsable, or change the "
    "judge file's prompt or pattern in a new output",
    "refused": "the judge refused to answer: use another judge for such rows; --retry refused asks again",
    "cut_off": "the judge ran out of tokens: judge into a new output with a larger max_tokens in the judge file",
    "context_overflow": "longer than the context of the judge: serve the model with a larger one, then --retry "
    "context_overflow",
    "endpoint_error": "the endpoint failed on this request: once that is mended, --retry endpoint_error asks again",
}


def lines(found: Found, model: str | None, all_tokens: bool) -> Iterator[str]:
    """What is known about a row, line by line; `model` replaces the model that the output names."""
    if found.scores is None:
        yield from _rejected(found)
        return
    (row,) = found.scores.drop_columns(["rewards", "gating"]).to_pylist()
    yield f"row        {row['row_id']}: {row['role']}, candidate {row['candidate']} of row {row['source_row']}"
    yield f"source     {row['source']}"
    about = footer(found.scores.schema)
    yield f"model      {about['model']} ({about['model_family']}, {about['dtype']})"
    yield f"prompt     {row['prompt_id']}"
    yield f"flags      {', '.join(row['flags']) or 'none'}"
    yield ""
    if row.get("verdicts") is not None:
        yield from judged(row)
    else:
        try:
            yield from _tokens(trace(found, model), row, all_tokens)
        except ConfigError as error:
            yield f"tokens     not shown: {error}"
    yield ""
    yield from _steps(row)
    yield from _sum(found.scores)


def _rejected(found: Found) -> Iterator[str]:
    for reject in found.rejects:
        which = "the whole row" if reject["candidate"] is None else f"candidate {reject['candidate']}"
        yield f"rejected   {which} of row {reject['source_row']} of {reject['source']}"
        yield f"reason     {reject['reason']}: {reject['detail']}"
        yield f"what to do {_advice(found, reject['reason'])}"
    raw = found.rejects[0]["raw"]
    yield "row        " + ("was not read" if raw is None else repr(shortened(raw, _RAW)))


def _advice(found: Found, reason: str) -> str:
    identity, advice = found.run.identity, ADVICE[reason]
    if reason != "too_long":
        return advice
    if recorded(identity).text != "response":
        return f"{advice}; the text that family {identity['family']} reads cannot be cut"
    if identity["truncate"] != "none":
        return f"{advice}: there is not enough text to cut"
    return f"{advice}, or with --truncate left or middle"


def _tokens(traced: Trace, row: Mapping[str, Any], all_tokens: bool) -> Iterator[str]:
    before, (response,) = traced.candidate.shown()
    for message in [*before, response | {"role": "response"}]:
        yield f"{message['role']:<10} {shortened(message['content'])!r}"
    stored = (row["num_prompt_tokens"], row["num_response_tokens"])
    same = (
        "as stored" if traced.num_tokens == stored else f"but the output has {stored[0]:,} and {stored[1]:,}"
    )
    prompt_tokens, response_tokens = traced.num_tokens
    yield f"text       {traced.text_from}"
    yield f"tokens     {prompt_tokens:,} in the prompt and {response_tokens:,} in the response, {same}"
    if traced.comparisons:
        yield f"compared   {traced.comparisons} times with other responses; below, as A in the first comparison:"
    marks = dict(traced.marks)
    first = "the comparison begins" if traced.comparisons else "the response begins"
    marks[traced.num_before] = "; ".join(filter(None, (first, marks.get(traced.num_before))))
    yield from _listed(traced, marks, all_tokens)


def _listed(traced: Trace, marks: Mapping[int, str], all_tokens: bool) -> Iterator[str]:
    """The tokens at both ends and around marked ones, or all of them."""
    size = len(traced.ids)
    near = {at + k for at in (0, *marks, size - 1) for k in range(-_AROUND, _AROUND + 1)}
    shown = range(size) if all_tokens else sorted(at for at in near if 0 <= at < size)
    before = -1
    for at in shown:
        if at > before + 1:
            yield f"{'':>7} {'':>8}  ... {at - before - 1:,} more"
        mark = f"   <- {marks[at]}" if at in marks else ""
        yield f"{at:>7} {traced.ids[at]:>8}  {traced.pieces[at]}{mark}"
        before = at


def _steps(row: Mapping[str, Any]) -> Iterator[str]:
    if steps := row.get("step_scores"):
        for k, value in enumerate(steps, 1):
            yield f"step {k:<4} {value:>10.4f}  {'#' * round(_BAR * value)}"
        yield ""


def _sum(scores: pa.Table) -> Iterator[str]:
    """The terms of the score, the largest contribution first."""
    about, (values,) = footer(scores.schema), vectors(scores).astype(np.float64)
    names = [field.name for field in scores.schema.field("rewards").type]
    stored, again = float(scores["score"][0].as_py()), float(recomputed(scores)[0])
    width = max(len("objective"), *map(len, names))
    if about.get("ensemble") in ("min", "mean-std"):
        risk = f" with risk {about['risk']:g}" if about["ensemble"] == "mean-std" else ""
        yield f"{'model':<{width}} {'reward':>10}"
        yield from (f"{name:<{width}} {value:>10.4f}" for name, value in zip(names, values, strict=True))
        penalty = (about.get("length_penalty") or 0.0) * scores["num_response_tokens"][0].as_py()
        less = f", minus {penalty:.6f} for its length: {again:.6f}" if penalty else ""
        yield f"their {about['ensemble']}{risk} is {again + penalty:.6f}{less}{_compare(again, stored)}"
        return
    weights = coefficients(scores)[0].astype(np.float64)
    gates = vectors(scores, "gating")[0] if scores["gating"].null_count == 0 else [None] * len(names)
    entries = sorted(zip(values * weights, names, values, gates, weights, strict=True), key=lambda e: -e[0])
    most = max(abs(entry[0]) for entry in entries) or 1.0
    yield f"{'objective':<{width}} {'reward':>10} {'gate':>8} {'coefficient':>12} {'contribution':>13}"
    for product, name, value, gate, weight in entries:
        shown = "none" if gate is None else f"{gate:.4f}"
        bar = ("#" if product > 0 else "-") * round(_BAR * abs(product) / most)
        yield f"{name:<{width}} {value:>10.4f} {shown:>8} {weight:>12.4f} {product:>13.6f}  {bar}".rstrip()
    if penalty := about.get("length_penalty"):
        count = scores["num_response_tokens"][0].as_py()
        yield f"{f'{count:,} tokens, minus {penalty:g} each':<{width + 33}} {-penalty * count:>13.6f}"
    yield f"{'score':<{width + 33}} {again:>13.6f}{_compare(again, stored)}"


def _compare(again: float, stored: float) -> str:
    if np.isclose(again, stored, rtol=_TOLERANCE, atol=_TOLERANCE):
        return "  as stored"
    return f"  but the output has {stored:.6f}: check it with armo-ray verify"
