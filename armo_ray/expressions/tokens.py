"""The words, numbers, texts and signs of an expression, and errors that point at one of them."""

import re
from dataclasses import dataclass
from typing import NoReturn

from armo_ray.errors import ConfigError

_TOKEN = re.compile(
    r"""(?P<space>\s+)
      | (?P<quantile>q0?\.[0-9]+(?![\w.]))
      | (?P<number>(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | (?P<name>(?:[^\W\d]\w*|"(?:[^"]|"")+")(?:\.(?:[^\W\d]\w*|"(?:[^"]|"")+"))*)
      | (?P<text>'(?:[^']|'')*')
      | (?P<sign><=|>=|<>|!=|==|[-+*/()<>=,])""",
    re.VERBOSE,
)


@dataclass(frozen=True)
class Token:
    kind: str
    text: str
    at: int

    @property
    def word(self) -> str:
        """The keyword or sign that it is."""
        return self.text.lower() if self.kind in ("name", "sign") else ""


def tokenize(text: str) -> list[Token]:
    """The tokens of a text, and one for its end."""
    if wrong := re.search("[\0\ud800-\udfff]", text):
        point("a character that cannot be compared", text, wrong.start())
    tokens, at = [], 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            opened = text[at] in "'\""
            point("a quote that is not closed" if opened else "not part of an expression", text, at)
        if found.lastgroup != "space":
            tokens.append(Token(str(found.lastgroup), found.group(), at))
        at = found.end()
    return [*tokens, Token("end", "the end", len(text))]


def point(message: str, text: str, at: int) -> NoReturn:
    """Raise ConfigError with a mark below the place in the text."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    raise ConfigError(f"{message}\n  {shown}\n  {' ' * at}^")
