"""The tokens of an expression: words, numbers, text and signs; and errors that point at a token."""

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
    """A token of an expression."""

    kind: str  # a group of _TOKEN, or "end"
    text: str
    at: int  # index of its first character

    @property
    def word(self) -> str:
        """The token in lower case if it could be a keyword or sign, otherwise empty."""
        return self.text.lower() if self.kind in ("name", "sign") else ""


def tokenize(text: str) -> list[Token]:
    """The tokens of a text, followed by one for its end. Raises ConfigError for characters that form no token."""
    if wrong := re.search("[\0\ud800-\udfff]", text):
        point("a character that cannot be compared", text, wrong.start())
    tokens, at = [], 0
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            opened = text[at] in "'\""
            point("a quote that is not closed" if opened else "not part of an expression", text, at)
        if match.lastgroup != "space":
            tokens.append(Token(str(match.lastgroup), match.group(), at))
        at = match.end()
    return [*tokens, Token("end", "the end", len(text))]


def point(message: str, text: str, at: int) -> NoReturn:
    """Raise ConfigError with the text and a mark below index `at`."""
    shown = "".join(letter if letter.isprintable() else " " for letter in text)
    raise ConfigError(f"{message}\n  {shown}\n  {' ' * at}^")
