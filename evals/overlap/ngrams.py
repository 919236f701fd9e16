"""Finding many phrases in much text as words, however either was set.

A word that occurs in the phrases is written as one character, every other word as NUL. A phrase is then a short string,
"does the record hold it" is a substring test, and eight words in a row are eight characters.
"""

import html
import itertools
import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

# An attribute must have a value: "x <b or y and c>" is a comparison of words that must not vanish.
_ATTRIBUTE = r"""\s+[\w:.-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
_TAG = re.compile(rf"</?[a-z][a-z0-9:]*(?:{_ATTRIBUTE})*\s*/?>", re.IGNORECASE)
_WORD = re.compile(r"[^\W_]+")
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]+")  # may stand inside a word
_UNKNOWN = "\0"
_FIRST = 0x10000  # above all surrogates; leaves room for a million words
_FACTOR = np.uint64(0x9E3779B97F4A7C15)  # odd, with bits everywhere, so that rolling mixes well
_BUCKET_BITS = 22  # 4 MiB for each length: few false alarms among 100,000 patterns, and still in the cache


def words_of(text: str) -> list[str]:
    """Returns the words of a text as they are compared: without markup, punctuation, blanks and case."""
    if "&" in text:
        text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    if not text.isascii():
        text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    return _WORD.findall(text.casefold())


class Alphabet:
    """A character for each word that was learnt."""

    def __init__(self):
        self._character: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._character)

    def learn(self, words: Iterable[str]) -> str:
        """Returns the words as one character each, new ones being given one."""
        for word in words:
            self._character.setdefault(word, chr(_FIRST + len(self._character)))
        return self.spell(words)

    def spell(self, words: Iterable[str]) -> str:
        """Returns the words as one character each, NUL where a word was never learnt."""
        return "".join(map(self._character.get, words, itertools.repeat(_UNKNOWN)))


def blanked(text: str, phrase: str) -> str:
    """Returns the spelled text with unknown words in place of the phrase."""
    return text.replace(phrase, _UNKNOWN * len(phrase))


def ngrams_of(spelled: str, n: int) -> list[str]:
    """Returns every run of `n` words, in order."""
    return [spelled[start : start + n] for start in range(len(spelled) - n + 1)]


class Patterns:
    """Spelled phrases of few words, looked for in megabytes of words at a time.

    A rolling hash says where one may stand, and the text itself whether it does: what is found does not depend on it.
    """

    def __init__(self, patterns: Iterable[str], alphabet: Alphabet):
        self._patterns = frozenset(patterns)
        self._longest = max(map(len, self._patterns), default=0)
        self._value = np.random.default_rng(0).integers(1 << 63, size=len(alphabet) + 1, dtype=np.uint64)
        self._maybe = np.zeros((self._longest + 1, 1 << _BUCKET_BITS), bool)
        for length in range(1, self._longest + 1):
            alike = "".join(pattern for pattern in self._patterns if len(pattern) == length)
            hashed = np.zeros(len(alike) // length, np.uint64)
            for place in range(length):
                hashed = hashed * _FACTOR + self._value[_numbers(alike[place::length])]
            self._maybe[length, _bucket(hashed)] = True

    def search(self, records: Sequence[str]) -> list[set[str]]:
        """Returns the patterns that each of the spelled records holds."""
        text = _UNKNOWN.join(records)
        ends = np.cumsum([len(record) + 1 for record in records])
        found: list[set[str]] = [set() for _ in records]
        numbers = np.append(_numbers(text), np.zeros(self._longest, np.int64))
        start, hashed = np.arange(len(text)), np.zeros(len(text), np.uint64)
        for length in range(1, self._longest + 1):
            number = numbers[start + (length - 1)]
            known = number > 0  # past an unknown word no pattern goes on
            start = start[known]
            hashed = hashed[known] * _FACTOR + self._value[number[known]]
            here = start[self._maybe[length, _bucket(hashed)]]
            for record, at in zip(np.searchsorted(ends, here, "right").tolist(), here.tolist(), strict=True):
                pattern = text[at : at + length]
                if pattern in self._patterns:
                    found[record].add(pattern)
        return found


def _numbers(spelled: str) -> np.ndarray:
    """Returns the number [n] int64 of each character's word, counted from 1; 0 for an unknown one."""
    codes = np.frombuffer(spelled.encode("utf-32-le"), np.uint32).astype(np.int64)
    return np.maximum(codes - (_FIRST - 1), 0)


def _bucket(hashed: np.ndarray) -> np.ndarray:
    return hashed >> np.uint64(64 - _BUCKET_BITS)
