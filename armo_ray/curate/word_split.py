"""Words to compare texts by. Scripts that put no spaces between words have their characters instead.

Chinese, Japanese, Thai, Lao, Khmer, Burmese and their kin: a character, with the marks on it, is a token. Two
characters of Chinese or Japanese, or three of the others, count as long as a word.
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
_WIDTHS = ((re.compile(f"[{_TWO}]"), 3), (re.compile(f"[{_THREE}]"), 2))  # of a token, in sixths of a word
_WORD_WIDTH = 6
# a letter of such a script with the marks on it, which are no \\w; a word of another script; another sign
_TOKEN = re.compile(
    rf"[{_TWO}][\u3099\u309a]*|[{_THREE}](?:(?!\w)[{_THREE}])*|[^\W{_TWO}{_THREE}]+|(?P<sign>[^\w\s])"
)
_JOINERS = re.compile("[\u200b-\u200d\u2060\ufeff]")  # may stand between words, and make no difference
_BETWEEN = re.compile(f"(?<=[{_TWO}{_THREE}]) (?=[{_TWO}{_THREE}])")


def words(text: str) -> list[str]:
    """What is compared: words, numbers and characters, without case and punctuation."""
    return [found.group() for found in _TOKEN.finditer(_plain(text)) if found.lastgroup is None]


def words_and_signs(text: str) -> list[str]:
    """The same and every other sign: signs alone tell apart 2 + 2 and 2 - 2."""
    return [found.group() for found in _TOKEN.finditer(_plain(text))]


def _plain(text: str) -> str:
    """Without case; where a script has no spaces, one way to write what can be written in several."""
    if text.isascii() or not _SPACELESS.search(text):
        return text.lower()
    return unicodedata.normalize("NFKC", _JOINERS.sub("", text)).lower()


def shingles(found: Sequence[str], size: int) -> Iterator[str]:
    """Runs of `size` tokens; of fewer tokens all of them."""
    for start in range(max(len(found) - size, 0) + 1):
        if found:
            yield " ".join(found[start : start + size])


def ngrams(found: Sequence[str], size: int) -> Iterator[str]:
    """Runs as long as `size` words; of a shorter text all of it."""
    widths = [_width(word) for word in found]
    stop = width = 0
    for start in range(len(found)):
        while stop < len(found) and width < size * _WORD_WIDTH:
            width += widths[stop]
            stop += 1
        if start and width < size * _WORD_WIDTH:
            return
        yield " ".join(found[start:stop])
        width -= widths[start]


def is_as_long(ngram: str, size: int) -> bool:
    """Whether an n-gram is as long as `size` words."""
    if ngram.isascii() or not _SPACELESS.search(ngram):
        return ngram.count(" ") + 1 >= size
    return sum(map(_width, ngram.split(" "))) >= size * _WORD_WIDTH


def _width(word: str) -> int:
    if word.isascii():
        return _WORD_WIDTH
    return next((width for script, width in _WIDTHS if script.match(word)), _WORD_WIDTH)


def readable(ngram: str) -> str:
    """An n-gram as it may have been written."""
    return _BETWEEN.sub("", ngram)
