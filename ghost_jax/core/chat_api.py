"""Replies of a language model behind a chat-completions API, as Ollama, vLLM, llama.cpp, OpenAI and others serve it.

Replies are appended to a file as they come, so that a command that was interrupted asks nothing twice. The key comes
from the environment alone and is sent to one address alone. It is in no file, message, log or repr.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import openai
from pydantic import TypeAdapter

from ghost_jax.core.addresses import avoid_proxies, forbids, host_of
from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError, chain_of

TIMEOUT = openai.Timeout(300.0, connect=10.0)  # seconds without a byte: a 14B model on a CPU takes minutes
MAX_RETRIES = 5  # after HTTP 408, 409, 429 and 5xx, a lost connection and a time-out; as the server asks or within 8 s
MOST_BYTES = 64 << 20  # of a reply; 8,192 tokens with 20 log-probabilities each have 30 MB
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # raised by reading foreign JSON

logging.getLogger("httpcore2").setLevel(logging.WARNING)  # it logs response headers, in which servers quote the key


class Refused(UserError):
    """A status of the server that ends the command; `said` are the server's words."""

    def __init__(self, message: str, said: str):
        super().__init__(message)
        self.said = said


class _TooLong(openai.OpenAIError):  # which the client neither repeats nor wraps
    """A reply of over `MOST_BYTES`."""


class _Bounded(openai.DefaultAsyncHttpxClient):
    """An HTTP client that reads at most `MOST_BYTES` of a response, decompressed."""

    async def send(self, request, **options):
        response = await super().send(request, **options | {"stream": True})
        content = bytearray()
        async with contextlib.aclosing(response.aiter_bytes()) as parts:
            async for part in parts:
                content += part
                if len(content) > MOST_BYTES:
                    raise _TooLong
        headers = {name: value for name, value in response.headers.items() if name != "content-encoding"}
        return type(response)(response.status_code, headers=headers, content=bytes(content), request=request)


@dataclass(frozen=True)
class Names:
    """What messages call a model and its settings."""

    who: str  # "teacher"
    url: str  # a setting: "data.cot.teacher"
    model: str
    key: str  # an environment variable
    otherwise: str = ""  # what can be done instead of resuming: ", or …"


@dataclass(frozen=True)
class Reply:
    """A text, and the host that gave it; what the server did not state is None."""

    reply: str
    host: str
    top_logprobs: tuple[tuple[str, float], ...] | None = None  # the likeliest first tokens
    prompt_tokens: int | None = None  # as the server counts
    completion_tokens: int | None = None


_REPLY = TypeAdapter(Reply)


class ChatApi:
    """A model behind an OpenAI-compatible API.

    Replies are kept under a hash of the request, whichever host gave them, so that a command resumes also when the
    model has moved to another host.

    Args:
      base_url: the address before "/chat/completions": "http://localhost:11434/v1".
      path: the file of the replies, JSON lines that are only appended to; processes may share it.
      in_flight: requests at once; servers batch them.

    Raises UserError where the key is malformed, UsageError for an address that `host_of` refuses.
    """

    def __init__(self, base_url: str, model: str, names: Names, path: Path, *, in_flight: int):
        self._host = host_of(base_url, names.url, names.key)
        self._base_url, self.model, self._names = base_url.rstrip("/"), model, names
        self._path, self._in_flight = path, in_flight
        self._key()
        self.label = f"{model} at {self._host}"
        self._replies: dict[str, Reply] = {}  # by the key of the request
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            for line in file:
                with contextlib.suppress(*MALFORMED):  # a killed process left it incomplete
                    entry = json.loads(line)
                    self._replies[str(entry["key"])] = _REPLY.validate_python(entry)

    def missing(self, bodies: Sequence[dict]) -> list[dict]:
        """Returns the requests without a reply."""
        return [body for body in bodies if key_of(body) not in self._replies]

    def ask(self, bodies: Sequence[dict], questions: Sequence[str]) -> tuple[list[Reply], dict]:
        """Returns a reply to each request, and counts of replies, in which equal requests are one.

        `questions` are what the file of the replies calls each request. Raises UserError where the API fails for good,
        or GHOST_OFFLINE=1 forbids the connection.
        """
        replies = self._replies
        keys = [key_of(body) for body in bodies]
        named = zip(keys, bodies, questions, strict=True)
        pending = {key: (body, question) for key, body, question in named if key not in replies}
        total = len(set(keys))
        known = total - len(pending)
        if pending:
            if forbids(self._base_url):
                raise self._failure("is not asked", "GHOST_OFFLINE=1 forbids connections to other machines: unset it.")
            with Progress(f"asking {self.label}", total, unit="replies", done=known) as bar:
                asyncio.run(self._ask_all(pending, bar))
        answered_by = Counter(replies[key].host for key in set(keys))
        counts = {"asked": len(pending), "from_cache": known, "answered_by": dict(sorted(answered_by.items()))}
        return [replies[key] for key in keys], counts

    async def _ask_all(self, pending: dict[str, tuple[dict, str]], bar: Progress) -> None:
        """Asks with several requests in flight; each reply is in the file before the next request of its worker."""
        avoid_proxies()
        client = openai.AsyncOpenAI(
            api_key=self._key() or "none",
            base_url=self._base_url,
            timeout=TIMEOUT,
            max_retries=MAX_RETRIES,
            http_client=_Bounded(follow_redirects=False),  # the key goes to one address alone
        )
        client.organization = client.project = None  # else those of OPENAI_ORG_ID and OPENAI_PROJECT_ID
        waiting = iter(pending.items())

        async def work() -> None:
            for key, (body, question) in waiting:
                self._keep(key, question, await self._ask(client, body))
                bar.advance(1)

        async with client:
            await asyncio.gather(*(work() for _ in range(self._in_flight)))

    def _keep(self, key: str, question: str, reply: Reply) -> None:
        """Appends a reply to the file, on a line of its own."""
        content = {"key": key, "question": question} | _REPLY.dump_python(reply, exclude_none=True)
        line = json.dumps(content) + "\n"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = f"\n{line}"
            file.write(line.encode())
        self._replies[key] = reply

    async def _ask(self, client: openai.AsyncOpenAI, body: dict) -> Reply:
        headers = None if self._key() else {"Authorization": openai.Omit()}
        try:
            response = await client.chat.completions.with_raw_response.create(**body, extra_headers=headers)
            answer = json.loads(response.content)
            if isinstance(answer, dict) and answer.get("error"):  # of a gateway whose own upstream failed
                raise openai.APIStatusError("", response=response.http_response, body=None)
            return self._read(answer)
        except openai.APIStatusError as fault:
            raise self._refused(fault) from None
        except _TooLong:
            what = f"answers with over {MOST_BYTES >> 20} MiB"
            raise self._failure(what, "Check that it is a model's server.") from None
        except openai.APITimeoutError:
            what = f"is silent for longer than {TIMEOUT.read:g} s"
            raise self._failure(what, "Check that the server is not overloaded.") from None
        except openai.APIConnectionError as fault:
            *_, cause = chain_of(fault)
            why = self._without_key(str(cause) or type(cause).__name__)
            raise self._failure(f"cannot be reached ({why})", "Check that the server runs there.") from None
        except MALFORMED:
            what = "does not answer as a chat-completions API does"
            raise self._failure(what, f"Correct {self._names.url}, which mostly ends in /v1.") from None

    def _read(self, answer: dict) -> Reply:
        """Returns the reply in an answer. Raises one of `MALFORMED` where there is none."""
        choice = answer["choices"][0]
        content = choice["message"]["content"] or ""
        text = content.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair, a store may not
        text = text if self._without_key(text) == text else ""
        usage = answer.get("usage") if isinstance(answer.get("usage"), dict) else {}
        counts = {name: usage.get(name) for name in ("prompt_tokens", "completion_tokens")}
        counts = {name: count for name, count in counts.items() if type(count) is int}
        return Reply(text, self._host, self._first_tokens(choice), **counts)

    def _first_tokens(self, choice: dict) -> tuple[tuple[str, float], ...] | None:
        try:
            first = choice["logprobs"]["content"][0]
            found = [(each["token"], float(each["logprob"])) for each in first["top_logprobs"]]
            if first["token"] not in dict(found):  # a text may be there twice: servers strip the blank of " A"
                found.append((first["token"], float(first["logprob"])))
        except MALFORMED:
            return None
        return tuple(
            (token.encode("utf-8", "replace").decode(), value)
            for token, value in found
            if math.isfinite(value) and self._without_key(token) == token
        )

    def _refused(self, fault: openai.APIStatusError) -> UserError:
        status, said, names = fault.status_code, self._said(fault), self._names
        quoted = f': "{said}"' if said else ""
        if status < 300:
            fix = "Wait, or read the server's log."
        elif status < 400:
            there = re.match(r"(?:https?:)?//(?:[^/?#]*@)?([^/?#]+)", fault.response.headers.get("Location", ""))
            quoted = f": it redirects to {self._without_key(there[1]) if there else 'another path'}"
            fix = f"A key is not carried to another address: set {names.url} to the right one."
        elif status in (401, 403):
            quoted = quoted if status == 403 else ""  # services quote a part of a key that they do not know
            fix = f"Set {names.key} to {'another key' if self._key() else 'a key of that service'}."
        elif status == 404:
            fix = f"Correct {names.model}, or {names.url}, which mostly ends in /v1."
        elif status == 429 or status >= 500:
            fix = f"It was asked up to {1 + MAX_RETRIES} times: wait, or read the server's log."
        else:
            fix = f"Correct {names.model} or the server."
        return Refused(str(self._failure(f"answers HTTP {status}{quoted}", fix)), said)

    def _failure(self, what: str, fix: str) -> UserError:
        return UserError(
            f"The {self._names.who} {self.model} at {self._base_url}/chat/completions {what}. {fix} "
            f"{len(self._replies):,} answers are kept in {self._path}: repeat the command to resume"
            f"{self._names.otherwise}."
        )

    def _key(self) -> str:
        """Returns the API's key, "" where there is none. It is read where it is used, so that no object holds it."""
        key = os.environ.get(self._names.key, "").strip()
        if not re.fullmatch(r"[!-~]*", key):
            raise UserError(f"{self._names.key} holds a blank or a character that no key has. Copy the key again.")
        return key

    def _without_key(self, text: str) -> str:
        """Returns the text without the key: servers quote what they refuse."""
        return text.replace(self._key(), "[key]") if self._key() else text

    def _said(self, fault: openai.APIStatusError) -> str:
        """Returns the beginning of the server's own message."""
        try:
            error = fault.response.json()["error"]
            text = error if isinstance(error, str) else error["message"]
        except MALFORMED:
            text = fault.response.text
        text = " ".join(self._without_key(str(text)).split())
        return "".join(filter(str.isprintable, text))[:200]


def key_of(body: dict) -> str:
    """Returns the key of a request: equal requests have one."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
