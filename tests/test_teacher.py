"""data/builders/teacher.py: requests, replies, failures, and where the key goes; test_endpoint.py has the retries."""

import collections
import email.message
import gzip
import http.server
import json
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import openai
import pytest

from ghost_jax.core import chat_api
from ghost_jax.core.errors import UsageError, UserError
from ghost_jax.data.builders import cot, teacher
from ghost_jax.data.examples import Question

KEY = "sk-nobody-may-read-this-0123456789"
OPTIONS = ("Command and Control", "Persistence", "Command", "Execution")
AT_ONCE = {"retry-after-ms": "1"}
Answer = tuple[int, dict[str, str], bytes] | bytes


def question(i: int) -> Question:
    stated = {"evidence": f"Evidence {i} says so. It says it twice. And thrice.", "source": "test", "split": "train"}
    return Question(f"q/{i}", f"What is number {i}?", OPTIONS, i % 4, **stated)


def questions(count: int) -> list[Question]:
    return [question(i) for i in range(count)]


def number_in(body: dict) -> int:
    return int(re.search(r"What is number (\d+)\?", body["messages"][0]["content"])[1])


def completion(content: object, top: Sequence[tuple[str, float]] | None = None) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": content}}
    if top is not None:
        listed = [{"token": token, "logprob": value} for token, value in top]
        choice["logprobs"] = {"content": [listed[0] | {"top_logprobs": listed}]}
    return json.dumps({"choices": [choice], "usage": {"prompt_tokens": 50, "completion_tokens": 1}}).encode()


def right_reply(body: dict, attempt: int = 1) -> bytes:
    return completion(f"Number {number_in(body)} is what it is. That is why.")


class Server(http.server.ThreadingHTTPServer):
    """A chat-completions API: `answer(body, attempt)`. `asked` counts the requests of each question, `seen` has all."""

    daemon_threads = True
    question_of = staticmethod(number_in)

    def __init__(self, answer: Callable[[dict, int], Answer]):
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer, self.lock = answer, threading.Lock()
        self.asked: collections.Counter[int] = collections.Counter()
        self.seen: list[tuple[email.message.Message, dict]] = []
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_):
        """Clients disconnect in these tests."""


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = self.server.question_of(body)
        with self.server.lock:
            self.server.asked[question] += 1
            attempt = self.server.asked[question]
            self.server.seen.append((self.headers, body))
        found = self.server.answer(body, attempt)
        status, headers, content = found if isinstance(found, tuple) else (200, {}, found)
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(content))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers that are closed after the test."""
    started = []
    yield lambda answer=right_reply: started.append(Server(answer)) or started[-1]
    for server in started:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    """A cache and an environment of the test's own; returns the folder of cached replies."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("GHOST_TEACHER_KEY", raising=False)
    return tmp_path / "cache" / "ghost_jax" / "teacher"


def ask(server: Server, count: int) -> tuple[list[str], dict]:
    return teacher.ask(teacher.open_api(server.url, "model:14b"), questions(count))


def failure_of(server: Server, count: int = 1) -> str:
    with pytest.raises(UserError, match=rf"^.*{server.url}/chat/completions.*$") as caught:
        ask(server, count)
    return str(caught.value)


def test_replies_are_in_the_order_of_the_questions_and_several_requests_are_in_flight(serve):
    together = threading.Barrier(teacher.IN_FLIGHT, timeout=5)

    def late_first(body: dict, _: int) -> bytes:
        together.wait()
        time.sleep(0.005 * (4 - number_in(body) % 4))
        return right_reply(body)

    replies, _ = ask(serve(late_first), 8)
    assert replies == [f"Number {i} is what it is. That is why." for i in range(8)]


def test_cached_replies_are_not_asked_again_whichever_host_gave_them(serve):
    first, second = serve(), serve()
    replies, _ = ask(first, 5)
    again, report = teacher.ask(teacher.open_api(second.url, "model:14b"), [*questions(8), question(1)])
    assert again == [*replies, *again[5:8], replies[1]]
    assert second.asked == {5: 1, 6: 1, 7: 1}
    assert report == {"teacher": "model:14b at 127.0.0.1", "asked": 3, "from_cache": 5, "answered_by": {"127.0.0.1": 8}}
    teacher.ask(teacher.open_api(second.url, "another"), questions(5))
    assert second.asked.total() == 3 + 5


@pytest.mark.parametrize("left", [b'{"key": "ab', b"\xff\xfe", b"[" * 100_000])
def test_an_incomplete_last_line_is_skipped(serve, cache, left):
    server = serve()
    ask(server, 3)
    (file,) = cache.iterdir()
    file.write_bytes(file.read_bytes() + left)
    for _ in range(2):
        ask(server, 4)
        assert server.asked == {0: 1, 1: 1, 2: 1, 3: 1}


BREAKS_OFF = (200, {"Content-Length": "1000"}, b'{"choices": [')


@pytest.mark.parametrize(
    ("answer", "named"), [(lambda *_: time.sleep(1), "0.3 s"), (lambda *_: BREAKS_OFF, "cannot be reached")]
)
def test_a_server_that_hangs_or_breaks_off_is_given_up(serve, monkeypatch, answer, named):
    monkeypatch.setattr(chat_api, "TIMEOUT", openai.Timeout(0.3))
    monkeypatch.setattr(chat_api, "MAX_RETRIES", 0)
    assert named in failure_of(serve(answer))


NO_COMPLETIONS = (b"<html>Welcome</html>", b"[]", b'{"choices": []}', b"[" * 100_000, completion(7))


@pytest.mark.parametrize(
    ("status", "content", "named"),
    [
        *((200, content, "data.cot.teacher") for content in NO_COMPLETIONS),
        (404, b'{"error": {"message": "no model,\\u001b[31m try\\npulling"}}', '404: "no model,[31m try pulling"'),
        (400, b'{"error": "no max_tokens"}', "no max_tokens"),
        (401, b'{"error": {"message": "Incorrect: sk-part"}}', "GHOST_TEACHER_KEY"),
        (403, b'{"error": {"message": "not in your country"}}', "not in your country"),
        (500, b"out of memory", "out of memory"),
    ],
)
def test_another_answer_than_a_completion_is_reported_with_what_the_server_says(serve, status, content, named):
    server = serve(lambda *_: (status, AT_ONCE, content))
    message = failure_of(server)
    assert named in message
    assert "sk-part" not in message, "services quote a part of a key that they do not know"
    assert server.asked == {0: 6 if status == 500 else 1}


@pytest.mark.parametrize("status", [200, 400])
def test_a_reply_that_would_fill_the_memory_is_refused_and_not_asked_for_again(serve, monkeypatch, status):
    monkeypatch.setattr(chat_api, "MOST_BYTES", 1 << 20)
    sent = gzip.compress(completion("x" * (1 << 20)))
    server = serve(lambda *_: (status, {"Content-Encoding": "gzip"}, sent))
    assert "over 1 MiB" in failure_of(server)
    assert server.asked == {0: 1}


@pytest.mark.parametrize("location", ["", "http://[", "//", "/v2/chat/completions", "http://a..b/"])
def test_a_redirect_is_named_and_takes_the_key_nowhere(serve, monkeypatch, location):
    monkeypatch.setenv("GHOST_TEACHER_KEY", KEY)
    monkeypatch.setattr(chat_api, "MAX_RETRIES", 0)
    there = serve()
    secret = there.url.replace("http://", "http://user:password@")
    headers = {"Location": location or f"{secret}/chat/completions?token=x"}
    message = failure_of(serve(lambda *_: (307, headers, b"")))
    assert location or all(part in message for part in ("HTTP 307", there.url.split("/")[2]))
    assert "password" not in message
    assert there.seen == []


def test_offline_an_endpoint_of_this_machine_is_asked_without_a_proxy(serve, monkeypatch, cache):
    proxy, server = serve(), serve()
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.setenv(name, "")  # restored at the end
    monkeypatch.setenv("HTTP_PROXY", proxy.url)
    monkeypatch.setenv("GHOST_OFFLINE", "1")
    teacher.ask(teacher.open_api(server.url, "model:14b"), questions(1))
    assert (len(proxy.seen), len(server.seen)) == (0, 1)


ECHOES = [
    (401, {}, f"Incorrect API key: {KEY}".encode()),
    (400, {}, json.dumps({"error": {"message": f"bad {KEY}"}}).encode()),
    (500, AT_ONCE, KEY.encode()),
    (302, {"Location": f"http://{KEY}/{KEY}"}, b""),
    (200, {}, KEY.encode()),
    (200, {}, completion(f"Your key is {KEY}. That is why.")),
]


@pytest.mark.parametrize("answer", ECHOES)
def test_the_key_is_a_bearer_token_and_in_no_file_log_or_message(serve, monkeypatch, cache, caplog, capfd, answer):
    monkeypatch.setenv("GHOST_TEACHER_KEY", f" {KEY}\n")
    monkeypatch.setattr(chat_api, "MAX_RETRIES", 1)
    caplog.set_level("DEBUG")
    server = serve(lambda *_: answer)
    api, shown = teacher.open_api(server.url, "model:14b"), []
    try:
        shown += map(str, teacher.ask(api, questions(3)))
    except UserError as fault:
        shown += traceback.format_exception(fault)
    shown += [repr(api), str(vars(api)), caplog.text, *capfd.readouterr()]
    shown += [path.read_text() for path in cache.glob("*")]
    assert {headers["Authorization"] for headers, _ in server.seen} == {f"Bearer {KEY}"}
    assert "openai" in caplog.text
    assert not [text for text in shown if KEY in text or KEY[3:20] in text]


NO_URLS = ("Offline", "ftp://host/v1", "http:///v1", "http://h:99999/v1", "http://ho st/v1", "http://höst/v1")
SECRETS = ("http://me:secret@host/v1", "me:secret@host", "https://host/v1?api_key=secret", "https://host/v1#secret")
LOCAL = "http://localhost:11434/v1"


@pytest.mark.parametrize(
    ("url", "model", "key", "named"),
    [
        *((url, "m", "", "data.cot.teacher") for url in NO_URLS),
        *((url, "m", "", "GHOST_TEACHER_KEY") for url in SECRETS),
        *((LOCAL, "m", key, "GHOST_TEACHER_KEY") for key in ("a secret", "a\nsecret", "sécret")),
    ],
)
def test_what_cannot_be_asked_is_refused_and_no_secret_is_shown(monkeypatch, url, model, key, named):
    monkeypatch.setenv("GHOST_TEACHER_KEY", key)
    with pytest.raises(UserError, match=named) as caught:
        cot.explain([], url, model)
    assert isinstance(caught.value, UsageError) == (not key)
    assert not re.search("s[eé]cret", str(caught.value))
