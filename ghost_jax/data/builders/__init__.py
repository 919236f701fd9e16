"""What is trained on: each builder turns clean documents and their facts into conversations.

To add one, write a module with a function `build(documents, options) -> Iterator[Conversation]` and give it a name in
`BUILDERS` (`ghost_jax/data/prepare.py`); a recipe then mixes it by that name.
"""

import dataclasses
import random
from collections.abc import Callable, Iterator

from ghost_jax.data.records import Record
from ghost_jax.text.chat import Message

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


def rng_of(*keys: object) -> random.Random:
    """Returns a generator whose stream depends on `keys` alone, so that one record's draw never moves another's."""
    return random.Random("\0".join(map(str, keys)))


def first_sentences(text: str, count: int, limit: int) -> str:
    """Returns the first `count` sentences of the first paragraph, at most `limit` characters, cut between words."""
    paragraph = " ".join(text.split("\n\n", 1)[0].split())
    sentences, start = [], 0
    for i, char in enumerate(paragraph):
        # A full stop ends a sentence where a blank and a capital follow; "e.g. the" and "v1.2" do not.
        if char in ".!?" and paragraph[i + 1 : i + 2] in ("", " ") and not paragraph[i + 2 : i + 3].islower():
            sentences.append(paragraph[start : i + 1].strip())
            start = i + 1
            if len(sentences) == count:
                break
    else:
        if paragraph[start:].strip():
            sentences.append(paragraph[start:].strip())
    kept = " ".join(sentences)
    return kept if len(kept) <= limit else kept[:limit].rsplit(" ", 1)[0].rstrip(",;:") + " …"
