"""What is served: a model, the lexical reader, or a model with the reader's lines. Requests become prompts here."""

import dataclasses
import re
import secrets
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from evals.open_book.lexical import LexicalReader
from ghost_jax.core.errors import UserError
from ghost_jax.data.items.items import Item
from ghost_jax.data.retrieval.bm25 import Passage
from ghost_jax.inference.conversation import Turn, fit_turn
from ghost_jax.inference.engine import Engine, Text
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import run_dir
from ghost_jax.server.scheduler import Scheduler
from ghost_jax.server.schemas import ChatMessage, Generation
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message
from ghost_jax.text.mcq_format import LETTERS
from ghost_jax.text.tokenizer import Tokenizer
from ghost_jax.training.loading import load_model

READER = "reader"  # the model name of the lexical reader alone
MOST_SLOTS = 1 << 16  # tokens that the cache holds, all rows together: one long prompt makes every row as long
_OPTION = re.compile(r"^\s*\(?([A-Ja-j])[).:]\s+(\S.*)$")


@dataclasses.dataclass(frozen=True)
class Served:
    """A server's model and book."""

    name: str  # of the model
    model: "Model | None"  # None where the reader alone answers
    reader: LexicalReader | None  # of the book; None where it is closed
    note: str = ""  # what a client should know of the model, "" for nothing
    quotes: bool = False  # whether the reader answers chats, because the model only guesses
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))  # seconds since 1970

    def lines(self, question: str) -> list[Passage]:
        """Returns the passages of the book that match a question best, none where the book is closed."""
        return self.reader.index.answering(question) if self.reader and question.strip() else []

    def read(self, question: str, options: Sequence[str]) -> dict:
        """Returns the reader's answer: the lines that support it, and each option's letter, score and lines.

        `answer` is the letter of the option that the book supports best, or least for a negated question; the lines
        are then those of the others. It is None for no word of it, or no options, and the lines match the question.
        """
        found = {"answer": None, "negated": False, "lines": self.lines(question), "options": []}
        if not options:
            return found
        read = self.reader.read(Item("", question, tuple(options), 0))
        scores = read.scores()
        for letter, option, score, rows in zip(LETTERS, options, scores, read.rows, strict=False):
            lines = [self.reader.index.passages[row] for row in rows.tolist()]
            found["options"].append({"letter": letter, "text": option, "score": float(score), "lines": lines})
        if read.known:
            found |= {"answer": LETTERS[scores.argmax()], "lines": self.reader.evidence(read), "negated": read.negated}
        return found


@dataclasses.dataclass(frozen=True)
class Model:
    """A run, its vocabulary and the scheduler of its engine."""

    scheduler: Scheduler
    tokenizer: Tokenizer
    context: int  # tokens that the model accepts
    most: int  # tokens of an answer, unless a request says otherwise
    stops: list[int]  # ids that end an answer

    @classmethod
    def load(cls, workdir: Path, *, rows: int, waiting: int, most: int) -> "Model":
        """Loads a run. Raises UserError where it is absent."""
        mesh = make_mesh(devices=jax.devices()[:1])
        config, params, _ = load_model(workdir, mesh)
        if jax.default_backend() == "cpu":
            config = dataclasses.replace(config, dtype="float32")  # a CPU decodes few rows slower in bfloat16
        if config.generation != "v04" and config.context > (most_context := max(MOST_SLOTS // rows, 1)):
            run_dir.say(f"a text has at most {most_context:,} tokens; a smaller --batch_size allows more")
            config = dataclasses.replace(config, context=most_context)
        tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
        stops = tokenizer.special_ids if tokenizer.template else tokenizer.end_ids
        engine = Engine(config, params, mesh, batch_size=rows, new_tokens=config.context, stop_ids=stops)
        return cls(Scheduler(engine, waiting), tokenizer, config.context, most, stops)

    def chat(self, request: Generation, turns: Sequence[Message], lines: Sequence[Passage]) -> tuple[Text, Turn]:
        """Returns the text to generate, and the turn with the lines and the earlier questions that the context holds.

        Raises UserError where the model has no chat format, or the last turn fills the context.
        """
        if not self.tokenizer.template:
            raise UserError("The model is a base without a chat format. Use /v1/completions.")
        *earlier, newest = turns
        room = max(self.context - self._asked(request), self.context // 2)
        turn = fit_turn(self.tokenizer, earlier, newest.content, lines, room)
        return self.text(turn.prompt, request), turn

    def ids(self, prompt: str | Sequence[int]) -> np.ndarray:
        """Returns a plain prompt's ids, where `begins` is false behind BOS. Raises UserError for an unknown id."""
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        if not all(0 <= i < self.tokenizer.vocab_size for i in ids):
            raise UserError(f"A prompt has an id that is not of 0 to {self.tokenizer.vocab_size - 1:,}.")
        return np.array(ids if self.begins(ids) else [self.tokenizer.bos_id, *ids], np.int32)

    def begins(self, prompt: str | Sequence[int]) -> bool:
        """Returns whether nothing is put in front of a prompt.

        That is so where the vocabulary puts nothing there, and where it is ids that begin with a special token: a
        document or a turn of a conversation.
        """
        if not self.tokenizer.begins_texts:
            return bool(prompt)
        return not isinstance(prompt, str) and bool(prompt) and prompt[0] in self.tokenizer.special_ids

    def text(self, prompt: np.ndarray, request: Generation) -> Text:
        """Returns a text to generate. Raises UserError for a prompt that fills the context."""
        possible = self.scheduler.engine.max_answer(len(prompt))
        seed = secrets.randbits(32) if request.seed is None else request.seed % (1 << 32)
        key_data = np.asarray(jax.random.key_data(jax.random.key(seed)))
        return Text(prompt, request.sampling, key_data, min(possible, self._asked(request)))

    def _asked(self, request: Generation) -> int:
        """Returns how many tokens an answer may have."""
        asked = [each for each in (request.max_tokens, getattr(request, "max_completion_tokens", None)) if each]
        return min(asked, default=self.most)


def turns_of(messages: Sequence[ChatMessage]) -> list[Message]:
    """Returns a system turn or none, then user and assistant in turn, a user's first and last; else raises UserError.

    A later system turn is taken for a user's. Turns of one role in a row become one.
    """
    turns: list[Message] = []
    for message in messages:
        leads = message.role in ("system", "developer") and all(turn.role == "system" for turn in turns)
        role = "system" if leads else "assistant" if message.role == "assistant" else "user"
        if turns and turns[-1].role == role:
            turns[-1] = Message(role, f"{turns[-1].content}\n\n{message.text}")
        else:
            turns.append(Message(role, message.text))
    roles = [turn.role for turn in turns if turn.role != "system"]
    if roles[:1] != ["user"] or roles[-1] != "user" or not turns[-1].content.strip():
        raise UserError("The first and the last message must be the user's, and the last must have text.")
    return turns


def question_of(text: str) -> tuple[str, list[str]]:
    """Returns the question of a user's turn and its options, from lines such as "A) …" to "D) …", if there are any."""
    lines = text.splitlines()
    options: list[str] = []
    first = len(lines)
    for number, line in enumerate(lines):
        found = _OPTION.match(line)
        if found and len(options) < len(LETTERS) and found[1].upper() == LETTERS[len(options)]:
            first = min(first, number)
            options.append(found[2].strip())
    if len(options) < 2:
        return text.strip(), []
    question = "\n".join(lines[:first])
    return question.rpartition("Question:")[2].strip(), options
