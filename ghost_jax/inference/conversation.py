"""A conversation with a model: what of it fits the context, what of the book each answer is shown, and the answers."""

import codecs
import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from ghost_jax.core.errors import UserError
from ghost_jax.data.retrieval.bm25 import CONTEXT, Index, Passage, shown
from ghost_jax.inference.generate import Generator
from ghost_jax.inference.sampling import Sampling
from ghost_jax.text.chat_format import Message, render_prompt
from ghost_jax.text.mcq_format import with_context
from ghost_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """What the model is shown of a question.

    Attributes:
      question: as it was asked.
      prompt: [T] int32, the whole conversation as it is shown.
      lines: of the book, in the order in which they are shown.
      left_out: lines that were found and had no room.
      earlier: the messages before the question that had room.
      forgotten: earlier questions that had none, with their answers.
    """

    question: str
    prompt: np.ndarray
    lines: tuple[Passage, ...]
    left_out: int
    earlier: tuple[Message, ...]
    forgotten: int


def fitted(
    tokenizer: Tokenizer, earlier: Sequence[Message], question: str, lines: Sequence[Passage], room: int
) -> Turn:
    """Returns the turn whose prompt has at most `room` tokens, if that can be.

    The oldest questions go first, each with its answer, and then the lines that match the least. The question itself
    is never cut.
    """
    kept, read = tuple(earlier), tuple(lines)
    while True:
        newest = Message("user", with_context(question, [shown(line) for line in read]))
        prompt = render_prompt(tokenizer, [*kept, newest])
        if len(prompt) <= room or not (kept or read):
            forgotten = (len(earlier) - len(kept)) // 2
            return Turn(question, prompt, read, len(lines) - len(read), kept, forgotten)
        if kept:
            kept = kept[2:]
        else:
            read = read[:-1]


def text_of(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yields the text of ids as they come, whole characters only; bytes that are no UTF-8 show as U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:
        if piece := decoder.decode(tokenizer.decode_bytes([i])):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


# Of the C0 and C1 controls a terminal needs the tab and the new line; the others move its cursor, change its title or
# paste into it. Marks of direction can make a line read as another than it is.
_UNSAFE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def harmless(text: str) -> str:
    r"""Returns text that changes nothing of a terminal: `\x1b` for an escape."""
    return _UNSAFE.sub(lambda found: ascii(found[0])[1:-1], text)


class Conversation:
    """A model that answers, and what was said so far.

    Args:
      index: of the book, None where it is closed. It is searched for the newest question alone.
      room: tokens of a prompt that leave enough of the context for an answer.
      key: the n-th answer of a conversation, or of a batch, draws with n folded in.
    """

    def __init__(
        self,
        generator: Generator,
        tokenizer: Tokenizer,
        index: Index | None,
        *,
        room: int,
        sampling: Sampling,
        key: jax.Array,
    ):
        self._generator, self.tokenizer, self._index = generator, tokenizer, index
        self._room, self._sampling, self._key = room, sampling, key
        self.reset()

    @property
    def open_book(self) -> bool:
        """Whether answers rest on lines of the book."""
        return self._index is not None

    def warm_up(self) -> None:
        """Compiles what answers need, so that the first one comes at once."""
        self._generator.warm_up()

    def reset(self) -> None:
        """Forgets the conversation."""
        self._earlier: tuple[Message, ...] = ()
        self._turns = 0

    def turn(self, question: str) -> Turn:
        """Returns the next turn of the conversation. Raises UserError where the question alone fills the context."""
        turn = fitted(self.tokenizer, self._earlier, question, self._lines(question), self._room)
        self.most(turn)
        return turn

    def most(self, turn: Turn) -> int:
        """Returns the most tokens that an answer can have."""
        return self._generator.room_after(len(turn.prompt))

    def stream(self, turn: Turn) -> Iterator[int]:
        """Yields the ids of the answer as they are chosen."""
        return self._generator.stream(turn.prompt, self._sampling, self._key_of(self._turns))

    def keep(self, turn: Turn, answer: str) -> None:
        """Makes a turn part of the conversation; the lines that it was shown not, since they fill a context soon."""
        self._earlier = (*turn.earlier, Message("user", turn.question), Message("assistant", answer))
        self._turns += 1

    def answers(self, questions: Sequence[str], first: int) -> Iterator[dict]:
        """Yields of each question, asked by itself, `prompt` with `answer`, `tokens`, `cut` and `lines`, or `error`.

        `first` is the number of the first one, by which it draws.
        """
        turns: dict[int, Turn] = {}
        found: dict[int, dict] = {}
        for n, question in enumerate(questions, first):
            self.reset()
            try:
                turns[n] = self.turn(question)
            except UserError as fault:
                found[n] = {"prompt": question, "error": str(fault)}
        keys = jax.vmap(self._key_of)(np.fromiter(turns, np.uint32))
        texts = self._generator([turn.prompt for turn in turns.values()], self._sampling, keys, shown=False)
        for (n, turn), ids in zip(turns.items(), texts, strict=True):
            found[n] = {"prompt": turn.question, "answer": self.tokenizer.decode(ids)}
            found[n] |= {"tokens": len(ids), "cut": len(ids) == self.most(turn)}
            if self.open_book:
                found[n]["lines"] = [dataclasses.asdict(line) for line in turn.lines]
        yield from (found[n] for n in sorted(found))

    def _key_of(self, n: int | jax.Array) -> jax.Array:
        return jax.random.fold_in(self._key, n)

    def _lines(self, question: str) -> list[Passage]:
        """Returns the lines of the book that share a word with the question, the best first."""
        if self._index is None:
            return []
        rows, scores = self._index.search([question], CONTEXT)
        return [self._index.passage(row) for row, score in zip(rows[0], scores[0], strict=True) if score > 0]
