"""A candidate beside the others of its prompt: its rank, and which objectives separate it from the best, as text."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from armo_ray.errors import ConfigError
from armo_ray.explain.find import find
from armo_ray.explain.table import Sibling, siblings
from armo_ray.formatting.numbers import number
from armo_ray.outputs.schema import coefficients, footer, vectors

_SHOWN = 5  # best candidates
_OBJECTIVES = 8


class Term(NamedTuple):
    """What an objective adds to the difference between two scores."""

    name: str
    difference: float
    coefficient: float | None  # None where the score is no weighted sum
    own: float  # reward
    other: float


def contrast(uri: str, scores: pa.Table) -> Iterator[str]:
    """The siblings of a row of scores with its metadata, line by line.

    The other rows of the output are read for this. If they cannot be, a line says why.
    """
    row_id, prompt_id = scores["row_id"][0].as_py(), scores["prompt_id"][0].as_py()
    try:
        candidates = siblings(uri, prompt_id)
        others = [sibling for sibling in candidates if sibling.row_id != row_id]
        other = find(uri, others[0].row_id).scores if others else None
    except (ConfigError, RuntimeError, OSError) as error:
        yield f"siblings   not shown: {error}"
        return
    own = next((sibling for sibling in candidates if sibling.row_id == row_id), None)
    if own is None:
        yield "siblings   not shown: the row is no longer in the output"
        return
    if other is None:
        yield "siblings   none: no other candidate of this prompt is in the output"
        return
    gap = own.score - others[0].score
    side = "equal to" if gap == 0 else f"{abs(gap):.6f} {'below' if gap < 0 else 'above'}"
    which = "the best" if own.rank > 1 else "the best of the others"
    yield f"siblings   rank {own.rank} of {len(candidates)} by score, {side} {which}"
    yield from _ranking(candidates, own)
    yield ""
    yield f"against    {others[0].row_id}, {which}"
    yield from _difference(scores, other, gap)


def _ranking(candidates: Sequence[Sibling], own: Sibling) -> Iterator[str]:
    """The best candidates and this one."""
    yield f"{'rank':>6} {'score':>10} {'tokens':>7}  {'role':<8}  row"
    before = -1
    for place, sibling in enumerate(candidates):
        if place >= _SHOWN and sibling is not own:
            continue
        if place > before + 1:
            yield f"{'':>6} ... {place - before - 1:,} more"
        mark = "   <- this one" if sibling is own else ""
        numbers = f"{sibling.rank:>6} {sibling.score:>10.6f} {number(sibling.num_response_tokens):>7}"
        yield f"{numbers}  {sibling.role:<8}  {sibling.row_id}{mark}"
        before = place
    if rest := len(candidates) - before - 1:
        yield f"{'':>6} ... {rest:,} more"


def _difference(scores: pa.Table, other: pa.Table, gap: float) -> Iterator[str]:
    """What makes the difference between two scores, the largest share first."""
    terms = sorted(_terms(scores, other), key=lambda term: -abs(term.difference))
    whole = sum(abs(term.difference) for term in terms) or 1.0
    shown = terms if len(terms) <= _OBJECTIVES else terms[: _OBJECTIVES - 1]
    width = max(len("difference"), *(len(term.name) for term in shown))

    def line(name: str, summed: Sequence[Term]) -> str:
        share = sum(abs(term.difference) for term in summed) / whole
        return f"{name:<{width}} {sum(term.difference for term in summed):>+11.6f} {share:>6.1%}"

    yield f"{'objective':<{width}} {'difference':>11} {'share':>6} {'coefficient':>12} {'reward':>10} {'other':>10}"
    for term in shown:
        weight = "" if term.coefficient is None else f"{term.coefficient:.4f}"
        yield f"{line(term.name, [term])} {weight:>12} {term.own:>10.4f} {term.other:>10.4f}"
    if rest := terms[len(shown) :]:
        yield line(f"{len(rest)} more", rest)
    yield f"{'score':<{width}} {gap:>+11.6f}"


def _terms(scores: pa.Table, other: pa.Table) -> Iterator[Term]:
    """The difference that each objective makes to the score or, where that is no weighted sum, the one of its rewards.

    Gates depend only on the prompt, so each difference is a coefficient times a difference of rewards. Where rounding
    or --truncate changed the gates, each row has its own coefficient: the sum is still the difference of the scores.
    """
    about = footer(scores.schema)
    names = [field.name for field in scores.schema.field("rewards").type]
    own, its = (vectors(table)[0].astype(np.float64) for table in (scores, other))
    if about.get("ensemble") in ("min", "mean-std"):
        yield from (Term(n, a - b, None, a, b) for n, a, b in zip(names, own, its, strict=True))
    else:
        weights, its_weights = (coefficients(table)[0].astype(np.float64) for table in (scores, other))
        columns = zip(names, own * weights - its * its_weights, weights, own, its, strict=True)
        yield from (Term(*column) for column in columns)
    if penalty := about.get("length_penalty"):
        own_tokens, its_tokens = (table["num_response_tokens"][0].as_py() for table in (scores, other))
        yield Term("tokens", penalty * (its_tokens - own_tokens), -penalty, own_tokens, its_tokens)
