"""What a judge said of a candidate, as text for people."""

from collections.abc import Iterator, Mapping
from typing import Any

_TEXT = 300  # characters shown of a text


def judged(row: Mapping[str, Any]) -> Iterator[str]:
    """The texts that were judged, if they were kept, and every verdict with its text."""
    for message in (row.get("prompt") or []) + (row.get("response") or []):
        yield f"{message['role']:<10} {shortened(message['content'] or '')!r}"
    flips = row["order_flips"]
    yield f"verdicts   {len(row['verdicts'])}, agreement {row['agreement'] or 0:.3f}" + (
        "" if flips is None else f", order decides {flips:.1%} of its contests"
    )
    for verdict in row["verdicts"]:
        yield f"verdict    {_told(verdict)}"
        for name in ("reasoning", "text"):
            if verdict[name]:
                yield f"{name:<10} {shortened(verdict[name])!r}"


def _told(verdict: Mapping[str, Any]) -> str:
    """The value of a verdict, and of which call it is."""
    value = verdict["reason"] if verdict["value"] is None else f"{verdict['value']:g}"
    parts = [f"{value}"]
    if verdict["opponent"] is not None:
        parts.append(f"against candidate {verdict['opponent']}")
    if verdict["place"] is not None:
        parts.append(f"shown at place {verdict['place'] + 1}")
    parts.append(f"sample {verdict['sample']}")
    if verdict["label_mass"] is not None:
        parts.append(f"label mass {verdict['label_mass']:.3f}")
    tokens = f"{verdict['prompt_tokens'] or 0:,} + {verdict['completion_tokens'] or 0:,} tokens"
    return ", ".join([*parts, tokens, f"ended by {verdict['finish_reason'] or 'nothing told'}"])


def shortened(text: str, size: int = _TEXT) -> str:
    """A text without its middle, if it is long."""
    half = size // 2
    return (
        text if len(text) <= size else f"{text[:half]} [...{len(text) - 2 * half:,} more...] {text[-half:]}"
    )
