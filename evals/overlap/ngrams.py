"""Text as words, whatever its typography, and as one character a word.

A word of the items is spelled as one character, every other word as NUL. A phrase is then a short string, "the record
holds it" is a substring test, and eight words in a row are eight characters.
"""

import html
import itertools
import re
import unicodedata
from collections.abc import Iterable

# An attribute must have a value: "x <b or y and c>" is a comparison of words that must not vanish.
_ATTRIBUTE = r"""\s+[\w:.-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
_TAG = re.compile(rf"</?[a-z][a-z0-9:]*(?:{_ATTRIBUTE})*\s*/?>", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]+")  # may be inside a word
UNKNOWN = "\0"
_FIRST = 0x10000  # above all surrogates; enough characters follow for a million words


def words_of(text: str) -> list[str]:
    """Returns the words of a text without markup, punctuation, blanks and case."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return _WORD.findall(text.casefold())


class Alphabet:
    """A character for each known word."""

    def __init__(self):
        self._character: dict[str, str] = {}

    def learn(self, words: Iterable[str]) -> str:
        """Returns the words as one character each, and adds those that are new."""
        for word in words:
            self._character.setdefault(word, chr(_FIRST + len(self._character)))
        return self.spell(words)

    def spell(self, words: Iterable[str]) -> str:
        """Returns the words as one character each, NUL for an unknown one."""
        return "".join(map(self._character.get, words, itertools.repeat(UNKNOWN)))


def ngrams_of(spelled: str, n: int) -> list[str]:
    """Returns every run of `n` words, in order."""
    return [spelled[start : start + n] for start in range(len(spelled) - n + 1)]
