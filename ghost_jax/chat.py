"""Talks to a run: `python -m ghost_jax.chat --workdir=runs/NAME [--book=open|FOLDER,…]`.

On a terminal it is a conversation. Where standard input is a file or a pipe, each line of it is a turn; with `--jsonl`
each is a conversation of its own and gets a JSON object.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import jax
from rich.console import Console

from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import without_bom
from ghost_jax.core.console import escape_controls
from ghost_jax.core.errors import (
    DONE,
    FAILED,
    UsageError,
    UserError,
    command,
    did_you_mean,
    parser_of,
    positive,
    say_error,
)
from ghost_jax.core.object_store import path_of
from ghost_jax.data.corpus import book_corpus, index_store
from ghost_jax.data.retrieval.bm25 import Index
from ghost_jax.data.storage import artifact_cache
from ghost_jax.inference.conversation import Conversation, Turn, decode_stream, quoted
from ghost_jax.inference.generate import Generator
from ghost_jax.inference.sampling import Sampling
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.runs import evaluation
from ghost_jax.training.loading import load_chat_model

COMMANDS = {"/reset": "forget the conversation", "/help": "show this", "/quit": "leave, as Ctrl-D does"}
BATCH_SIZE = 16  # of --jsonl
TOGETHER = 128  # questions of --jsonl answered before any is written: those of like length fill batches


# ---- Input ----


def piped_lines(stream: BinaryIO) -> Iterator[str]:
    """Yields each line; bytes that are not UTF-8 become lone surrogates. Raises UserError for UTF-16."""
    for number, line in enumerate(stream):
        line = without_bom(line, "Standard input") if number == 0 else line
        yield line.decode("utf-8", "surrogateescape")


def prompt_of(line: str, number: int) -> str:
    """Returns the prompt of a --jsonl line: the line itself, or `prompt` of a JSON object.

    Raises UserError for an object without `prompt` or with other keys.
    """
    if not line.lstrip().startswith("{"):
        return line.strip()
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = {}
    prompt = row.pop("prompt", None)
    if row or not isinstance(prompt, str) or not prompt.strip():
        unknown = f" It has the unknown keys {', '.join(row)}." if row else ""
        raise UserError(
            f'Line {number} of standard input is not a JSON object with "prompt" alone.{unknown} Write '
            '{"prompt": "…"}, or the bare question; sampling is set by flags.'
        )
    return prompt


# ---- Answers ----


def converse(conversation: Conversation, read: Callable[[], str], notes: Console, *, typed: bool) -> int:
    """Answers each line that `read` returns until /quit or Ctrl-D; returns how many questions could not be answered.

    Of typed lines, Ctrl-C drops the line, or stops the answer.
    """
    refused = 0
    while True:
        try:
            question = read().strip()
            if question == "/quit":
                return refused
            reply(conversation, question, notes)
        except UserError as fault:
            say_error(str(fault))
            refused += 1
        except EOFError:  # Ctrl-D
            print()
            return refused
        except KeyboardInterrupt:
            if not typed:
                raise
            notes.print("\n(stopped)")


def reply(conversation: Conversation, question: str, notes: Console) -> None:
    """Runs a command or answers a question. Raises UserError where the question alone fills the context."""
    if question == "/reset":
        conversation.reset()
        notes.print("The conversation is forgotten.")
    elif question == "/help":
        for name, meaning in COMMANDS.items():
            notes.print(f"{name:8}{meaning}")
    elif re.fullmatch(r"/[a-z]+", question):
        notes.print(f"There is no command {question}.{did_you_mean(question, list(COMMANDS))}")
    elif question:
        turn = conversation.turn(question)
        if turn.forgotten:
            notes.print(f"The context is full: {turn.forgotten} questions and their answers are forgotten.")
        if turn.lines_dropped:
            notes.print(f"The context is full: {turn.lines_dropped} lines of the book are left out.")
        if not conversation.quotes:
            write_answer(conversation, turn, notes)
        if conversation.index is not None:
            print(f"\n{escape_controls(quoted(turn.question, turn.lines))}\n", flush=True)


def write_answer(conversation: Conversation, turn: Turn, notes: Console) -> None:
    """Prints the answer token by token and keeps it, also the part before Ctrl-C."""
    answer: list[int] = []

    def ids() -> Iterator[int]:
        for i in conversation.stream(turn):
            answer.append(i)
            yield i

    try:
        for piece in decode_stream(conversation.tokenizer, ids()):
            print(escape_controls(piece), end="", flush=True)
    finally:
        conversation.keep(turn, conversation.tokenizer.decode(answer))
    print(flush=True)
    if not answer:
        notes.print("(the answer is empty)")
    elif len(answer) == conversation.max_answer(turn):
        notes.print(f"(cut off after {len(answer)} tokens)")


def answer_lines(conversation: Conversation, lines: Iterable[str]) -> int:
    """Prints a JSON object for each line, a conversation of its own; returns how many were refused."""
    prompts = [prompt_of(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    refused = 0
    for first in range(0, len(prompts), TOGETHER):
        for found in conversation.answers(prompts[first : first + TOGETHER], first):
            refused += "error" in found
            print(json.dumps(found), flush=True)
    return refused


# ---- The command ----


def open_run(flags: argparse.Namespace, sampling: Sampling) -> tuple[Conversation, int]:
    """Returns a conversation with a run, with the book that --book names, and the run's step.

    Raises UserError where the run is not a chat model, or a source of the book is missing.
    """
    mesh = make_mesh(devices=jax.devices()[:1])
    model, params, step, tokenizer = load_chat_model(flags.workdir, mesh)
    index = None
    if flags.book != "closed":
        say = functools.partial(print, file=sys.stderr, flush=True)
        corpus = book_corpus(flags.data_dir, say, flags.book)
        index = Index.load(index_store(corpus, artifact_cache.manifest(corpus).documents, say))
    if not flags.jsonl and jax.default_backend() == "cpu":
        model = dataclasses.replace(model, dtype="float32")  # a CPU decodes one row slower in bfloat16
    size = {"batch_size": BATCH_SIZE, "new_tokens": flags.max_new_tokens, "stop_ids": tokenizer.special_ids}
    generator = Generator(model, params, mesh, **size)
    max_prompt = max(model.context - flags.max_new_tokens, model.context // 2)
    quotes = index is not None and evaluation.only_guesses(flags.workdir)
    key = jax.random.key(flags.seed)
    return Conversation(generator, tokenizer, index, quotes, max_prompt, sampling, key), step


def parse_flags(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed command line. Raises UsageError for a number out of range."""
    parser = parser_of(main)
    add = parser.add_argument
    add("--workdir", type=path_of, required=True, metavar="DIR", help="the run, e.g. runs/chat_v5-nano")
    add("--book", default="closed", metavar="BOOK", help="closed (default), open, or your files: FOLDER,cwe,…")
    add("--data_dir", type=path_of, metavar="DIR", help="folder with the book's raw/ (default: $GHOST_DATA)")
    add("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    add("--top_k", type=int, default=0, help="draw from so many tokens (default: 0, all)")
    add("--top_p", type=float, default=1.0, help="draw from so much probability (default: 1)")
    add("--repetition_penalty", type=float, default=1.0, help="1 is none (default: 1)")
    add("--max_new_tokens", type=positive, default=256, metavar="N", help="of an answer (default: 256)")
    add("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    add("--jsonl", action="store_true", help='each input line, a question or {"prompt": …}, gets a JSON object')
    flags = parser.parse_args(argv)
    if not 0 <= flags.seed < 1 << 32:
        raise UsageError(f"--seed is {flags.seed}; it must be at least 0 and below 2³².")
    return flags


@command
def main(argv: Sequence[str]) -> int:
    """Talks to a chat run: on a terminal, or a question a line from standard input."""
    flags = parse_flags(argv)
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p, flags.repetition_penalty)
    typed = sys.stdin.isatty() and sys.stdout.isatty() and not flags.jsonl
    if sys.stdout.errors == "strict":  # an answer may hold any character
        sys.stdout.reconfigure(errors="backslashreplace")
    notes = Console(stderr=not typed, markup=False, emoji=False, highlight=False, soft_wrap=True, style="dim")
    jax_setup.set_up()
    conversation, step = open_run(flags, sampling)
    if conversation.quotes:
        notes.print("Every score of this run is at chance or collapsed, so the lines of the book are the answer.")
    elif not flags.jsonl and evaluation.only_guesses(flags.workdir):
        notes.print("Every score of this run is at chance or collapsed to one letter.")
    if flags.jsonl:
        return FAILED if answer_lines(conversation, piped_lines(sys.stdin.buffer)) else DONE
    if not typed:
        read = functools.partial(next, piped_lines(sys.stdin.buffer), "/quit")
        return FAILED if converse(conversation, read, notes, typed=False) else DONE
    sys.stdin.reconfigure(errors="surrogateescape")  # as in `piped_lines`
    if not conversation.quotes:
        notes.print(f"{flags.workdir.name}, step {step:,}. Compiling; the first time takes longest.")
        conversation.generator.warm_up()
    notes.print("/help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves.")
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # editing keys for input(); not every Python has it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # `command` makes it a KeyboardInterrupt, as Ctrl-C
    converse(conversation, functools.partial(input, "you> "), notes, typed=True)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
