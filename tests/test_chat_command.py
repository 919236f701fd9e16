"""`python -m ghost_jax.chat` on a terminal and in a pipe, and what a conversation makes of questions and answers."""

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ghost_jax.chat import prompt_of
from ghost_jax.core.console import escape_controls
from ghost_jax.core.errors import UserError
from ghost_jax.data.retrieval.bm25 import Passage
from ghost_jax.inference import conversation
from ghost_jax.inference.conversation import decode_stream, fit_turn
from ghost_jax.runs import evaluation
from ghost_jax.text import tokenizer as tokenizer_lib
from ghost_jax.text.chat_format import Message, render_prompt
from ghost_jax.text.tokenizer import Tokenizer
from tests.conftest import ROOT, WAIT, Ghost
from tests.test_open_book import ASKED, data  # noqa: F401, a fixture
from tests.test_verdict import graded


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    trained = tokenizer_lib.train(["how is phishing mitigated? by training the users. und über"] * 9, 300)
    return trained.with_chat_tokens([])


LINES = [Passage(f"page {n}", "attack", f"Page {n}", "", "word " * 9, f"https://example.org/{n}") for n in range(3)]
EARLIER = [Message("user", "one?"), Message("assistant", "1"), Message("user", "two?"), Message("assistant", "2")]


def test_the_oldest_questions_are_dropped_first_then_the_lines_that_match_least(tokenizer):
    whole = fit_turn(tokenizer, EARLIER, "three?", LINES, max_tokens=10_000)
    shown = tokenizer.decode(whole.prompt)
    assert shown.index("one?") < shown.index("Page 0") < shown.index("Page 2") < shown.index("three?")
    seen = []
    for room in range(len(whole.prompt), 0, -1):
        turn = fit_turn(tokenizer, EARLIER, "three?", LINES, room)
        assert turn.earlier == tuple(EARLIER[2 * turn.forgotten :])
        assert turn.lines == tuple(LINES[: len(LINES) - turn.lines_dropped])
        assert len(turn.prompt) <= room or not (turn.earlier or turn.lines)
        if (turn.forgotten, turn.lines_dropped) not in seen:
            seen.append((turn.forgotten, turn.lines_dropped))
    assert seen == [(0, 0), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert np.array_equal(turn.prompt, render_prompt(tokenizer, [Message("user", "three?")]))  # never cut


def test_a_long_conversation_is_rendered_a_few_times(tokenizer, monkeypatch):
    sizes = []
    counted = lambda *given: sizes.append(len(found := render_prompt(*given))) or found  # noqa: E731
    monkeypatch.setattr(conversation, "render_prompt", counted)
    turn = fit_turn(tokenizer, EARLIER * 64, "three?", LINES, max_tokens=100)
    assert (turn.forgotten > 100, len(turn.prompt) <= 100, len(sizes) <= 9) == (True, True, True)


def test_characters_are_decoded_complete_and_broken_ones_end_nothing(tokenizer):
    text = "naïve 😀 über €"
    ids = [i for byte in text.encode() for i in tokenizer.encode(bytes([byte]))]  # a token for every byte
    assert list(decode_stream(tokenizer, ids)) == list(text)
    broken = [*tokenizer.encode("€".encode()[:2]), *tokenizer.encode("a"), *tokenizer.encode("😀".encode()[:3])]
    assert "".join(decode_stream(tokenizer, broken)) == "\ufffda\ufffd"


NOT_PROMPTS = {'{"question": "What?"}': "question", '{"prompt": "?", "temperature": 1}': "temperature"}
NOT_PROMPTS |= {'{"prompt": 3}': "", '{"prompt": " "}': "", "{what?": "", '{"prompt": ' + "[" * 100_000: ""}


@pytest.mark.parametrize(("line", "named"), NOT_PROMPTS.items())
def test_an_object_that_is_not_a_prompt_is_refused_by_line_and_key(line, named):
    with pytest.raises(UserError, match=f"Line 7 .*{named}"):
        prompt_of(line, 7)


QUESTION = "What is phishing?"
TOO_LONG = "word " * 200  # for the tiny run's context of 128 tokens
BATCH = [QUESTION, TOO_LONG, "two\nlines \x1b[31mred?"]
TURNS = ["/help", QUESTION, "", "/reset", QUESTION, TOO_LONG, "caf\udce9 \udcff?", "/rest", "/quit", "ignored"]
DRAWN = ("--max_new_tokens=8", "--temperature=1.5", "--top_p=0.95", "--repetition_penalty=1.2")


@pytest.fixture
def chat(ghost, monkeypatch):
    """A function that runs the command in this process with a text on standard input."""

    def run(text: str, *flags: str | Path) -> subprocess.CompletedProcess:
        stream = io.BytesIO(text.encode("utf-8", "surrogateescape"))
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(stream))
        return ghost.here("ghost_jax.chat", *flags, check=False)

    return run


def objects_of(process: subprocess.CompletedProcess) -> list[dict]:
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_a_pipe_is_a_conversation_and_each_line_of_a_batch_one_of_its_own(chat, tiny_run):
    run = f"--workdir={tiny_run.workdir}"
    lines = "".join([f"\ufeff{QUESTION}\n", *(json.dumps({"prompt": text}) + "\n" for text in BATCH[1:])])
    batch = chat(lines, run, *DRAWN, "--jsonl")
    first, refused, last = objects_of(batch)
    assert (batch.returncode, batch.stderr) == (1, "")
    assert [each["prompt"] for each in (first, refused, last)] == BATCH
    assert refused.keys() == {"prompt", "error"}
    for each in (first, last):
        assert each.keys() == {"prompt", "answer", "tokens", "cut"}
        assert each["answer"]
        assert each["cut"] == (each["tokens"] == 8)
    assert objects_of(chat(lines, run, *DRAWN, "--jsonl", "--seed=1")) != [first, refused, last]

    turns = chat("\ufeff" + "".join(f"{turn}\n" for turn in TURNS), run, *DRAWN)
    answers = turns.stdout.split("\n")
    assert answers[:2] == [escape_controls(first["answer"])] * 2  # the same seed, and again after /reset
    assert answers[2]  # of a question that is not UTF-8
    assert answers[3:] == [""]  # /quit ends the input
    assert turns.returncode == 1
    assert turns.stderr.count("error:") == 1  # of the question that is too long
    assert all(word in turns.stderr for word in ("/reset", "/rest"))


GLASS_KITE = f"\n[1] Glass Kite (T9000): {ASKED['Glass Kite']}\n    https://attack.mitre.org/techniques/T9000\n"


def test_an_open_book_cites_the_lines_of_an_answer(chat, tiny_run, data):  # noqa: F811
    flags = (f"--workdir={tiny_run.workdir}", "--book=open", f"--data_dir={data}", "--max_new_tokens=8")
    asked = "What does Glass Kite do with the printer spooler?\nzzz\n"
    assert GLASS_KITE in chat(asked, *flags).stdout
    known, unknown = objects_of(chat(asked, *flags, "--jsonl"))
    assert known["lines"][0]["url"] in GLASS_KITE
    assert unknown["lines"] == []


def test_the_lines_of_the_book_are_the_answer_of_a_run_that_only_guesses(chat, tiny_run, data, tmp_path):  # noqa: F811
    run = shutil.copytree(tiny_run.workdir, tmp_path / "run")
    shutil.rmtree(run / "evals", ignore_errors=True)
    evaluation.write(run / "evals" / "ctibench.json", graded(0.25, letter_share={"A": 1.0, "B": 0.0}))
    flags = (f"--workdir={run}", "--book=open", f"--data_dir={data}")
    text = chat("What is Glass Kite?\n", *flags).stdout
    assert text.startswith(GLASS_KITE)
    known, unknown = objects_of(chat("What is Glass Kite?\nzzz\n", *flags, "--jsonl"))
    assert known["answer"] in text
    assert (known["tokens"], unknown["lines"]) == (0, [])


def test_what_cannot_be_opened_or_followed_is_refused_by_its_name(ghost, tiny_run, tmp_path):
    run = f"--workdir={tiny_run.workdir}"
    for code, named, *flags in (
        (1, "nowhere", "--workdir=nowhere"),
        (1, str(tiny_run.base), f"--workdir={tiny_run.base}"),
        (1, "enterprise-attack-15.1.json", run, "--book=open", f"--data_dir={tmp_path}"),
        (2, "top_p", run, "--top_p=2"),
        (2, "max_new_tokens", run, "--max_new_tokens=0"),
        (2, "seed", run, "--seed=-1"),
    ):
        assert named in ghost.refused_here("ghost_jax.chat", *flags, code=code)


class Screen:
    """A chat in a terminal: input is typed, and its output is read."""

    def __init__(self, ghost: Ghost, *flags: str | Path):
        self.terminal, theirs = pty.openpty()
        command = [sys.executable, "-m", "ghost_jax.chat", *map(str, flags)]
        env = ghost.environment({"LANG": "C.UTF-8", "TERM": "xterm"})
        self.process = subprocess.Popen(command, cwd=ROOT, env=env, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def until(self, words: str) -> str:
        """Returns the output up to the words, and forgets it."""
        while words not in self.shown:
            assert select.select([self.terminal], [], [], WAIT)[0], self.shown
            self.shown += os.read(self.terminal, 4096).decode("utf-8", "replace")
        before, _, self.shown = self.shown.partition(words)
        return before


@pytest.fixture
def screen(ghost, tiny_run):
    opened = Screen(ghost, f"--workdir={tiny_run.workdir}", "--max_new_tokens=64")
    yield opened
    opened.process.kill()
    opened.process.wait()
    os.close(opened.terminal)


@pytest.mark.slow
def test_a_conversation_on_a_terminal(screen):
    screen.until("you> ")
    screen.type(f"{QUESTION}\n")
    assert screen.until("you> ").split("\n", 1)[1].strip()
    for _ in range(4):  # of a context of 128 tokens
        screen.type("And then, what does one do about it?\n")
        shown = screen.until("you> ")
    assert "forgotten" in shown
    screen.type("half a li")
    screen.until("half a li")
    time.sleep(2)  # Python's readline ignores a signal that comes while it echoes
    screen.process.send_signal(signal.SIGINT)
    screen.until("you> ")
    screen.type("hello\n")
    screen.until("hello")
    screen.process.send_signal(signal.SIGINT)
    screen.until("you> ")
    assert screen.process.poll() is None
    screen.type("/reset\n")
    screen.until("forgotten")
    screen.until("you> ")
    screen.type("\x04")
    assert screen.process.wait(WAIT) == 0
    assert "error" not in screen.shown
