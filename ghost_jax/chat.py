"""Talking to a run: `python -m ghost_jax.chat --workdir=runs/NAME [--book=open]`.

On a terminal it is a conversation. Where standard input is a file or a pipe, each line of it is a turn; with `--jsonl`
each is a conversation of its own and gets a JSON object. `--workdir=A,B --transcript=FILE.md` asks several runs the
same held-out prompts instead. Questions and answers are text to the end: role tokens are placed by the renderer alone,
and control characters, which a terminal would obey, are shown and not sent to it.
"""

import argparse
import codecs
import contextlib
import dataclasses
import importlib
import json
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import BinaryIO

import jax
from rich.console import Console

from ghost_jax.core import jax_setup
from ghost_jax.core.atomic_io import without_bom, write_text
from ghost_jax.core.errors import DONE, FAILED, UsageError, UserError, command, did_you_mean, say_error
from ghost_jax.core.paths import local_path
from ghost_jax.data.corpus import PUBLISHED_BOOK, book_corpus, index_store
from ghost_jax.data.retrieval.bm25 import Index, Passage, shown
from ghost_jax.inference import transcript
from ghost_jax.inference.conversation import Conversation, Turn, harmless, text_of
from ghost_jax.inference.generate import Generator
from ghost_jax.inference.sampling import GREEDY, Sampling
from ghost_jax.parallel.mesh import make_mesh
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.tokenizer import ROLES
from ghost_jax.training.checkpoint import load_model

COMMANDS = {"/reset": "forget the conversation", "/help": "show this", "/quit": "leave, as Ctrl-D does"}
BATCH_SIZE = 16  # of --jsonl
TOGETHER = 128  # questions of --jsonl answered before any is written: of like length, they fill batches


# ---- Standard input and output ----


class LineDropped(Exception):
    """Ctrl-C was pressed while a line was typed."""


class Keyboard:
    """What is typed on a terminal. Ctrl-C drops the line that is being typed, or stops the answer under way."""

    def __init__(self):
        self._typing = False
        self.stopped = False
        signal.signal(signal.SIGINT, self._interrupt)

    def _interrupt(self, signum: int, frame: FrameType | None) -> None:
        self.stopped = True
        if self._typing:
            raise LineDropped

    def lines(self) -> Iterator[str]:
        """Yields each line; Ctrl-D ends them."""
        while True:
            self._typing = True
            try:
                line = input("you> ")
            except LineDropped:
                print()
                continue
            except EOFError:
                print()
                return
            finally:
                self._typing = False
            self.stopped = False
            yield line


def piped_lines(stream: BinaryIO) -> Iterator[str]:
    """Yields each line of UTF-8 text; a byte that is no UTF-8 comes as a lone surrogate and is a token like any other.

    Raises UserError for text in UTF-16.
    """
    for number, line in enumerate(stream):
        line = without_bom(line, "Standard input") if number == 0 else line
        yield line.decode("utf-8", "surrogateescape")


def converse(conversation: Conversation, lines: Iterable[str], stopped: Callable[[], bool], notes: Console) -> int:
    """Answers each line in turn, obeys commands, and returns how many questions could not be answered."""
    refused = 0
    for line in lines:
        question = line.strip()
        if question == "/quit":
            break
        if question == "/reset":
            conversation.reset()
            notes.print("The conversation is forgotten.", style="dim")
        elif question == "/help":
            for name, meaning in COMMANDS.items():
                notes.print(f"{name:8}{meaning}", style="dim")
        elif re.fullmatch(r"/[a-z]+", question):
            notes.print(f"There is no command {question}.{did_you_mean(question, list(COMMANDS))}", style="dim")
        elif question:
            try:
                say_answer(conversation, conversation.turn(question), stopped, notes)
            except UserError as fault:
                say_error(str(fault))
                refused += 1
    return refused


def say_answer(conversation: Conversation, turn: Turn, stopped: Callable[[], bool], notes: Console) -> None:
    """Writes the answer as it comes, then the lines that it was shown; `stopped` is asked at each token."""
    if turn.forgotten:
        count = "The oldest question is" if turn.forgotten == 1 else f"The {turn.forgotten} oldest questions are"
        notes.print(f"{count} forgotten with the answer: the context is full.", style="dim")
    if turn.left_out:
        notes.print(f"{turn.left_out} of the lines found have no room in the context.", style="dim")
    said: list[int] = []

    def ids() -> Iterator[int]:
        for i in conversation.stream(turn):
            if stopped():
                return
            said.append(i)
            yield i

    for piece in text_of(conversation.tokenizer, ids()):
        print(harmless(piece), end="", flush=True)
    print(flush=True)
    conversation.keep(turn, conversation.tokenizer.decode(said))
    if stopped():
        notes.print("(stopped)", style="dim")
    elif not said:
        notes.print("(the model ended its turn without a word)", style="dim")
    elif len(said) == conversation.most(turn):
        notes.print(f"(cut off after {len(said)} tokens)", style="dim")
    if conversation.open_book:
        show_lines(turn.lines)


def show_lines(lines: Sequence[Passage]) -> None:
    """Prints the lines of the book that an answer was shown, numbered, each with its address."""
    if not lines:
        print("\nNo line of the book shares a word with the question: the answer rests on none.")
    for number, line in enumerate(lines, 1):
        start = "\n" if number == 1 else ""
        print(f"{start}[{number}] {harmless(shown(line))}\n    {harmless(line.url or line.source)}")
    print(flush=True)


def answer_lines(conversation: Conversation, lines: Iterable[str]) -> int:
    """Writes a JSON object for each line, which is a conversation of its own; returns how many were refused."""
    prompts = [prompt_of(line, number) for number, line in enumerate(lines, 1) if line.strip()]
    refused = 0
    for first in range(0, len(prompts), TOGETHER):
        for found in conversation.answers(prompts[first : first + TOGETHER], first):
            refused += "error" in found
            print(json.dumps(found), flush=True)
    return refused


def prompt_of(line: str, number: int) -> str:
    """Returns the prompt of a line: the line itself, or `prompt` of a JSON object, which may have several lines.

    Raises UserError for an object without.
    """
    if not line.lstrip().startswith("{"):
        return line.strip()
    try:
        prompt = json.loads(line)["prompt"]
        if isinstance(prompt, str) and prompt.strip():
            return prompt
    except (ValueError, KeyError):
        pass
    raise UserError(
        f'Line {number} of standard input begins like a JSON object and is none with a "prompt". Write '
        '{"prompt": "…"}, or the bare question.'
    )


# ---- The command ----


def open_index(data_dir: Path | None) -> Index:
    """Returns the index of the open book, built if need be. Raises UserError where a source cannot be had."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return Index.load(index_store(book_corpus(data_dir, say), PUBLISHED_BOOK, say))


def open_run(
    workdir: Path, flags: argparse.Namespace, sampling: Sampling, index: Index | None
) -> tuple[Conversation, int]:
    """Returns a conversation with a run and the step it is at. Raises UserError where it holds no whole chat model."""
    mesh = make_mesh(devices=jax.devices()[:1])  # one conversation is a batch of one
    model, params, step = load_model(workdir, mesh)
    if not flags.jsonl and jax.default_backend() == "cpu":
        model = dataclasses.replace(model, dtype="float32")  # a CPU decodes one row slower in bfloat16
    tokenizer = tokenizer_lib.load(workdir / "tokenizer.json")
    if absent := [role for role in ROLES if not tokenizer.has(role)]:
        raise UserError(
            f"{workdir} is a base model without a chat format: its vocabulary lacks {', '.join(absent)}. Name a "
            "chat run that was made from it, or make one: python -m ghost_jax.train --config=configs/chat_v5.py:nano."
        )
    generator = Generator(
        model,
        params,
        mesh,
        batch_size=BATCH_SIZE,
        new_tokens=flags.max_new_tokens,
        stop_ids=tokenizer.special_ids,  # none of them is text
    )
    room = max(model.context - flags.max_new_tokens, model.context // 2)  # at least half is the conversation's
    key = jax.random.key(flags.seed)
    return Conversation(generator, tokenizer, index, room=room, sampling=sampling, key=key), step


def flags_of(argv: Sequence[str]) -> argparse.Namespace:
    """Returns the parsed command line. Raises UsageError for a number that means nothing."""
    parser = argparse.ArgumentParser(prog="python -m ghost_jax.chat", description=main.__doc__)
    parser.add_argument(
        "--workdir", type=local_path, required=True, metavar="DIR", help="the run, e.g. runs/chat_v5-nano"
    )
    parser.add_argument(
        "--book", choices=("closed", "open"), default="closed", help="open: answers read and cite (default: closed)"
    )
    parser.add_argument(
        "--data_dir", type=local_path, metavar="DIR", help="folder with the book's raw/ (default: $GHOST_DATA)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default: 0)")
    parser.add_argument("--top_k", type=int, default=0, help="draw from so many tokens (default: 0, all)")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw from so much probability (default: 1)")
    parser.add_argument("--repetition_penalty", type=float, default=1.0, help="1 is none (default: 1)")
    parser.add_argument("--max_new_tokens", type=int, default=256, metavar="N", help="of an answer (default: 256)")
    parser.add_argument("--seed", type=int, default=0, help="of what is drawn (default: 0)")
    parser.add_argument(
        "--jsonl",
        action="store_true",
        help='each line of standard input is a question, or {"prompt": …}, and gets a JSON object',
    )
    parser.add_argument(
        "--transcript",
        type=local_path,
        metavar="FILE",
        help="ask the runs --workdir=A,B the same 27 held-out prompts, greedily, and write a column a run (Markdown)",
    )
    flags = parser.parse_args(argv)
    if flags.transcript and flags.jsonl:
        raise UsageError("--transcript asks prompts of its own, and --jsonl those of standard input. Give one of them.")
    if flags.max_new_tokens < 1:
        raise UsageError(f"--max_new_tokens is {flags.max_new_tokens}; an answer has at least 1.")
    if not 0 <= flags.seed < 1 << 32:
        raise UsageError(f"--seed is {flags.seed}; it must be at least 0 and below 2³².")
    return flags


def compare_runs(flags: argparse.Namespace, sampling: Sampling) -> int:
    """Asks the runs that `flags.workdir` names, with commas between, the held-out prompts, and writes a transcript.

    Raises UsageError where a name is empty or something would be drawn, and UserError where the file is there already.
    """
    names = str(flags.workdir).split(",")
    if not all(names):
        raise UsageError(
            f"--workdir={flags.workdir} has a comma without a run beside it. Name the runs with one comma between two."
        )
    places = [Path(name) for name in names]
    if sampling != GREEDY:
        raise UsageError("A transcript is greedy, so that runs differ by what they learnt. Leave out how to draw.")
    if len(set(places)) < len(places):
        raise UsageError(f"--workdir={flags.workdir} names a run twice. Name every run once.")
    if flags.transcript.exists():
        raise UserError(f"{flags.transcript} is there already. Choose another --transcript, or delete it.")
    jax_setup.set_up()
    index = open_index(flags.data_dir) if flags.book == "open" else None
    alike = len({place.name for place in places}) < len(places)
    conversations = {}
    for place in places:
        conversation, step = open_run(place, flags, sampling, index)
        conversations[f"{place if alike else place.name}, step {step:,}"] = conversation
    asked = transcript.prompts()
    texts = [prompt.text for prompt in asked]
    answers = {name: list(conversation.answers(texts, 0)) for name, conversation in conversations.items()}
    how = f"asked greedily for at most {flags.max_new_tokens} tokens, {flags.book} book"
    write_text(flags.transcript, transcript.markdown(asked, answers, how))
    print(flags.transcript)
    return DONE


@command
def main(argv: Sequence[str]) -> int:
    """Talks to a chat run: on a terminal, or a question a line from standard input; or compares runs side by side."""
    flags = flags_of(argv)
    sampling = Sampling(flags.temperature, flags.top_k, flags.top_p, flags.repetition_penalty)
    if flags.transcript:
        return compare_runs(flags, sampling)
    if not flags.jsonl and codecs.lookup(sys.stdout.encoding).name != "utf-8":
        raise UserError(
            f"Standard output takes {sys.stdout.encoding}, and an answer may hold any character. Use a terminal and a "
            "locale of UTF-8, or set PYTHONUTF8=1."
        )
    typed = sys.stdin.isatty() and sys.stdout.isatty() and not flags.jsonl
    notes = Console(stderr=not typed, markup=False, emoji=False, highlight=False, soft_wrap=True)
    jax_setup.set_up()
    index = open_index(flags.data_dir) if flags.book == "open" else None
    conversation, step = open_run(flags.workdir, flags, sampling, index)
    if flags.jsonl:
        return FAILED if answer_lines(conversation, piped_lines(sys.stdin.buffer)) else DONE
    if not typed:
        return FAILED if converse(conversation, piped_lines(sys.stdin.buffer), lambda: False, notes) else DONE
    sys.stdin.reconfigure(errors="surrogateescape")  # for what is typed, as in `piped_lines`
    notes.print(f"{flags.workdir.name}, step {step:,}. Getting ready; the first time takes longest.", style="dim")
    conversation.warm_up()
    notes.print("/help lists the commands. Ctrl-C stops an answer, Ctrl-D leaves.", style="dim")
    with contextlib.suppress(ImportError):
        importlib.import_module("readline")  # gives input() its editing keys; not every Python has it
    keyboard = Keyboard()
    converse(conversation, keyboard.lines(), lambda: keyboard.stopped, notes)
    return DONE


if __name__ == "__main__":
    sys.exit(main())
