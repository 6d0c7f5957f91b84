"""Splits text into words for comparison; scripts without spaces between words are split into characters.

In Chinese, Japanese, Thai, Lao, Khmer, Burmese and related scripts a token is a character with its marks. Two
characters of Chinese or Japanese, or three of the others, count as one word.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence

_TWO = (  # Han, kana, bopomofo and Yi
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u3035\u3038-\u303c\u3041-\u3096\u309d-\u309f\u30a1-\u30fa"
    "\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua48c\uf900-\ufaff"
    "\uff66-\uff9f\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
_THREE = (  # Thai, Lao, Burmese, Khmer, Tai and Javanese scripts, without their digits
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecf\u0edc-\u0edf\u1000-\u103f\u104c-\u108f\u109a-\u109d\u1780-\u17d3\u17d7"
    "\u17dc\u17dd\u1950-\u1974\u1980-\u19c9\u1a20-\u1a7f\u1b00-\u1b4c\ua980-\ua9c0\ua9e0-\ua9ef\ua9fa-\ua9fe"
    "\uaa60-\uaadf"
)
_SPACELESS = re.compile(f"[{_TWO}{_THREE}]")
# widths of tokens and words, in sixths of a word
_WIDTHS = ((re.compile(f"[{_TWO}]"), 3), (re.compile(f"[{_THREE}]"), 2))
_WORD_WIDTH = 6
# a letter of such a script with its marks, which \\w does not match; a word of another script; any other sign
_TOKEN = re.compile(
    rf"[{_TWO}][\u3099\u309a]*|[{_THREE}](?:(?!\w)[{_THREE}])*|[^\W{_TWO}{_THREE}]+|(?P<sign>[^\w\s])"
)
_JOINERS = re.compile("[\u200b-\u200d\u2060\ufeff]")  # may stand between words and do not change the text
_BETWEEN = re.compile(f"(?<=[{_TWO}{_THREE}]) (?=[{_TWO}{_THREE}])")


def words(text: str) -> list[str]:
    """The words, numbers and characters of a text, lowercased and without punctuation."""
    return [match.group() for match in _TOKEN.finditer(_plain(text)) if match.lastgroup is None]


def words_and_signs(text: str) -> list[str]:
    """Like `words`, with every other sign too: only the sign distinguishes 2 + 2 from 2 - 2."""
    return [match.group() for match in _TOKEN.finditer(_plain(text))]


def _plain(text: str) -> str:
    """Lowercased; text in a script without spaces is also normalized to one spelling (NFKC)."""
    if text.isascii() or not _SPACELESS.search(text):
        return text.lower()
    return unicodedata.normalize("NFKC", _JOINERS.sub("", text)).lower()


def shingles(tokens: Sequence[str], size: int) -> Iterator[str]:
    """Every sequence of `size` consecutive tokens; all tokens if there are fewer."""
    for start in range(max(len(tokens) - size, 0) + 1):
        if tokens:
            yield " ".join(tokens[start : start + size])


def ngrams(tokens: Sequence[str], size: int) -> Iterator[str]:
    """Every sequence of consecutive tokens as long as `size` words; all tokens if they are shorter."""
    widths = [_width(token) for token in tokens]
    stop = width = 0
    for start in range(len(tokens)):
        while stop < len(tokens) and width < size * _WORD_WIDTH:
            width += widths[stop]
            stop += 1
        if start and width < size * _WORD_WIDTH:
            return
        yield " ".join(tokens[start:stop])
        width -= widths[start]


def is_as_long(ngram: str, size: int) -> bool:
    """Whether an n-gram is at least as long as `size` words."""
    if ngram.isascii() or not _SPACELESS.search(ngram):
        return ngram.count(" ") + 1 >= size
    return sum(map(_width, ngram.split(" "))) >= size * _WORD_WIDTH


def _width(token: str) -> int:
    if token.isascii():
        return _WORD_WIDTH
    return next((width for script, width in _WIDTHS if script.match(token)), _WORD_WIDTH)


def readable(ngram: str) -> str:
    """An n-gram without the spaces that were put between characters of scripts without spaces."""
    return _BETWEEN.sub("", ngram)
