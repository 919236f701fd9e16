"""ghost_jax/data/builders/teacher.py and cot.reason_in: what a model is asked, what is kept, and where no key goes."""

import collections
import dataclasses
import fcntl
import http.server
import json
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data.builders import Question, cot, teacher
from tests.conftest import ROOT

KEY = "sk-nobody-may-read-this-0123456789"
OPTIONS = ("Command and Control", "Persistence", "Command", "Execution")
HASTE = teacher.RETRIES.new(backoff_factor=0.01)


def question(i: int) -> Question:
    evidence = f"Evidence {i} says so. It says it twice. And thrice."
    return Question(f"q/{i}", "test", "train", f"What is number {i}?", OPTIONS, i % 4, evidence, "")


def questions(count: int) -> list[Question]:
    return [question(i) for i in range(count)]


def number_in(body: dict) -> int:
    return int(re.search(r"What is number (\d+)\?", body["messages"][0]["content"])[1])


def completion(content: str | None) -> bytes:
    return json.dumps({"choices": [{"index": 0, "message": {"role": "assistant", "content": content}}]}).encode()


def right_reply(body: dict) -> bytes:
    return completion(f"Number {number_in(body)} is what it is. That is why.")


Answer = tuple[int, dict[str, str], bytes]


class Server:
    """A chat-completions API on a free port of this machine that answers with `answer(body, attempt)`.

    Attributes:
      url: the base URL.
      asked: how often each question came.
      seen: the headers of every request.
    """

    def __init__(self, answer: Callable[[dict, int], Answer | bytes]):
        self.asked: collections.Counter[int] = collections.Counter()
        self.seen: list[dict[str, str]] = []
        self.bodies: list[dict] = []
        lock = threading.Lock()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    outer.asked[number_in(body)] += 1
                    attempt = outer.asked[number_in(body)]
                    outer.seen.append(dict(self.headers))
                    outer.bodies.append(body)
                found = answer(body, attempt) if self.path == "/v1/chat/completions" else (404, {}, b"no such path")
                status, headers, content = found if isinstance(found, tuple) else (200, {}, found)
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)
                # Where less came than was announced, the connection ends here and not in silence.
                self.close_connection = int(headers.get("Content-Length", len(content))) != len(content)

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                """A client that was killed or has lost patience is part of the tests."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers that are closed after the test."""
    started = []

    def start(answer: Callable[[dict, int], Answer | bytes]) -> Server:
        started.append(Server(answer))
        return started[-1]

    yield start
    for server in started:
        server.close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache and an environment of the test's own; returns the folder of kept replies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("GHOST_TEACHER_KEY", raising=False)
    return tmp_path / "cache" / "ghost_jax" / "teacher"


def endpoint(server: Server, **options) -> teacher.Endpoint:
    return teacher.Endpoint(server.url, "model:14b", **{"retries": HASTE} | options)


def failure_of(model: teacher.Endpoint, count: int = 1) -> str:
    """Returns the message with which the teacher gives up, having checked that it could be shown."""
    with pytest.raises(UserError) as caught:
        list(model.explain(questions(count)))
    assert not isinstance(caught.value, UsageError)
    message = str(caught.value)
    assert "\n" not in message
    assert "answers are kept in" in message
    return message


def kept(cache: Path) -> list[dict]:
    return [json.loads(line) for file in cache.glob("*") for line in file.read_text().splitlines()]


# ---- Asking ----


def test_reasons_come_in_the_order_of_the_questions_whatever_comes_first(serve):
    def late_first(body: dict, _: int) -> bytes:
        time.sleep(0.005 * (7 - number_in(body) % 8))
        return right_reply(body)

    server = serve(late_first)
    model, asked = endpoint(server), questions(24)
    reasons = list(model.explain(asked))
    assert reasons == [f"Number {i} is what it is. That is why." for i in range(24)]
    assert model.label == "model:14b at 127.0.0.1"
    assert model.report() == {
        "teacher": "model:14b at 127.0.0.1",
        "asked": 24,
        "from_cache": 0,
        "answered_by": {"127.0.0.1": 24},
        "replaced": {"empty": 0, "refusal": 0, "another answer": 0},
    }


def test_the_teacher_is_told_all_there_is_to_know_and_asked_greedily(serve):
    server = serve(lambda body, _: right_reply(body))
    list(endpoint(server).explain([question(1)]))
    (body,) = server.bodies
    prompt = body["messages"][0]["content"]
    for told in ("What is number 1?", "A) Command and Control", "D) Execution", "answer: B) Persistence", "Evidence 1"):
        assert told in prompt
    assert (body["model"], body["temperature"]) == ("model:14b", 0)
    assert {"max_tokens", "seed"} <= body.keys()


def test_several_requests_are_in_flight(serve):
    together = threading.Barrier(teacher.IN_FLIGHT, timeout=5)

    def answer(body: dict, _: int) -> bytes:
        together.wait()  # answers nobody until all are there
        return right_reply(body)

    assert len(list(endpoint(serve(answer)).explain(questions(2 * teacher.IN_FLIGHT)))) == 2 * teacher.IN_FLIGHT


def test_a_question_that_occurs_twice_is_asked_once(serve):
    server = serve(lambda body, _: right_reply(body))
    reasons = list(endpoint(server).explain([question(1), question(2), question(1)]))
    assert reasons[0] == reasons[2] != reasons[1]
    assert server.asked == {1: 1, 2: 1}


def test_the_gold_letter_stays_when_the_teacher_insists_on_another(serve):
    server = serve(lambda body, _: completion("The correct answer is D. Execution is what it is."))
    model, asked = endpoint(server), questions(8)
    for conversation, q in zip(cot.build(asked, model, "classic"), asked, strict=True):
        said = conversation.messages[1].content
        assert said.startswith(f"{q.letter}. ")
        assert conversation.letter == q.letter
        if q.letter == "D":
            assert said == "D. Execution is what it is."
        else:
            assert said == f"{q.letter}. {cot.evidence_of(q)}"
    assert model.report()["replaced"] == {"empty": 0, "refusal": 0, "another answer": 6}


def test_the_offline_teacher_quotes_the_evidence_and_says_what_it_is():
    offline = teacher.of("offline", "")
    assert list(offline.explain(questions(2))) == [f"Evidence {i} says so. It says it twice." for i in range(2)]
    assert offline.report() == {"teacher": "offline evidence sentence"}


# ---- What is kept ----


def test_what_was_answered_is_not_asked_again(serve):
    first, second = (serve(lambda body, _: right_reply(body)) for _ in range(2))
    reasons = list(endpoint(first).explain(questions(5)))
    model = endpoint(second)
    assert list(model.explain(questions(8)))[:5] == reasons
    assert second.asked == {5: 1, 6: 1, 7: 1}
    assert (model.report()["asked"], model.report()["from_cache"]) == (3, 5)
    assert len(list(teacher.Endpoint(second.url, "another").explain(questions(5)))) == 5
    assert second.asked.total() == 3 + 5


ASK = """
import json, sys
from ghost_jax.data.builders import Question, teacher
from ghost_jax.core.errors import command

@command
def main():
    model = teacher.Endpoint(sys.argv[1], "model:14b", retries=teacher.RETRIES.new(backoff_factor=0.01))
    print(*model.explain([Question(**fields) for fields in json.load(sys.stdin)]), sep="\\n")
    print(model, vars(model), model.report())

sys.exit(main())
"""


def start(server: Server, count: int) -> subprocess.Popen:
    """Starts a process of its own that asks so many questions."""
    process = subprocess.Popen(
        [sys.executable, "-c", ASK, server.url],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    json.dump([dataclasses.asdict(q) for q in questions(count)], process.stdin)
    process.stdin.close()
    process.stdin = None
    return process


def test_a_killed_preparation_goes_on_where_it_stopped(serve, cache):
    def slow(body: dict, _: int) -> bytes:
        time.sleep(0.03)
        return right_reply(body)

    server = serve(slow)
    process = start(server, 60)
    deadline = time.monotonic() + 60
    while server.asked.total() < 20 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    time.sleep(0.1)  # the server comes to the end of what it was asked
    before = {
        number for number in server.asked if any(f"Number {number} is" in entry["reply"] for entry in kept(cache))
    }
    assert 0 < len(before) < 60

    assert len(list(endpoint(server).explain(questions(60)))) == 60
    twice = {number for number, times in server.asked.items() if times > 1}
    assert len(twice) <= teacher.IN_FLIGHT
    assert not twice & before
    assert set(server.asked) == set(range(60))


@pytest.mark.parametrize("left", [b'{"key": "ab', b"\xff\xfe", b"[1, 2]", b"{}", b'"' + b"x" * 100_000])
def test_a_half_written_last_line_is_ignored_and_overwritten(serve, cache, left):
    server = serve(lambda body, _: right_reply(body))
    list(endpoint(server).explain(questions(3)))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole + left)
    list(endpoint(server).explain(questions(4)))
    assert server.asked == {0: 1, 1: 1, 2: 1, 3: 1}
    assert file.read_bytes().startswith(whole)
    assert len(kept(cache)) == 4


def test_a_reply_cut_off_by_a_kill_is_asked_for_again(serve, cache):
    server = serve(lambda body, _: right_reply(body))
    list(endpoint(server).explain(questions(1)))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:-cut])
        assert list(endpoint(server).explain(questions(1))) == ["Number 0 is what it is. That is why."]
        assert file.read_bytes() == whole


def test_two_processes_share_the_file(serve, cache):
    server = serve(lambda body, _: completion(f"Number {number_in(body)} " + "is long " * 1500))
    processes = [start(server, 40) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert {entry["question"] for entry in kept(cache)} == {f"q/{i}" for i in range(40)}
    assert all(entry["reply"].endswith("is long ") for entry in kept(cache))


def test_a_reply_is_not_written_while_another_process_writes(serve, cache):
    server = serve(lambda body, _: right_reply(body))
    list(endpoint(server).explain(questions(1)))
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    with file.open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        asking = threading.Thread(target=lambda: list(endpoint(server).explain(questions(2))), daemon=True)
        asking.start()
        asking.join(0.3)
        assert server.asked[1] == 1
        assert file.read_bytes() == whole
    asking.join(5)
    assert len(kept(cache)) == 2


def test_a_full_disk_leaves_whole_lines_and_a_paragraph(serve, small_disk, monkeypatch):
    disk = small_disk(1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(disk))
    server = serve(lambda body, _: completion("It is long. " * 5000))
    process = start(server, 40)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "The disk is full" in " ".join(err.split())
    assert "Traceback" not in err
    small_disk(20)
    assert len(list(endpoint(server).explain(questions(40)))) == 40
    assert len(kept(disk / "ghost_jax" / "teacher")) == 40


# ---- Faults that pass ----


def test_a_server_that_is_busy_is_asked_again_when_it_says(serve):
    times = []

    def busy(body: dict, attempt: int) -> Answer | bytes:
        times.append(time.monotonic())
        return (429, {"Retry-After": "1"}, b"slow down") if attempt == 1 else right_reply(body)

    server = serve(busy)
    assert list(endpoint(server).explain(questions(1))) == ["Number 0 is what it is. That is why."]
    assert times[1] - times[0] >= 1.0
    assert server.asked == {0: 2}


@pytest.mark.parametrize(
    "fault",
    [
        (500, {}, b"oops"),
        (503, {"Retry-After": "soon"}, b""),
        (429, {"Retry-After": "0"}, b""),
        (200, {"Content-Length": "1000"}, b'{"choices": ['),  # the connection breaks within the body
    ],
    ids=["500", "503", "429", "cut"],
)
def test_a_fault_that_passes_is_not_seen(serve, fault):
    server = serve(lambda body, attempt: fault if attempt <= 2 else right_reply(body))
    model = endpoint(server)
    assert len(list(model.explain(questions(6)))) == 6
    assert set(server.asked.values()) == {3}
    assert sum(model.report()["replaced"].values()) == 0


# ---- Faults that stay ----


def test_a_server_that_never_recovers_is_given_up_and_its_answers_are_kept(serve):
    server = serve(lambda body, _: (500, {}, b"out of memory") if number_in(body) == 9 else right_reply(body))
    message = failure_of(endpoint(server), count=10)
    assert server.asked[9] == 1 + HASTE.total
    assert f"{server.url}/chat/completions answers HTTP 500 again and again" in message
    assert "out of memory" in message
    assert re.search(r"\b9 answers are kept in ", message)


@pytest.mark.parametrize("started", [False, True], ids=["before the headers", "within the body"])
def test_a_server_that_hangs_is_given_up(serve, started):
    over = threading.Event()

    def hang(body: dict, _: int) -> Answer | bytes:
        if started:
            return 200, {"Transfer-Encoding": "chunked"}, b"1\r\n{\r\n"  # and the next chunk never comes
        over.wait(10)
        return right_reply(body)

    server = serve(hang)
    began = time.monotonic()
    message = failure_of(endpoint(server, timeouts=(1.0, 0.3)))
    over.set()
    assert "is silent for longer than 0.3 s" in message
    assert server.asked == {0: 2}
    assert time.monotonic() - began < 5


def test_nobody_there_is_said_with_what_to_do(serve):
    server = serve(lambda body, _: right_reply(body))
    server.close()
    message = failure_of(endpoint(server))
    assert f"{server.url}/chat/completions cannot be reached" in message
    assert "Connection refused" in message
    assert "0 answers are kept" in message
    assert "offline" in message


@pytest.mark.parametrize(
    "content",
    [
        b"<html>Welcome</html>",
        b"{",
        b"[]",
        b'{"choices": []}',
        b'{"choices": [{"message": {"content": 7}}]}',
        b"null",
        b"[" * 100_000,
    ],
)
def test_what_is_no_chat_completion_is_said(serve, content):
    server = serve(lambda body, _: content)
    message = failure_of(endpoint(server))
    assert "does not answer as a chat-completions API does" in message
    assert "/v1" in message
    assert server.asked == {0: 1}


def test_an_unknown_model_and_a_refused_request_quote_the_server(serve):
    said = json.dumps({"error": {"message": "model 'model:14b' not found,\x1b[31m try\npulling it"}}).encode()
    unknown = failure_of(endpoint(serve(lambda body, _: (404, {}, said))))
    assert "has no such model" in unknown
    assert "data.cot.model" in unknown
    assert "model 'model:14b' not found,[31m try pulling it" in unknown
    assert "max_tokens" in failure_of(endpoint(serve(lambda body, _: (400, {}, b'{"error": "no max_tokens"}'))))
    assert "mostly ends in /v1" in failure_of(teacher.Endpoint(serve(lambda *_: b"").url + "/v1", "model:14b"))


# ---- The key ----


def test_the_key_is_a_bearer_token_and_without_one_nothing_is_sent(serve, monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    server = serve(lambda body, _: right_reply(body))
    list(endpoint(server).explain(questions(1)))
    monkeypatch.setenv("GHOST_TEACHER_KEY", f" {KEY}\n")
    list(endpoint(server).explain(questions(2)))
    assert [headers.get("Authorization") for headers in server.seen] == [None, f"Bearer {KEY}"]


def test_a_missing_and_a_wrong_key_are_told_apart(serve, monkeypatch):
    said = json.dumps({"error": {"message": f"Incorrect API key provided: {KEY}"}}).encode()
    server = serve(lambda body, _: (401, {}, said))
    assert "Set GHOST_TEACHER_KEY to a key of that service" in failure_of(endpoint(server))
    monkeypatch.setenv("GHOST_TEACHER_KEY", KEY)
    assert "Set GHOST_TEACHER_KEY to another key" in failure_of(endpoint(server))
    assert server.asked.total() == 2


def test_a_redirect_is_named_and_takes_the_key_nowhere(serve, monkeypatch):
    monkeypatch.setenv("GHOST_TEACHER_KEY", KEY)
    there = serve(lambda body, _: right_reply(body))
    secret = there.url.replace("http://", "http://user:password@")
    here = serve(lambda body, _: (307, {"Location": f"{secret}/chat/completions?token=x"}, b""))
    message = failure_of(endpoint(here))
    assert f"redirects to {there.url.removesuffix('/v1').removeprefix('http://')} (HTTP 307)" in message
    assert "password" not in message
    assert there.seen == []


@pytest.mark.parametrize("location", ["http://[", "//", "/v2/chat/completions", "http://a..b/", ""])
def test_a_redirect_to_nowhere_is_an_error_like_any(serve, location):
    message = failure_of(endpoint(serve(lambda body, _: (301, {"Location": location}, b""))))
    assert "redirects to" in message or "cannot be reached" in message


ECHOES = {
    "401": (401, {}, f"Incorrect API key: {KEY}".encode()),
    "400": (400, {}, json.dumps({"error": {"message": f"bad {KEY}"}}).encode()),
    "500": (500, {}, KEY.encode()),
    "malformed": KEY.encode(),
    "redirect": (302, {"Location": f"http://{KEY}/{KEY}"}, b""),
    "reply": completion(f"Your key is {KEY}. That is why."),
}


@pytest.mark.parametrize("answer", ECHOES.values(), ids=ECHOES)
def test_the_key_is_in_no_file_and_no_output(serve, monkeypatch, cache, caplog, capfd, answer):
    monkeypatch.setenv("GHOST_TEACHER_KEY", KEY)
    caplog.set_level("DEBUG")
    server = serve(lambda body, _: answer)
    model, shown = endpoint(server), []
    try:
        shown += model.explain(questions(3))
    except UserError as fault:
        shown += traceback.format_exception(fault)
    shown += [repr(model), str(vars(model)), str(model.report()), caplog.text, *capfd.readouterr()]
    shown += [path.read_text() for path in cache.glob("*")]
    assert {headers["Authorization"] for headers in server.seen} == {f"Bearer {KEY}"}
    assert "urllib3" in caplog.text  # whose log of requests was looked at
    assert not [text for text in shown if KEY in text or KEY[3:20] in text]


def test_a_command_that_is_not_let_in_ends_with_a_paragraph(serve, monkeypatch, tmp_path):
    monkeypatch.setenv("GHOST_TEACHER_KEY", KEY)
    process = start(serve(lambda body, _: ECHOES["401"]), 3)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.startswith("error: The teacher model:14b at http://127.0.0.1")
    assert "GHOST_TEACHER_KEY" in err
    assert KEY not in out + err


def test_a_command_that_is_stopped_does_not_wait_for_replies(serve):
    over = threading.Event()
    server = serve(lambda body, _: completion(str(over.wait(60))))
    process = start(server, 3)
    while not server.asked and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=20)
    over.set()
    assert process.returncode == 1
    assert "Stopped on request" in err


@pytest.mark.parametrize("key", ["two words-0123", "a\nb-0123", "schlüssel-0123"])
def test_a_key_that_no_header_can_hold_is_refused_unseen(monkeypatch, key):
    monkeypatch.setenv("GHOST_TEACHER_KEY", key)
    with pytest.raises(UserError, match="GHOST_TEACHER_KEY") as caught:
        teacher.of("http://localhost:1/v1", "m")
    assert key not in str(caught.value)


# ---- The config ----


@pytest.mark.parametrize(
    "url",
    [
        "",
        "Offline",
        "localhost:11434",
        "ftp://host/v1",
        "http://",
        "http:///v1",
        "http://host:x/v1",
        "http://h:99999/v1",
        "http://a..b/v1",
        "http://ho st/v1",
        "http://[::1/v1",
        "http://höst/v1",
        f"http://{'x' * 64}/v1",
    ],
)
def test_what_is_no_base_url_is_refused_by_name(url):
    with pytest.raises(UsageError, match=r"data\.cot\.teacher") as caught:
        teacher.of(url, "m")
    assert f'"{url}"' in str(caught.value)
    assert "http://localhost:11434/v1" in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://me:secret@host/v1", "me:secret@host", "https://host/v1?api_key=secret", "https://host/v1#secret"]
)
def test_credentials_within_a_url_are_refused_unseen(url):
    with pytest.raises(UsageError, match="GHOST_TEACHER_KEY") as caught:
        teacher.of(url, "m")
    assert "secret" not in str(caught.value).replace("may be secret", "")


def test_a_url_without_a_model_is_refused():
    with pytest.raises(UsageError, match=r"data\.cot\.model"):
        teacher.of("http://localhost:11434/v1", "")
    assert teacher.of("https://Host.example:8000/v1/", "org/m").label == "org/m at host.example"


# ---- From a reply to a reason ----

GOLD = question(1)  # B) Persistence


@pytest.mark.parametrize(
    "reply",
    [
        "It stays after a reboot. So it is kept.",
        "B. It stays after a reboot. So it is kept.",
        "B) It stays after a reboot. So it is kept. More is not kept.",
        "(B) It stays after a reboot. So it is kept.",
        "**B. Persistence**\n\nIt stays after a reboot. So it is kept.",
        "**Answer: B**\n\nIt stays after a reboot. So it is kept.",
        "Answer: B) Persistence.\nExplanation: It stays after a reboot. So it is kept.",
        "The correct answer is B. It stays after a reboot. So it is kept.",
        "Correct answer: Persistence. It stays after a reboot. So it is kept.",
        "## Explanation:\n\nIt stays after a reboot. So it is kept.",
        "Sure! Here is why:\n\n- It stays after a reboot.\n- So it is kept.",
        "It stays after a *reboot*. So it is **kept**.",
        "> It stays after a `reboot`. So it is kept.",
        "<think>It could be C. The answer is C?</think>\nIt stays after a reboot. So it is kept.",
        "<THINK>\nHm.\n</THINK>B: It stays after a reboot. So it is kept.",
        "The answer is C, or is it.</think>It stays after a reboot. So it is kept.",
        "<think>One.</think><think>Two.</think>It stays after a reboot.\n\nSo it is kept.",
    ],
)
def test_what_stands_around_a_reason_is_taken_off(reply):
    assert cot.reason_in(reply, GOLD) == ("It stays after a reboot. So it is kept.", "")


@pytest.mark.parametrize(
    "reply",
    [
        "C. It stays.",
        "C) It stays after a reboot.",
        "**C**\n\nIt stays after a reboot.",
        "Answer: C\nIt stays after a reboot.",
        "The correct answer is C because it stays.",
        "The answer should be (D), since it stays.",
        "The given answer is off; the right option is actually D.",
        "It stays after a reboot. Hence option C is the correct one, not B.",
        "B is not correct, since it stays.",
        "B is wrong here. It stays.",
        "B. Execution. It runs code at once.",
        "The correct answer is Execution since it runs.",
        "Execution is the correct answer as it runs.",
        "Answer: Command and Control. It beacons home.",
        "I would choose A for this one.",
        "<think>B it is.</think>D. It runs after a reboot.",
    ],
)
def test_a_reply_for_another_answer_is_none(reply):
    assert cot.reason_in(reply, GOLD) == ("", "another answer")


def test_an_option_that_begins_like_the_gold_one_is_not_taken_for_it():
    reply = "The correct answer is Command and Control because it beacons home."
    assert cot.reason_in(reply, question(0)) == (reply, "")
    assert cot.reason_in(reply, question(2)) == ("", "another answer")  # whose gold option is "Command"


@pytest.mark.parametrize(
    "reply",
    [
        "A technique that stays after a reboot is of this tactic.",
        "Unlike option C, it stays after a reboot.",
        "Option B is correct because it stays, while option A is about beacons.",
        "It runs *.exe and *.dll files named __init__ from C:\\Windows at every start.",
        "C2 traffic is absent here, as nothing calls home.",
    ],
)
def test_letters_that_name_no_answer_are_text(reply):
    assert cot.reason_in(reply, GOLD) == (reply, "")


@pytest.mark.parametrize(
    "reply", ["", "  \n", "B", "B.", "**B) Persistence**", "Answer: B", "<think>It is", "Persistence."]
)
def test_a_reply_without_a_sentence_is_empty(reply):
    assert cot.reason_in(reply, GOLD) == ("", "empty")


@pytest.mark.parametrize(
    "reply",
    [
        "I'm sorry, but I can't help with that.",
        "I cannot assist with attacks.",
        "I’m unable to say that.",
        "As an AI, I",
    ],
)
def test_a_refusal_is_named(reply):
    assert cot.reason_in(reply, GOLD) == ("", "refusal")


def test_a_null_content_and_half_a_surrogate_pair_do_no_harm(serve):
    model = endpoint(serve(lambda body, _: completion(None if number_in(body) else "It is \ud83d so. That is why.")))
    assert list(model.explain(questions(2))) == ["It is ? so. That is why.", cot.evidence_of(question(1))]
    assert model.report()["replaced"]["empty"] == 1


@given(
    st.lists(
        st.sampled_from(
            ["<think>", "</think>", "B", "C.", "**", "\n", "answer is", ":", "Persistence", " ", "is", "1."]
        )
        | st.text(max_size=5)
    ).map("".join)
)
def test_every_reply_gives_a_short_reason_or_a_fault(reply):
    reason, fault = cot.reason_in(reply, GOLD)
    assert bool(reason) != bool(fault)
    assert fault in ("", *cot.FAULTS)
    assert len(reason) <= cot.CHARACTERS + len(" …")
    assert "\n" not in reason


def test_a_long_reply_is_read_in_no_time():
    began = time.monotonic()
    for piece in ("*a", "<think>", "</think>", "\n", "B. ", "the answer is ", "- ", "a:", " "):
        cot.reason_in(piece * (20_000 // len(piece)), GOLD)
    assert time.monotonic() - began < 5
