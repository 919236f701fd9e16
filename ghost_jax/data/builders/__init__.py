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
