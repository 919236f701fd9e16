"""What is trained on: each builder turns clean documents and their facts into conversations.

To add one, write a module with a `VERSION` and a function `build` that yields conversations, and give it a row in
`DATASETS` (`ghost_jax/data/conversations.py`); a recipe then mixes it by that name.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator

from ghost_jax.data.storage.schema import Record
from ghost_jax.text.chat_format import Message
from ghost_jax.text.mcq_format import LETTERS

Documents = Callable[[], Iterator[Record]]  # may be iterated more than once; reads from disk each time


@dataclasses.dataclass(frozen=True, slots=True)
class Conversation:
    """One training example before it is tokenised.

    Attributes:
      id: unique within its builder.
      source: the source of the document it was made from.
      messages: the turns.
      split: "train", "validation" or "test", drawn from the subject.
      letter: the gold letter of a multiple-choice question, else empty.
    """

    id: str
    source: str
    messages: tuple[Message, ...]
    split: str
    letter: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Question:
    """A multiple-choice question with its evidence; every layout, with a reason or without, is rendered from it.

    Attributes:
      id: unique within its builder; begins with the relation it asks about ("tactic/attack/…").
      source: the source of the document that states the fact.
      split: "train", "validation" or "test", drawn from the subject.
      question, options: as a person reads them.
      answer: the index of the gold option.
      evidence: the fact's evidence sentence.
      url: the document's page.
    """

    id: str
    source: str
    split: str
    question: str
    options: tuple[str, ...]
    answer: int
    evidence: str
    url: str

    @property
    def letter(self) -> str:
        """The gold letter."""
        return LETTERS[self.answer]


def rng_of(*keys: object) -> random.Random:
    """Returns a generator whose stream depends on `keys` alone, so that one record's draw never moves another's."""
    return random.Random("\0".join(map(str, keys)))
