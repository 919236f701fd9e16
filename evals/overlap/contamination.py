"""A search of prepared stores for the items of a benchmark; docs/data.md#contamination has its rules.

A word of the items is spelled as one character, every other word as NUL: a phrase is then a short string, "the record
holds it" is a substring test, and eight words in a row are eight characters.
"""

import dataclasses
import html
import itertools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from ahocorasick_rs import AhoCorasick

from evals.overlap.store_text import Part, parts_of
from ghost_jax.core.atomic_io import locked, read_json, write_json
from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.items.items import Item, Items
from ghost_jax.data.storage import artifact_cache

VERSION = 3  # raise it when the same items and stores give another result
HELD_OUT = ("test",)  # the split that no run is trained or chosen on
NGRAM = 8  # words in a row that are no coincidence
HTML_DEPTH = 3  # "&amp;amp;lt;"
BESIDE = 20  # words between a stem and its answer, such as "The correct answer to this question is option B)"

# An attribute must have a value: "x <b or y and c>" is a comparison of words that must not vanish.
_ATTRIBUTE = r"""\s+[\w:.-]+\s*=\s*(?:"[^"<>]*"|'[^'<>]*'|[^\s"'<>]+)"""
_TAG = re.compile(rf"</?[a-z][a-z0-9:]*(?:{_ATTRIBUTE})*\s*/?>", re.IGNORECASE)
_ESCAPE = re.compile(r"\\+(?:u([0-9a-fA-F]{4})|[nrt])")  # of JSON, and of JSON within JSON
# Chinese and Japanese have no blanks: each character is a word. They and Korean put none beside a Latin word either.
_HAN_KANA, _HANGUL = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff", "\uac00-\ud7a3"
_WORD = re.compile(rf"[{_HAN_KANA}]|[{_HANGUL}]+|[^\W_{_HAN_KANA}{_HANGUL}]+")
_ASCII_WORD = re.compile(r"[a-z0-9]+")
_INVISIBLE = re.compile("[\u00ad\u200b\u200c\u200d\u2060\ufeff]+")  # may be inside a word
UNKNOWN = "\0"
_FIRST = 0x10000  # above all surrogates; enough characters follow for a million words


def words_of(text: str) -> list[str]:
    """Returns the words of a text without markup, escapes, punctuation, blanks and case."""
    if "\\" in text:
        text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)) if found[1] else " ", text)
    for _ in range(HTML_DEPTH):
        if "&" in text:
            text = html.unescape(text)
    if "<" in text:
        text = _TAG.sub(" ", text)
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    return _WORD.findall(unicodedata.normalize("NFKC", _INVISIBLE.sub("", text)).casefold())


@dataclasses.dataclass(frozen=True)
class Asked:
    """An item, a character a word."""

    id: str
    # stem, gold: the question and the gold option; empty where they have no words
    stem: str
    gold: str
    options: frozenset[str]  # the distinct options that have words

    @property
    def ngrams(self) -> set[str]:
        phrases = (self.stem, *self.options)
        return {phrase[start : start + NGRAM] for phrase in phrases for start in range(len(phrase) - NGRAM + 1)}

    def answer_in(self, record: str) -> str:
        """Returns how a spelled record that holds the stem answers it, or "" where it does not."""
        length = len(self.stem)
        option_words = sum(map(len, self.options)) if len(self.options) > 1 else 0  # one option is no set
        reach = BESIDE + option_words
        rest = record.replace(self.stem, UNKNOWN * length)
        beside = [
            rest[max(found.start() - reach, 0) : found.end() + reach]
            for found in re.finditer(re.escape(self.stem), record)
        ]

        def places(answer_words: int, *, anywhere: bool) -> list[str]:
            if not answer_words or length + answer_words < NGRAM:
                return []
            return [rest] if anywhere and length >= NGRAM else beside

        if any(all(option in place for option in self.options) for place in places(option_words, anywhere=True)):
            return "stem with its options"
        if any(self.gold in place for place in places(len(self.gold), anywhere=len(self.gold) > 1)):
            return "stem with its gold option"
        return ""


@dataclasses.dataclass
class Found:
    """The matches in some records: n-grams, and by the id of an asked item how it is answered."""

    records: int = 0
    ngrams: set[str] = dataclasses.field(default_factory=set)
    stems: dict[str, str] = dataclasses.field(default_factory=dict)

    def add(self, other: "Found") -> None:
        self.records += other.records
        self.ngrams |= other.ngrams
        for item, answer in other.stems.items():
            self.stems[item] = self.stems.get(item) or answer

    def counts(self, asked: Sequence[Asked]) -> dict[str, int]:
        """Returns the number of records, and of the items with each kind of match."""
        return {
            "records": self.records,
            "ngram": sum(not self.ngrams.isdisjoint(each.ngrams) for each in asked),
            "stem": len(self.stems),
            "contaminated": sum(map(bool, self.stems.values())),
        }


class Wanted:
    """The phrases of the items of a benchmark, and the search for them."""

    def __init__(self, items: Iterable[Item]):
        self._character_of: dict[str, str] = {}  # of each word in the items
        self.asked = [self._asked(item) for item in items]
        self._ngrams = {ngram for asked in self.asked for ngram in asked.ngrams}
        self._by_stem: dict[str, list[Asked]] = defaultdict(list)
        for asked in self.asked:
            self._by_stem[asked.stem].append(asked)
        self._automaton = AhoCorasick((self._by_stem.keys() - {""}) | self._ngrams, store_patterns=True)

    def _asked(self, item: Item) -> Asked:
        texts = [words_of(text) for text in (item.question, *item.options)]
        for word in itertools.chain.from_iterable(texts):
            self._character_of.setdefault(word, chr(_FIRST + len(self._character_of)))
        stem, *options = map(self._spelled, texts)
        return Asked(item.id, stem, options[item.answer], frozenset(options) - {""})

    def _spelled(self, words: Iterable[str]) -> str:
        return "".join(self._character_of.get(word, UNKNOWN) for word in words)

    def found_in(self, text: str) -> Found:
        """Returns the matches in one record."""
        record = self._spelled(words_of(text))
        phrases = set(self._automaton.find_matches_as_strings(record, overlapping=True))
        stems = [asked for stem in phrases & self._by_stem.keys() for asked in self._by_stem[stem]]
        return Found(1, phrases & self._ngrams, {asked.id: asked.answer_in(record) for asked in stems})


def check(items: Items, stores: Sequence[Path], held_out: Sequence[str] = HELD_OUT) -> dict:
    """Returns the matches of a benchmark in stores: fields of `ghost_jax.runs.evaluation.Contamination`.

    Records of the splits `held_out` are counted and not refused. The result is cached under the items, the stores and
    `VERSION`. Raises UserError for a folder that is not a store with text.
    """
    named = [
        {"name": folder.resolve().name, "fingerprint": artifact_cache.manifest(folder).fingerprint} for folder in stores
    ]
    key = artifact_cache.fingerprint([VERSION, [dataclasses.asdict(item) for item in items], named, *held_out])
    place = cache_dir() / "contamination" / f"{key[:16]}.json"
    with locked(place.with_suffix(".lock"), f"the search for {items.name}"):  # runs of a sweep share their stores
        if not place.is_file():
            parts = (part for folder in stores for part in parts_of(folder))
            write_json(place, {"stores": named, **_searched(items, parts, held_out)})
    about = {"name": items.name, "file": Path(items.path).name, "sha256": items.sha256}
    return {"items": about, **read_json(place)}


def _searched(items: Items, parts: Iterable[Part], held_out: Sequence[str]) -> dict:
    wanted, total = Wanted(items), Found()
    rows: list[dict] = []
    contaminated: list[dict] = []
    for part in parts:
        of_part, held = Found(), part.split in held_out
        with Progress(f"searching {part.store} {part.name}", part.size, unit="records", brief=True) as progress:
            for text in part.texts:
                progress.advance(1)
                found = wanted.found_in(text.text)
                of_part.add(found)
                if not held:
                    where = {"store": part.store, "part": part.name, "record": text.id, "source": text.source}
                    answered = sorted((item, reason) for item, reason in found.stems.items() if reason)
                    contaminated += [{"item": item, **where, "reason": reason} for item, reason in answered]
        if not held:
            total.add(of_part)
        rows.append({"store": part.store, "part": part.name, "held_out": held, **of_part.counts(wanted.asked)})
    counts, n = total.counts(wanted.asked), len(items)
    verdict = "not contaminated: no record asks an item and answers it."
    if counts["contaminated"]:
        verdict = f"CONTAMINATED: the data hold {counts['contaminated']:,} of {n:,} items together with an answer."
    verdict += f" {counts['ngram']:,} of {n:,} items share {NGRAM} words in a row with the data: reported, not refused."
    of_all = {"n": n, "ngram_words": NGRAM, "counts": counts, "parts": rows}
    return of_all | {"contaminated": contaminated, "verdict": verdict}


def refuse(result: dict) -> None:
    """Raises UserError, with the first contaminated records of a result of `check`, where there are any."""
    if not (found := result["contaminated"]):
        return
    named = "; ".join(
        f"item {at['item']} in {at['store']} {at['part']}, record {at['record']} ({at['reason']})" for at in found[:3]
    )
    more = f"; and {len(found) - 3:,} more" if len(found) > 3 else ""
    raise UserError(
        f"{result['items']['file']}: the data hold {result['counts']['contaminated']:,} of its {result['n']:,} items "
        f"together with an answer: {named}{more}. Remove the records from the sources and train again."
    )
