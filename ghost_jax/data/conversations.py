"""What a chat model is trained on: every builder's conversations, rendered, one store a dataset.

To add one, write a builder that yields `Conversation`s, or what a `row` of its own renders, and give it a row in
`DATASETS`; a chat recipe then mixes it by that name.
"""

import dataclasses
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from ml_collections import ConfigDict

from ghost_jax.config.validate import QA_SOURCES
from ghost_jax.core.errors import UsageError, did_you_mean
from ghost_jax.data.builders import (
    Conversation,
    Documents,
    Question,
    cot,
    fact_mcq,
    mcq,
    qa,
    raft,
    rank,
    small_talk,
    teacher,
)
from ghost_jax.data.corpus import BOOK, documents_of, index_store
from ghost_jax.data.retrieval import bm25
from ghost_jax.data.retrieval.bm25 import Index
from ghost_jax.data.sources import embedded
from ghost_jax.data.storage import array_record, artifact_cache, schema, text_cleaning
from ghost_jax.data.storage.schema import SPLITS
from ghost_jax.data.wordings import question_forms
from ghost_jax.text import chat_format, mcq_format, tokenizer
from ghost_jax.text.mcq_format import LETTERS, letter_ids
from ghost_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Ingredients:
    """What a dataset is built from. `recorded` takes what its manifest shall say beside the counts."""

    corpus: Path
    options: ConfigDict
    folder: Path
    say: Callable[[str], None]
    recorded: dict = dataclasses.field(default_factory=dict)

    @property
    def documents(self) -> Documents:
        return documents_of(self.corpus)


def _qa(given: Ingredients) -> Iterator[Conversation]:
    known = {*artifact_cache.manifest(given.corpus).documents, *QA_SOURCES}
    for name in given.options.qa_sources:
        if name not in known:
            raise UsageError(f"data.qa_sources names {name}, which no document has.{did_you_mean(name, list(known))}")
    return qa.build(given.documents, given.options.qa_sources, given.options.qa_per_source, given.options.seed)


def _mcq(given: Ingredients) -> Iterator[Conversation]:
    asked = list(mcq.questions(given.documents, given.options.seed))
    _write_items(given, asked)
    return mcq.build(asked, given.options.seed, given.options.layout)


def _cot(given: Ingredients) -> Iterator[Conversation]:
    asked = list(mcq.questions(given.documents, given.options.seed))
    explains = teacher.of(given.options.cot.teacher, given.options.cot.model)
    given.say(f"cot: the reasons are by {explains.label}")
    yield from cot.build(asked, explains, given.options.layout)
    given.recorded["teacher"] = explains.report()


def _fact_mcq(given: Ingredients) -> Iterator[Conversation]:
    asked = list(fact_mcq.questions(given.documents, given.options.seed))
    _write_items(given, asked)
    measured = fact_mcq.measure(asked)
    for line in fact_mcq.summary(measured):
        given.say(line)
    given.recorded["baselines"] = measured
    return fact_mcq.build(asked, given.options.layout)


def _raft(given: Ingredients) -> Iterator[Conversation]:
    asked = list(mcq.questions(given.documents, given.options.seed))
    return raft.build(asked, _index_of(asked, given), given.options.seed, given.options.layout) if asked else iter(())


def _index_of(asked: Iterable[Question], given: Ingredients) -> Index:
    pages_of = {*BOOK, *(q.source for q in asked)}  # a vulnerability's own page holds its oracle
    return Index.load(index_store(given.corpus, pages_of, given.say))


def _small_talk(given: Ingredients) -> Iterator[Conversation]:
    return small_talk.build()


def _rank(given: Ingredients) -> Iterator[rank.Ranking]:
    return rank.build((q, ()) for q in mcq.questions(given.documents, given.options.seed))


def _fact_rank(given: Ingredients) -> Iterator[rank.Ranking]:
    return rank.build((q, ()) for q in fact_mcq.questions(given.documents, given.options.seed))


def _read(given: Ingredients) -> Iterator[rank.Ranking]:
    asked = fact_mcq.questions(given.documents, given.options.seed)
    return rank.build(raft.with_passages(asked, _index_of(asked, given), given.options.seed) if asked else ())


def _row(vocabulary: Tokenizer, conversation: Conversation) -> dict:
    tokens, mask = chat_format.render(vocabulary, conversation.messages)
    return {
        "id": conversation.id,
        "source": conversation.source,
        "letter": conversation.letter,
        "tokens": tokens,
        "mask": mask,
    }


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A row of `DATASETS`.

    Attributes:
      about: what it is, for the screen.
      made_of: what its records come from, for the message where there are none; may name keys of `config.data`.
      build: yields its conversations.
      options: the keys of `config.data` that it depends on.
      made_by: the modules that decide its conversations, beside those that decide the documents.
      row: renders one of them: the features of `array_record.Examples`.
      inputs: what it is made from: the corpus, unless told otherwise.
    """

    about: str
    made_of: str
    build: Callable[[Ingredients], Iterable]
    options: tuple[str, ...]
    made_by: tuple[ModuleType, ...]
    row: Callable[[Tokenizer, Any], dict] = _row
    inputs: Callable[[Path], dict] = lambda corpus: {"corpus": corpus.name}


_ASKED = "facts of weakness classes, tactics and acronyms, four of a kind, as attack, cwe and embedded state them"
_TYPED = "typed facts of one relation in sets of four, as all sources but cti state them"

DATASETS = {
    "qa": Dataset(
        "questions and answers templated from every source",
        "documents of data.qa_sources {qa_sources}, at most data.qa_per_source={qa_per_source} of each",
        _qa,
        ("seed", "qa_sources", "qa_per_source"),
        (qa,),
    ),
    "mcq": Dataset(
        "multiple choice, the letter alone or with the option", _ASKED, _mcq, ("seed", "layout"), (mcq, mcq_format)
    ),
    "cot": Dataset("multiple choice with a reason", _ASKED, _cot, ("seed", "layout", "cot"), (mcq, cot, mcq_format)),
    "small_talk": Dataset(
        "small talk of the project's own",
        "pairs that come with the package",
        _small_talk,
        (),
        (small_talk, embedded, schema, text_cleaning),
        inputs=lambda corpus: {"pack": embedded.sha256()},
    ),
    "fact_mcq": Dataset(
        "multiple choice from typed facts that no shortcut answers",
        _TYPED,
        _fact_mcq,
        ("seed", "layout"),
        (fact_mcq, question_forms, mcq_format),
    ),
    "raft": Dataset(
        "multiple choice with retrieved passages",
        _ASKED,
        _raft,
        ("seed", "layout"),
        (mcq, raft, bm25, mcq_format),
    ),
    "rank": Dataset(
        "multiple choice whose options are ranked", _ASKED, _rank, ("seed",), (mcq, rank, mcq_format), rank.row
    ),
    "fact_rank": Dataset(
        "the questions of fact_mcq, their options ranked",
        _TYPED,
        _fact_rank,
        ("seed",),
        (fact_mcq, question_forms, rank, mcq_format),
        rank.row,
    ),
    "read": Dataset(
        "multiple choice with retrieved passages, its options ranked",
        _TYPED,
        _read,
        ("seed",),
        (fact_mcq, question_forms, raft, bm25, rank, mcq_format),
        rank.row,
    ),
}


def vocabulary_of(base: Tokenizer) -> Tokenizer:
    """Returns the base vocabulary grown by the role tokens and the anchor words, its letters checked."""
    vocabulary = base.with_chat_tokens(embedded.anchors())
    letter_ids(vocabulary)
    return vocabulary


def dataset_store(name: str, config: ConfigDict, corpus: Path, vocabulary: Tokenizer, say: Callable) -> Path:
    """Returns the store of one of `DATASETS`: token ids and loss mask of each conversation, by split."""
    dataset = DATASETS[name]

    def write(folder: Path) -> dict:
        say(f"building {name}: {dataset.about}")
        vocabulary.save(folder / "tokenizer.json")
        given = Ingredients(corpus, config.data, folder, say)
        by_split: dict[str, list] = {split: [] for split in SPLITS}
        for conversation in dataset.build(given):
            by_split[conversation.split].append(dataset.row(vocabulary, conversation))
        return {"datasets": {name: array_record.write_examples(folder, name, by_split)}} | given.recorded

    options = {key: config.data[key] for key in dataset.options}
    options = {key: value.to_dict() if isinstance(value, ConfigDict) else value for key, value in options.items()}
    made_from = {**dataset.inputs(corpus), "tokenizer": vocabulary.sha256, **options}
    return artifact_cache.build(name, (*dataset.made_by, chat_format, tokenizer, array_record), made_from, write)


def _write_items(given: Ingredients, asked: Iterable[Question]) -> None:
    """Writes the questions as items for the evaluator and the reader, `items-<split>.jsonl` each."""
    for split in SPLITS:
        with (given.folder / f"items-{split}.jsonl").open("w", encoding="utf-8") as file:
            for q in asked:
                if q.split == split:
                    options = dict(zip(LETTERS, q.options, strict=False))
                    item = {"id": q.id, "question": q.question, "options": options, "answer": q.letter, "url": q.url}
                    file.write(json.dumps(item) + "\n")
