"""A conversation with a model: which messages and lines of the book fit the context, and the answers."""

import bisect
import codecs
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

import jax
import numpy as np

from ghost_jax.core.errors import UserError
from ghost_jax.data.retrieval.bm25 import Index, Passage, missing, shown
from ghost_jax.inference.generate import Generator
from ghost_jax.inference.sampling import Sampling
from ghost_jax.text.chat_format import Message, render_prompt
from ghost_jax.text.mcq_format import with_context
from ghost_jax.text.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, slots=True)
class Turn:
    """A question as the model reads it."""

    question: str  # as the user wrote it
    prompt: np.ndarray  # [T] int32, the conversation with the lines of the book
    lines: tuple[Passage, ...]  # passages of the book in the prompt
    lines_dropped: int  # passages found that do not fit the context
    earlier: tuple[Message, ...]  # messages before the question in the prompt
    forgotten: int  # earlier questions, with their answers, that do not fit the context


def fit_turn(
    tokenizer: Tokenizer, earlier: Sequence[Message], question: str, lines: Sequence[Passage], max_tokens: int
) -> Turn:
    """Returns a turn whose prompt has at most `max_tokens`, if the question alone fits.

    Drops the oldest questions and answers, then the lines that match least, and never the question or a system turn.
    """
    system = [turn for turn in earlier if turn.role == "system"]
    earlier, lines = tuple(earlier[len(system) :]), tuple(lines)
    # What may be dropped, in this order; a conversation of n turns is read log n times.
    kept = [(earlier[start:], lines) for start in range(0, len(earlier) + 1, 2)]
    kept += [((), lines[:count]) for count in range(len(lines) - 1, -1, -1)]

    @functools.cache
    def prompt_of(number: int) -> np.ndarray:
        messages, read = kept[number]
        newest = Message("user", with_context(question, [shown(line) for line in read]))
        return render_prompt(tokenizer, [*system, *messages, newest])

    fits = bisect.bisect_left(range(len(kept)), True, key=lambda number: len(prompt_of(number)) <= max_tokens)
    number = min(fits, len(kept) - 1)
    messages, read = kept[number]
    forgotten = (len(earlier) - len(messages)) // 2
    return Turn(question, prompt_of(number), read, len(lines) - len(read), messages, forgotten)


def decode_stream(tokenizer: Tokenizer, ids: Iterable[int]) -> Iterator[str]:
    """Yields the text of ids, complete characters only; bytes that are not UTF-8 become U+FFFD."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for i in ids:
        if piece := decoder.decode(tokenizer.decode_bytes([i])):
            yield piece
    if rest := decoder.decode(b"", final=True):
        yield rest


def quoted(question: str, lines: Sequence[Passage]) -> str:
    """Returns lines of the book as an answer shows them: numbered, each with its address.

    The words of the question that none of them has come last: lines that match one word in five are no answer.
    """
    if not lines:
        return "No line of the book shares a word with the question."
    shown_lines = [f"[{n}] {shown(line)}\n    {line.url or line.source}" for n, line in enumerate(lines, 1)]
    absent = missing(question, lines)
    return "\n".join([*shown_lines, *([f"Missing in these lines: {', '.join(absent)}"] if absent else [])])


@dataclasses.dataclass
class Conversation:
    """A model that answers, and the messages so far."""

    generator: Generator
    tokenizer: Tokenizer
    index: Index | None  # of the book; None where it is closed. It is searched for the newest question alone.
    quotes: bool  # whether the lines of the book are the answer, and the model is not asked
    max_prompt: int  # tokens of a prompt that leave enough of the context for an answer
    sampling: Sampling
    key: jax.Array  # answer n draws with n folded in
    earlier: tuple[Message, ...] = ()
    answered: int = 0

    def reset(self) -> None:
        self.earlier, self.answered = (), 0

    def turn(self, question: str) -> Turn:
        """Returns the next turn. Raises UserError where the question alone fills the context."""
        lines = self.index.answering(question) if self.index is not None else []
        turn = fit_turn(self.tokenizer, self.earlier, question, lines, self.max_prompt)
        self.max_answer(turn)
        return turn

    def max_answer(self, turn: Turn) -> int:
        """Returns how many tokens an answer can have."""
        return self.generator.max_answer(len(turn.prompt))

    def stream(self, turn: Turn) -> Iterator[int]:
        """Yields the ids of the answer as they are chosen."""
        return self.generator.stream(turn.prompt, self.sampling, jax.random.fold_in(self.key, self.answered))

    def keep(self, turn: Turn, answer: str) -> None:
        """Adds a turn to the conversation, without its lines of the book, which would soon fill the context."""
        self.earlier = (*turn.earlier, Message("user", turn.question), Message("assistant", answer))
        self.answered += 1

    def answers(self, questions: Sequence[str], first: int) -> Iterator[dict]:
        """Yields an object for each question, asked by itself: its answer, or the error.

        `first` is the number of the first question; question n draws with n folded in.
        """
        turns: dict[int, Turn] = {}
        found: dict[int, dict] = {}
        self.reset()
        for n, question in enumerate(questions, first):
            try:
                turns[n] = self.turn(question)
            except UserError as fault:
                found[n] = {"prompt": question, "error": str(fault)}
        keys = jax.vmap(jax.random.fold_in, (None, 0))(self.key, np.fromiter(turns, np.uint32))
        prompts = [turn.prompt for turn in turns.values()]
        texts = [[]] * len(prompts) if self.quotes else self.generator(prompts, self.sampling, keys, shown=False)
        for (n, turn), ids in zip(turns.items(), texts, strict=True):
            answer = quoted(turn.question, turn.lines) if self.quotes else self.tokenizer.decode(ids)
            found[n] = {"prompt": turn.question, "answer": answer}
            found[n] |= {"tokens": len(ids), "cut": len(ids) == self.max_answer(turn)}
            if self.index is not None:
                found[n]["lines"] = [dataclasses.asdict(line) for line in turn.lines]
        yield from (found[n] for n in sorted(found))
