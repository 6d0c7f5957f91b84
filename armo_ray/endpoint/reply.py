"""What an endpoint returned for one request."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# the most likely tokens at one place of the reply, with their log-probabilities; the generated one comes first
Likely = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Reply:
    """A finished request."""

    text: str  # of the message, without its reasoning
    finish_reason: str  # stop, length, content_filter, ...
    model: str  # as the server names it
    prompt_tokens: int
    completion_tokens: int
    reasoning: str = ""  # if the server returns it apart from the text
    refusal: str = ""  # the server's own words, if it refused
    likely: tuple[Likely, ...] = ()  # for every generated token, if the request asked for log-probabilities
    values: Mapping[str, float] = field(default_factory=dict)  # of a reward model: its numbers by name

    def to_dict(self) -> dict[str, Any]:
        """The values as a journal holds them, without those that are empty."""
        pairs = ((name, getattr(self, name)) for name in self.__slots__)
        return {name: value for name, value in pairs if value or name in _ALWAYS}

    @staticmethod
    def from_dict(values: Mapping[str, Any]) -> "Reply":
        likely = tuple(
            tuple((str(token), float(p)) for token, p in place) for place in values.get("likely", ())
        )
        return Reply(**{**values, "likely": likely})


_ALWAYS = ("text", "finish_reason", "model", "prompt_tokens", "completion_tokens")


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that has no reply. It is sent again if its unit is done again."""

    reason: str  # a reject reason: context_overflow or endpoint_error
    detail: str


class EndpointRefused(RuntimeError):  # noqa: N818 - the endpoint did it
    """No request to this endpoint can succeed, or its replies cannot be trusted: the run must stop."""
