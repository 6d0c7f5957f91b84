"""Reward models behind an endpoint, as judges whose verdict is the numbers that the server returns."""

from armo_ray.endpoint.rewards import PROTOCOLS
from armo_ray.judging.specification import Judge, Message, Parse
from armo_ray.judging.template import template_of


def reward_server(protocol: str) -> Judge:
    """The judge that reads the numbers of a protocol of `endpoint.rewards`."""
    weights = PROTOCOLS[protocol].weights or {"reward": 1.0}
    return Judge(
        name=protocol,
        unit="one",
        messages=(Message("conversation", template_of("")), Message("assistant", template_of("{response}"))),
        parse=Parse(kind="values"),
        is_seeded=False,
        reward_names=tuple(weights),
        weights=tuple(weights.values()),
    )


def takes_text(protocol: str) -> bool:
    """Whether the server takes the text of a whole conversation, not messages."""
    return protocol in PROTOCOLS and PROTOCOLS[protocol].body is not None
