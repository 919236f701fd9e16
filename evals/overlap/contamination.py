"""Does the data hold the test? A search of prepared stores for the items of a benchmark.

Items and records are compared as words: HTML undone, Unicode and case folded, punctuation and blanks left out. Of each
item three things are looked for in every record of a store, and reported:

- **n-gram**: 8 words in a row of its question or of one of its options. Sentences of a shared source match as well.
- **stem**: the whole question.
- **options**: all of its options in one record, in any order, if they have 8 words between them.

A record is **contaminated**, and refused, where it holds the stem and, outside the stem's own words, an answer to it:
all options or the gold one. How near they must be depends on how much they say by themselves:

- Stem and options, or stem and gold, must have 8 words between them: "Is it? Yes." is in every conversation.
- A stem of 8 words or more is written nowhere else by chance: all options, or a gold of 2 words or more, count
  anywhere in the record. A gold of one word must stand beside the stem.
- A shorter stem is a phrase that anyone may write: all options, or the gold, must stand beside it.

*Beside* is within 20 words, and as many more as the options have. The test split of a dataset has counts of its own and
is not refused: no run is trained or chosen on it, and the project's held-out questions stand there by construction.

A question put in other words is not found by any of this.
"""

import dataclasses
import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from evals.items.items import Item, Items
from evals.overlap.ngrams import Alphabet, Patterns, blanked, ngrams_of, words_of
from evals.overlap.store_text import Part, Text, manifest, parts_of
from ghost_jax.core.atomic_io import read_json, write_json
from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.storage import artifact_cache

VERSION = 1  # raise it when the same items and stores give another result, also by a change of `phrases`
HELD_OUT = ("test",)  # the split that no run is trained or chosen on
NGRAM = 8  # words in a row that are no coincidence
BESIDE = 20  # words between a stem and its answer: room for "The correct answer to this question is option B)"
EXAMPLES = 20
_BATCH = 1 << 20  # characters that are searched at once


# ---- What is looked for: the items, and when a record answers one ----


@dataclasses.dataclass(frozen=True)
class Asked:
    """An item as it is looked for, a character a word.

    Attributes:
      item: as published.
      stem, gold: the question and the gold option; empty where they have no words.
      options: the distinct options that have words.
    """

    item: Item
    stem: str
    gold: str
    options: frozenset[str]

    @property
    def option_words(self) -> int:
        """The words that the options have between them; none where fewer than two are left to make a set."""
        return sum(map(len, self.options)) if len(self.options) > 1 else 0


def answer_in(asked: Asked, record: str) -> str:
    """Returns how a spelled record answers an item besides asking it, or "" where it is not contaminated by it."""
    length = len(asked.stem)
    rest = blanked(record, asked.stem)
    reach = BESIDE + asked.option_words
    beside = [
        rest[max(found.start() - reach, 0) : found.end() + reach]
        for found in re.finditer(re.escape(asked.stem), record)
    ]

    def places(answer_words: int, *, anywhere: bool) -> list[str]:
        if not answer_words or length + answer_words < NGRAM:
            return []
        return [rest] if anywhere and length >= NGRAM else beside

    if any(all(option in place for option in asked.options) for place in places(asked.option_words, anywhere=True)):
        return "stem with its options"
    if any(asked.gold in place for place in places(len(asked.gold), anywhere=len(asked.gold) > 1)):
        return "stem with its gold option"
    return ""


class Wanted:
    """All that is looked for of a benchmark.

    Attributes:
      asked: the items.
      alphabet: the words that they use.
    """

    def __init__(self, items: Iterable[Item]):
        self.alphabet = Alphabet()
        self.asked = [self._asked(item) for item in items]
        shared = Counter(ngram for asked in self.asked for ngram in _ngrams(asked))
        self._ngrams = shared.keys()
        self._by_stem: dict[str, list[Asked]] = defaultdict(list)
        for asked in self.asked:
            self._by_stem[asked.stem].append(asked)
        # A set is looked for where its longest option is, a long phrase where its rarest n-gram is.
        self._sets: dict[str, list[frozenset[str]]] = defaultdict(list)
        for options in {asked.options for asked in self.asked if asked.option_words >= NGRAM}:
            self._sets[max(options, key=lambda option: (len(option), option))].append(options)
        self._phrases: dict[str, list[str]] = defaultdict(list)
        for phrase in {phrase for asked in self.asked for phrase in (asked.stem, *asked.options)} - {""}:
            lead = min(ngrams_of(phrase, NGRAM), key=shared.__getitem__) if len(phrase) > NGRAM else phrase
            self._phrases[lead].append(phrase)
        self._patterns = Patterns(self._ngrams | self._phrases.keys(), self.alphabet)

    def _asked(self, item: Item) -> Asked:
        stem, *options = (self.alphabet.learn(words_of(text)) for text in (item.question, *item.options))
        return Asked(item, stem, options[item.answer], frozenset(options) - {""})

    def found_in(self, texts: Sequence[Text]) -> Iterator["Found"]:
        """Yields what each of the texts holds."""
        spelled = [self.alphabet.spell(words_of(text.text)) for text in texts]
        for text, record, patterns in zip(texts, spelled, self._patterns.search(spelled), strict=True):
            leads = patterns & self._phrases.keys()
            phrases = {phrase for lead in leads for phrase in self._phrases[lead] if phrase in record}
            sets = {options for longest in phrases & self._sets.keys() for options in self._sets[longest]}
            stems = [asked for stem in phrases & self._by_stem.keys() for asked in self._by_stem[stem]]
            yield Found(
                text,
                ngrams=patterns & self._ngrams,
                sets={options for options in sets if options <= phrases},
                stems={asked.item.id: answer_in(asked, record) for asked in stems},
            )


def _ngrams(asked: Asked) -> set[str]:
    return {ngram for phrase in (asked.stem, *asked.options) for ngram in ngrams_of(phrase, NGRAM)}


# ---- What is found ----


@dataclasses.dataclass(frozen=True, slots=True)
class Found:
    """What one record holds: n-grams, whole sets of options, and the ids of items with how each is answered, or ""."""

    text: Text
    ngrams: set[str]
    sets: set[frozenset[str]]
    stems: dict[str, str]


@dataclasses.dataclass
class Tally:
    """What the records of some parts hold between them; `asked` and `answered` are ids of items."""

    records: int = 0
    ngrams: set[str] = dataclasses.field(default_factory=set)
    sets: set[frozenset[str]] = dataclasses.field(default_factory=set)
    asked: set[str] = dataclasses.field(default_factory=set)
    answered: set[str] = dataclasses.field(default_factory=set)

    def add(self, found: Found) -> None:
        self.records += 1
        self.ngrams |= found.ngrams
        self.sets |= found.sets
        self.asked |= found.stems.keys()
        self.answered |= {item for item, answer in found.stems.items() if answer}

    def counts(self, wanted: Wanted) -> dict[str, int]:
        """Returns the number of records, and of the items that they hold each kind of match of."""
        return {
            "records": self.records,
            "ngram": sum(not self.ngrams.isdisjoint(_ngrams(asked)) for asked in wanted.asked),
            "stem": len(self.asked),
            "options": sum(asked.options in self.sets for asked in wanted.asked),
            "contaminated": len(self.answered),
        }


def check(items: Items, stores: Sequence[Path], held_out: Sequence[str] = HELD_OUT) -> dict:
    """Returns what the stores hold of a benchmark: the record that is kept with every score on it.

    `held_out` names the splits whose records are counted and not refused.

    The result is kept in the user's cache, under the items, the stores and `VERSION`: a second call only reads it.
    Raises UserError for a folder that is no store with text.
    """
    named = [{"name": folder.resolve().name, "fingerprint": manifest(folder).fingerprint} for folder in stores]
    key = artifact_cache.fingerprint([VERSION, [dataclasses.asdict(item) for item in items], named, *held_out])
    place = cache_dir() / "contamination" / f"{key[:16]}.json"
    if not place.is_file():
        parts = (part for folder in stores for part in parts_of(folder))
        write_json(place, {"stores": named, **_searched(items, parts, held_out)})
    about = {"name": items.name, "file": Path(items.path).name, "sha256": items.sha256}
    return {"items": about, **read_json(place)}


def _searched(items: Items, parts: Iterable[Part], held_out: Sequence[str]) -> dict:
    wanted, total = Wanted(items), Tally()
    rows: list[dict] = []
    contaminated: list[dict] = []
    sources: Counter[str] = Counter()
    first_with: dict[str, dict] = {}  # n-gram -> the first record that has it
    for part in parts:
        tally = Tally()
        with Progress(f"searching {part.store} {part.name}", part.size, unit="records", brief=True) as progress:
            for batch in _batches(part.texts):
                for found in wanted.found_in(batch):
                    tally.add(found)
                    if part.split not in held_out:
                        total.add(found)
                        where = _where(part, found.text)
                        contaminated += [
                            {"item": item, **where, "reason": why} for item, why in sorted(found.stems.items()) if why
                        ]
                        if found.ngrams:
                            sources[found.text.source] += 1
                        for ngram in found.ngrams:
                            first_with.setdefault(ngram, where)
                progress.advance(len(batch))
        rows.append(
            {"store": part.store, "part": part.name, "held_out": part.split in held_out, **tally.counts(wanted)}
        )
    counts = total.counts(wanted)
    matching = sum(sources.values())
    return {
        "n": len(items),
        "ngram_words": NGRAM,
        "counts": counts,
        "shares": {kind: count / len(items) for kind, count in counts.items() if kind != "records"},
        "parts": rows,
        "sources": {
            source: {"records": records, "share": records / matching} for source, records in sources.most_common()
        },
        "contaminated": contaminated,
        "examples": _examples(wanted, first_with),
        "verdict": _verdict(counts, len(items)),
    }


def _batches(texts: Iterable[Text]) -> Iterator[list[Text]]:
    batch: list[Text] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text.text)
        if size >= _BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _where(part: Part, text: Text) -> dict:
    return {"store": part.store, "part": part.name, "record": text.id, "source": text.source}


def _examples(wanted: Wanted, first_with: dict[str, dict]) -> list[dict]:
    """Returns, for the items that share most words in a row with one record, those words and that record."""
    runs = []
    for asked in wanted.asked:
        for text in (asked.item.question, *asked.item.options):
            words = words_of(text)
            start = 0
            ngrams = ngrams_of(wanted.alphabet.spell(words), NGRAM)
            for where, run in itertools.groupby(ngrams, first_with.get):
                length = sum(1 for _ in run)
                if where:
                    runs.append({"item": asked.item.id, "words": words[start : start + length + NGRAM - 1], **where})
                start += length
    longest: dict[str, dict] = {}
    for run in sorted(runs, key=lambda run: -len(run["words"])):
        longest.setdefault(run["item"], run)
    shown = list(longest.values())[:EXAMPLES]
    return [{**run, "words": " ".join(run["words"])} for run in shown]


def _verdict(counts: dict[str, int], n: int) -> str:
    shared = f"{counts['ngram']:,} of {n:,} items share {NGRAM} words in a row with the data: reported, not refused."
    if counts["contaminated"]:
        return (
            f"CONTAMINATED: the data hold {counts['contaminated']:,} of {n:,} items together with an answer. {shared}"
        )
    return f"not contaminated: no record asks an item and answers it. {shared}"


def refuse(result: dict) -> None:
    """Raises UserError, naming the first of the records, where a result of `check` says that the data hold the test."""
    found = result["contaminated"]
    if not found:
        return
    named = "; ".join(
        f"item {at['item']} in {at['store']} {at['part']}, record {at['record']} ({at['reason']})" for at in found[:3]
    )
    more = f"; and {len(found) - 3:,} more" if len(found) > 3 else ""
    raise UserError(
        f"{result['items']['file']}: the data hold {result['counts']['contaminated']:,} of its {result['n']:,} items "
        f"together with an answer: {named}{more}. A score on them would measure memory: take the records out of the "
        "sources, prepare the data again and train anew."
    )
