"""Who explains an answer: the fact's own evidence sentence, or a language model behind a chat-completions API.

Ollama, vLLM, OpenAI and others serve that API (https://platform.openai.com/docs/api-reference/chat). Replies are kept
as they come, so that an interrupted preparation asks nothing twice. The API's key comes from the environment alone and
goes to one address alone; it is in no file, message or repr.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import re
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import requests
from urllib3.exceptions import InvalidHeader, MaxRetryError, ReadTimeoutError
from urllib3.util import Retry

from ghost_jax.config.validate import KEY_VARIABLE, host_of_teacher
from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.builders import Question, cot
from ghost_jax.data.storage.text_cleaning import flat
from ghost_jax.text.mcq_format import LETTERS

IN_FLIGHT = 4  # requests at once: servers batch them
TIMEOUTS = (10.0, 300.0)  # seconds to connect, and without a byte: a 14B model on a CPU takes minutes
NOT_SO_BUILT = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # what reading foreign JSON raises
WORTH_REPEATING = {429, *range(500, 600)}
# A busy or restarting server is asked five times more, within 15 s or when it says; a silent one only once more.
RETRIES = Retry(total=5, read=1, backoff_factor=0.5, retry_after_max=300, allowed_methods={"POST"})
# Reasoning models think before the sentences that are kept; others stop by themselves.
PARAMETERS = {"temperature": 0, "max_tokens": 1024, "seed": 0}
PROMPT = """\
Here is a multiple-choice question about cyber security, its correct answer, and evidence from a published source.

Question: {question}
{options}
Correct answer: {letter}) {gold}
Evidence: {evidence}

Explain in one or two plain sentences why this answer is correct. Write only these sentences, without letters, lists or
formatting, and do not refer to the evidence as such."""


def of(url_or_offline: str, model: str) -> cot.Teacher:
    """Returns the teacher of `data.cot.teacher` ("offline" or a base URL) and `data.cot.model`.

    Raises UsageError for a URL that is malformed or holds credentials, and for a URL without a model.
    """
    return Offline() if url_or_offline == "offline" else Endpoint(url_or_offline, model)


class Offline:
    """Gives the evidence of each fact, word for word.

    Its label stands wherever its reasons do: they cannot test a claim about rationales that a 14B model wrote.
    """

    label = "offline evidence sentence"

    def explain(self, asked: Sequence[Question]) -> Iterator[str]:
        """Yields the first sentences of each question's evidence."""
        return map(cot.evidence_of, asked)

    def report(self) -> dict:
        """Returns the teacher's name; there is nothing else to say."""
        return {"teacher": self.label}


# ---- What was answered before ----


class _Cache:
    """Replies as they came, as JSON lines that are only ever added to; processes may share the file."""

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[str, tuple[str, str]] = {}  # key -> the reply, and the host that gave it

    def load(self) -> None:
        """Reads what is there. A line that is not whole counts as not answered."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(ValueError, LookupError, TypeError):
                    entry = json.loads(line)
                    if line.endswith(b"\n"):
                        self.replies[str(entry["key"])] = str(entry["reply"]), str(entry["host"])

    def add(self, key: str, reply: str, host: str, question: str) -> None:
        """Appends a reply, over what a killed process may have left of its last line."""
        line = json.dumps({"key": key, "question": question, "host": host, "reply": reply}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode())
        self.replies[key] = reply, host


# ---- A language model ----


class _Bearer(requests.auth.AuthBase):
    """Puts the key on a request. It is given without a key as well: requests would then look for one in ~/.netrc."""

    def __init__(self):
        self._key = os.environ.get(KEY_VARIABLE, "").strip()
        if not re.fullmatch(r"[!-~]*", self._key):
            raise UserError(
                f"{KEY_VARIABLE} holds a blank or a character that no key has. Copy the key anew; it is not shown here."
            )

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    @property
    def given(self) -> bool:
        return bool(self._key)

    def hidden_in(self, text: str) -> str:
        """Returns the text without the key: servers like to quote what they refuse."""
        return text.replace(self._key, "[key]") if self._key else text


class Endpoint:
    """A model behind an OpenAI-compatible API.

    Replies are kept in the user's cache under a hash of the request, whichever host gave them, so that a preparation
    goes on where it stopped also when the model has moved; the report counts replies by host.

    Args:
      base_url: what stands before "/chat/completions": "http://localhost:11434/v1".
      model: the server's name for the model.
      timeouts: seconds to connect, and to wait for a byte.
      retries: how often and after which pauses a failed request is repeated.
    """

    def __init__(
        self, base_url: str, model: str, *, timeouts: tuple[float, float] = TIMEOUTS, retries: Retry = RETRIES
    ):
        self._host = host_of_teacher(base_url, model)
        self._url, self._model = f"{base_url.rstrip('/')}/chat/completions", model
        self._timeouts, self._retries = timeouts, retries
        self._bearer = _Bearer()
        self._cache = _Cache(cache_dir() / "teacher" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)[:100]}.jsonl")
        self._counts = Counter({"asked": 0, "from_cache": 0})
        self._answered_by: Counter[str] = Counter()
        self._replaced = Counter(dict.fromkeys(cot.FAULTS, 0))
        self.label = f"{model} at {self._host}"

    def report(self) -> dict:
        """Returns how many replies were asked for and how many known, which hosts gave them, and how many were bad.

        A question that occurs twice counts once, but for `replaced`, which counts reasons that are evidence sentences.
        """
        answered_by = dict(sorted(self._answered_by.items()))
        return {"teacher": self.label, **self._counts, "answered_by": answered_by, "replaced": dict(self._replaced)}

    def explain(self, asked: Sequence[Question]) -> Iterator[str]:
        """Yields one reason a question, in their order. Raises UserError where the API fails for good."""
        self._cache.load()
        requested = [_request(self._model, q) for q in asked]
        keys = [hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() for body in requested]
        known = set(keys) & self._cache.replies.keys()
        self._counts["from_cache"] += len(known)
        self._answered_by.update(self._cache.replies[key][1] for key in known)
        pending = {key: (body, q.id) for key, body, q in zip(keys, requested, asked, strict=True) if key not in known}
        total = len(known) + len(pending)
        bar = Progress(f"asking {self.label}", total, unit="replies", done=len(known), shown=bool(pending))
        with bar, contextlib.closing(self._replies(pending)) as arriving:
            for q, key in zip(asked, keys, strict=True):
                while key not in known:
                    known.add(next(arriving))
                    self._counts["asked"] += 1
                    self._answered_by[self._host] += 1
                    bar.advance(1)
                reason, fault = cot.reason_in(self._cache.replies[key][0], q)
                if fault:
                    self._replaced[fault] += 1
                yield reason or cot.evidence_of(q)

    def _replies(self, pending: dict[str, tuple[dict, str]]) -> Iterator[str]:
        """Asks with several requests in flight; yields each key once its reply is in the cache, in any order."""
        waiting, done, stop = queue.SimpleQueue(), queue.SimpleQueue(), threading.Event()
        for key, (body, question) in pending.items():
            waiting.put((key, body, question))

        def work() -> None:
            with requests.Session() as session:
                while not stop.is_set():
                    try:
                        key, body, question = waiting.get_nowait()
                        self._cache.add(key, self._ask(session, body, stop), self._host, question)
                        done.put((key, None))
                    except queue.Empty:
                        return
                    except Exception as fault:
                        done.put(("", fault))
                        return

        for _ in range(min(IN_FLIGHT, len(pending))):
            # Daemons: a command that is stopped or has failed ends without waiting for replies.
            threading.Thread(target=work, daemon=True).start()
        try:
            for _ in pending:
                key, fault = done.get()
                if fault:
                    raise fault
                yield key
        finally:
            stop.set()

    def _ask(self, session: requests.Session, body: dict, stop: threading.Event) -> str:
        response = self._post(session, body, stop)
        if response.status_code != 200:
            raise self._refused(response)
        try:
            content = response.json()["choices"][0]["message"]["content"] or ""
            reply = content.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair, a store may not
        except NOT_SO_BUILT:
            raise self._failure(
                f"does not answer as a chat-completions API does{self._said(response)}",
                "Check that data.cot.teacher is such an API; its base URL mostly ends in /v1.",
            ) from None
        return reply if self._bearer.hidden_in(reply) == reply else ""

    def _post(self, session: requests.Session, body: dict, stop: threading.Event) -> requests.Response:
        """Posts until there is an answer that repeating would not change, or no patience left."""
        retries = self._retries
        while True:
            response = fault = None
            try:
                response = session.post(
                    self._url, json=body, auth=self._bearer, timeout=self._timeouts, allow_redirects=False
                )
                if response.status_code not in WORTH_REPEATING:
                    return response
            except (requests.RequestException, ValueError) as error:  # the latter for a Location that is no URL
                fault = self._fault(error)
            try:
                retries = retries.increment("POST", self._url, response.raw if fault is None else None, fault)
            except MaxRetryError:
                break
            if stop.wait(_pause(retries, response)):
                break
        if fault is None:
            return response
        if isinstance(fault, ReadTimeoutError):
            what = f"is silent for longer than {self._timeouts[1]:g} s"
        else:
            what = f"cannot be reached ({fault or type(fault).__name__})"
        raise self._failure(what, "Check that the server runs there and is not overloaded.")

    def _fault(self, error: Exception) -> BaseException:
        """Returns the innermost cause, which alone says what happened; silence as the error that `Retry` counts."""
        cause: BaseException = error
        while cause.__context__:
            cause = cause.__context__
        if isinstance(cause, TimeoutError) and not isinstance(error, requests.ConnectTimeout):
            return ReadTimeoutError(None, self._url, str(cause))
        return cause

    def _refused(self, response: requests.Response) -> UserError:
        status, said = response.status_code, self._said(response)
        if 300 <= status < 400:
            there = re.match(r"(?:https?:)?//(?:[^/?#]*@)?([^/?#]+)", response.headers.get("Location", ""))
            return self._failure(
                f"redirects to {self._bearer.hidden_in(there[1]) if there else 'another path'} (HTTP {status})",
                "A key is not carried to another address: set data.cot.teacher to the one that is meant.",
            )
        if status in (401, 403):
            key = "another key: this one is not accepted there" if self._bearer.given else "a key of that service"
            why = said if status == 403 else ""  # services quote a part of the key that they do not know
            return self._failure(f"does not let you in (HTTP {status}){why}", f"Set {KEY_VARIABLE} to {key}.")
        if status == 404:
            return self._failure(
                f"has no such model or no such path (HTTP 404){said}",
                "Correct data.cot.model, or data.cot.teacher, which mostly ends in /v1.",
            )
        if status in WORTH_REPEATING:
            return self._failure(f"answers HTTP {status} again and again{said}", "See what ails it, or wait.")
        return self._failure(f"refuses the request (HTTP {status}){said}", "Correct data.cot.model or the server.")

    def _failure(self, what: str, advice: str) -> UserError:
        return UserError(
            f"The teacher {self._model} at {self._url} {what}. {advice} {len(self._cache.replies):,} answers are kept "
            f"in {self._cache.path}: repeat the command to go on from there, or set data.cot.teacher to offline."
        )

    def _said(self, response: requests.Response) -> str:
        """Returns the beginning of the server's own words, to end a sentence with."""
        try:
            error = response.json()["error"]
            words = error if isinstance(error, str) else error["message"]
        except NOT_SO_BUILT:
            words = response.text
        words = "".join(filter(str.isprintable, flat(self._bearer.hidden_in(str(words)))))
        return f': "{words[:200]}"' if words else ""


def _request(model: str, q: Question) -> dict:
    options = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, q.options, strict=False))
    prompt = PROMPT.format(
        question=q.question, options=options, letter=q.letter, gold=q.options[q.answer], evidence=flat(q.evidence)
    )
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **PARAMETERS}


def _pause(retries: Retry, response: requests.Response | None) -> float:
    """Returns the seconds to wait before the next attempt: as the server says, else longer each time."""
    wanted = None
    if response is not None:
        with contextlib.suppress(InvalidHeader, ValueError):
            wanted = retries.get_retry_after(response.raw)
    return wanted or retries.get_backoff_time()
