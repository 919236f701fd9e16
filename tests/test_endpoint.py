"""`python -m evals.ctibench --endpoint`: a model behind an API is scored as a run is, and asked nothing twice."""

import json
import math
import re
from pathlib import Path

import pytest

from evals.answering import endpoint
from tests.test_ctibench import write_items
from tests.test_teacher import KEY, Answer, Server, completion

COUNT = 6  # questions; each is asked in 4 orders, as it is and in both controls
REQUESTS = COUNT * 4 * 3
BUSY = (429, {"Retry-After": "0.01"}, b"slow down")


class Model(Server):
    question_of = staticmethod(lambda body: body["messages"][0]["content"])


@pytest.fixture
def items(tmp_path) -> str:
    options = [{x: f"{'gold' if x == 'ABCD'[n % 4] else x} {n}" for x in "ABCD"} for n in range(COUNT)]
    rows = [{"question": f"Number {n}?", "options": of, "answer": "ABCD"[n % 4]} for n, of in enumerate(options)]
    return write_items(tmp_path / "own.jsonl", rows)


def question_in(body: dict) -> str:
    return re.search(r"Question:(?: Number (\d+))?", body["messages"][0]["content"])[1] or "none"


def right_letter(body: dict) -> str:
    """The letter of one who reads: gold where the question is its own, else A."""
    gold = re.search(rf"^([A-D])\) gold {question_in(body)}$", body["messages"][0]["content"], re.MULTILINE)
    return gold[1] if gold else "A"


def by_logprobs(body: dict, _: int = 1) -> Answer:
    assert (body["logprobs"], body["top_logprobs"]) == (True, 20)
    other = "B" if (letter := right_letter(body)) == "A" else "A"
    # The likeliest token is another letter; the three tokens of the right one together are likelier.
    of_letter = [(form, math.log(0.19)) for form in (letter, f" {letter}", letter)]
    return completion(other, [(other, math.log(0.4)), *of_letter, ("The", -9.0)])


def by_text(body: dict, _: int = 1) -> Answer:
    return completion(f"Answer: {right_letter(body)}")


def score(ghost, server: Server, items: str, out: Path, *flags: str, refused: int | None = None, **env: str):
    command = ["evals.ctibench", f"--endpoint={server.url}", "--model=m:1", f"--items={items}", f"--out={out}", *flags]
    env = {"NO_PROXY": "127.0.0.1"} | env
    return ghost.refused_here(*command, code=refused, env=env) if refused else ghost.here(*command, env=env).stdout


def test_letters_by_logprobs_get_the_report_of_a_run(ghost, items, tmp_path, caplog):
    caplog.set_level("DEBUG")
    server, out = Model(by_logprobs), tmp_path / "deep" / "report.json"
    screen = score(ghost, server, items, out, OPENAI_API_KEY=KEY)
    report = json.loads(out.read_text())
    assert (report["headline"]["accuracy"], report["reader"], report["book"]) == (1.0, "endpoint", "closed")
    assert [report["controls"][name]["accuracy"] for name in ("options only", "question swapped")] == [0.25, 0.25]
    assert report["verdict_text"] in screen
    found = {"model": "m:1", "host": "127.0.0.1", "letters_by": "logprobs", "prompt_tokens": 50 * REQUESTS}
    assert (found | {"requests": REQUESTS}).items() <= report["endpoint"].items()
    assert server.asked.total() == REQUESTS
    assert {headers["Authorization"] for headers, _ in server.seen} == {f"Bearer {KEY}"}
    assert KEY not in "".join([screen, caplog.text, *(path.read_text() for path in out.parent.iterdir())])
    score(ghost, server, items, out)
    assert server.asked.total() == REQUESTS
    assert json.loads(out.read_text()) == report


def refusing_logprobs(body: dict, _: int) -> Answer:
    return (400, {}, b'{"error": {"message": "logprobs: not supported"}}') if "logprobs" in body else by_text(body)


def thinking(body: dict, _: int) -> Answer:
    return completion(
        f"<think>A) or B)?</think>\n**{right_letter(body)}**", [("<think>", -0.1), ("B", -4.0), ("A", -5.0)]
    )


def refusing_temperature(body: dict, _: int) -> Answer:
    said = b'{"error": {"message": "Unsupported value: \'temperature\' does not support 0 with this model."}}'
    return (400, {}, said) if "temperature" in body else by_text(body)


@pytest.mark.parametrize("answer", [by_text, refusing_logprobs, refusing_temperature, thinking])
def test_letters_by_text_where_logprobs_are_absent_refused_or_of_another_token(ghost, items, tmp_path, answer):
    score(ghost, Model(answer), items, tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["headline"]["accuracy"], report["endpoint"]["letters_by"]) == (1.0, "text")
    assert report["endpoint"].get("drawn", False) == (answer is refusing_temperature)


def test_refusals_and_essays_are_no_letter(ghost, items, tmp_path):
    words = ("I cannot help with that.", None, "word " * 500)
    server = Model(lambda body, _: completion(words[int(question_in(body)) % 3], [("I", -0.1), ("It", -3.0)]))
    score(ghost, server, items, tmp_path / "r.json", "--orders=published")
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["no_letter"], report["endpoint"]["unanswered"], report["headline"]["accuracy"]) == (1, 1, 0)


READ_AS_C = "C| c |(C)|**C.**|C) Execution|C. Execution\nIt runs.|So.\nAnswer: C|Answer: A?\n**Answer:** C, not B"
READ_AS_C += '|answer: C) x|A) no. Answer: C|Execution|"execution."|<think>Answer: A</think> C'
NO_LETTER = "<think>The form is 'Answer: A'. So|Answer: A, B|Answer: (A) and (B)|A) or C) fit|"
NO_LETTER += "|E|Is it C?|Answer: Command|A command|Execution or Impact|A or B|Answer: A command|C-level staff|..."


def test_the_letter_of_a_text():
    options = ("Command", "Persistence", "Execution", "Impact")
    assert [text for text in READ_AS_C.split("|") if endpoint.letter_of(text, options) != 2] == []
    assert [text for text in NO_LETTER.split("|") if endpoint.letter_of(text, options) != -1] == []
    assert endpoint.letter_of("same", ("same", "Same.", "other")) == -1
    assert endpoint.letter_of("İ", tuple("123456789")) == -1, "no I, in whatever case"


def test_a_fault_that_passes_is_repeated_and_a_repeated_command_asks_only_what_is_missing(ghost, items, tmp_path):
    out, kept = tmp_path / "report.json", tmp_path / "report.answers.jsonl"
    score(ghost, Model(lambda body, attempt: BUSY if attempt == 1 else by_text(body)), items, out)
    lines = kept.read_bytes().splitlines(keepends=True)
    assert len({json.loads(line)["key"] for line in lines}) == len(lines) == REQUESTS
    kept.write_bytes(b"".join(lines[:10]) + lines[10][:-9])  # killed while it wrote
    score(ghost, again := Model(by_text), items, out)
    assert again.asked.total() == REQUESTS - 10


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ((401, {}, f"bad {KEY}".encode()), "OPENAI_API_KEY"),
        ((404, {}, b"no such model"), "--model"),
        (b"<html>Welcome</html>", "--endpoint"),
        (b'{"error": {"message": "the upstream is gone"}}', "the upstream is gone"),
    ],
)
def test_a_fault_that_stays_keeps_the_answers(ghost, items, tmp_path, fault, named):
    out = tmp_path / "report.json"
    broken = Model(lambda body, _: fault if question_in(body) == "3" else by_text(body))
    message = score(ghost, broken, items, out, "--concurrency=1", refused=1, OPENAI_API_KEY=KEY)
    assert all(part in message for part in (named, "report.answers.jsonl"))
    assert KEY not in message
    assert not out.exists()
    score(ghost, server := Model(by_text), items, out)
    assert server.asked.total() == REQUESTS - 3 * 4


@pytest.mark.parametrize(
    ("flags", "code", "named"),
    [
        ("--endpoint=http://example.org/v1 --model=m --out={out}", 1, "GHOST_OFFLINE"),
        ("--endpoint=http://localhost:1/v1 --out={out}", 2, "--model"),
        ("--endpoint=http://me:secret@host/v1 --model=m --out={out}", 2, "OPENAI_API_KEY"),
    ],
)
def test_what_cannot_be_asked_is_refused(ghost, items, tmp_path, flags, code, named):
    words = [f"--items={items}", *flags.format(out=tmp_path / "report.json").split()]
    message = ghost.refused_here("evals.ctibench", *words, code=code)
    assert named in message
    assert "secret" not in message
    assert list(tmp_path.iterdir()) == [Path(items)]
