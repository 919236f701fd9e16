"""What builders exchange with stores: their inputs, questions, conversations, and rows of token ids."""

import dataclasses
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from ml_collections import ConfigDict

from ghost_jax.data.items.items import Item
from ghost_jax.data.storage.schema import SPLITS, Record
from ghost_jax.text import chat_format, mcq_format
from ghost_jax.text.chat_format import Message
from ghost_jax.text.mcq_format import LETTERS
from ghost_jax.text.tokenizer import Tokenizer

Documents = Callable[[], Iterator[Record]]  # may be iterated more than once; reads from disk each time
Rows = dict[str, Iterable[dict]]  # split -> rows with the features of `array_record.Examples`


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """One training example before it is tokenised."""

    id: str  # unique within its dataset
    source: str  # the source of the document it was made from
    messages: tuple[Message, ...]  # the turns
    split: str  # "train", "validation" or "test", drawn from the subject
    letter: str = ""  # the gold letter of a multiple-choice question, else empty


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question(Item):
    """A multiple-choice question with its evidence; every layout is rendered from it.

    Its id begins with the relation it asks about ("tactic/attack/…"), its url is that of the document.
    """

    # source, split: of the document that states the fact, as in `Conversation`
    source: str
    split: str
    evidence: str  # the fact's evidence sentence

    @property
    def letter(self) -> str:
        """The gold letter."""
        return LETTERS[self.answer]

    def item(self) -> dict:
        """Returns the line of an items file."""
        options = dict(zip(LETTERS, self.options, strict=False))
        return {"id": self.id, "question": self.question, "options": options, "answer": self.letter, "url": self.url}

    def answered(self, layout: str, text: str) -> Conversation:
        """Returns the question in a layout, answered by its letter and a text."""
        turns = (
            Message("user", mcq_format.ask(self.question, self.options, layout)),
            Message("assistant", mcq_format.answer(self.letter, text, layout)),
        )
        return Conversation(self.id, self.source, turns, self.split, self.letter)


@dataclasses.dataclass(frozen=True)
class BuildInputs:
    """What a dataset is built from."""

    corpus: Path  # the store of the documents
    documents: Documents  # those that the dataset reads
    options: ConfigDict  # `config.data`
    vocabulary: Tokenizer  # of the rows
    folder: Path  # the new store; a builder may write further files into it
    say: Callable[[str], None]  # prints a progress line
    recorded: dict = dataclasses.field(default_factory=dict)  # entries that the builder adds to the store's manifest

    def render(self, conversations: Iterable[Conversation]) -> Rows:
        """Returns the rows of conversations by split."""
        return by_split((each.split, self._row(each)) for each in conversations)

    def _row(self, conversation: Conversation) -> dict:
        tokens, mask = chat_format.render(self.vocabulary, conversation.messages)
        named = {"id": conversation.id, "source": conversation.source, "letter": conversation.letter}
        return named | {"tokens": tokens, "mask": mask}

    def write_items(self, questions: Iterable[Question]) -> None:
        """Writes the questions as items for the evaluator and the reader, `items-<split>.jsonl` each."""
        for split, items in by_split((each.split, each.item()) for each in questions).items():
            self.write_lines(f"items-{split}.jsonl", items)

    def write_lines(self, name: str, lines: Iterable[dict]) -> None:
        """Writes a JSONL file into the store."""
        with (self.folder / name).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)


def by_split(rows: Iterable[tuple[str, dict]]) -> Rows:
    """Returns `(split, row)` pairs as a list of rows for each split."""
    found: dict[str, list] = {split: [] for split in SPLITS}
    for split, row in rows:
        found[split].append(row)
    return found


def rng_of(*keys: object) -> random.Random:
    """Returns a generator whose stream depends on `keys` alone, so that one record's draw never moves another's."""
    return random.Random("\0".join(map(str, keys)))
