"""Replies of a language model behind a chat-completions API, as Ollama, vLLM, OpenAI and others serve it.

Replies are cached as they come, so that a preparation that was interrupted asks nothing twice. The key comes from the
environment alone and is sent to one address alone. It is in no file, message, log or repr.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import openai

from ghost_jax.config.validate import KEY_VARIABLE, host_of_teacher
from ghost_jax.core.console import Progress
from ghost_jax.core.errors import UserError
from ghost_jax.core.paths import cache_dir
from ghost_jax.data.examples import Question
from ghost_jax.data.storage.text_cleaning import flat
from ghost_jax.text.mcq_format import LETTERS

IN_FLIGHT = 4  # requests at once: servers batch them
TIMEOUT = openai.Timeout(300.0, connect=10.0)  # seconds without a byte: a 14B model on a CPU takes minutes
MAX_RETRIES = 5  # after HTTP 408, 409, 429 and 5xx, a lost connection and a time-out; as the server asks or within 16 s
MALFORMED = (ValueError, LookupError, TypeError, AttributeError, RecursionError)  # raised by reading foreign JSON
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

logging.getLogger("httpcore2").setLevel(logging.WARNING)  # it logs response headers, in which servers quote the key


class _Cache:
    """Replies as JSON lines that are only appended to; processes may share the file."""

    def __init__(self, path: Path):
        self.path = path
        self.replies: dict[str, tuple[str, str]] = {}  # key -> the reply, and the host that gave it

    def load(self) -> None:
        """Reads the file. A line that a killed process left incomplete is skipped."""
        with contextlib.suppress(FileNotFoundError), self.path.open("rb") as file:
            for line in file:
                with contextlib.suppress(*MALFORMED):
                    entry = json.loads(line)
                    self.replies[str(entry["key"])] = str(entry["reply"]), str(entry["host"])

    def add(self, key: str, reply: str, host: str, question: str) -> None:
        """Appends a reply on a line of its own."""
        line = json.dumps({"key": key, "question": question, "host": host, "reply": reply}) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            end = file.seek(0, os.SEEK_END)
            if end and os.pread(file.fileno(), 1, end - 1) != b"\n":
                line = f"\n{line}"
            file.write(line.encode())
        self.replies[key] = reply, host


class Endpoint:
    """A model behind an OpenAI-compatible API.

    Replies are cached under a hash of the request, whichever host gave them, so that a preparation resumes also when
    the model has moved to another host.

    Args:
      base_url: the address before "/chat/completions": "http://localhost:11434/v1".
      model: the server's name for the model.

    Raises:
      UserError: the URL or the key is malformed, or the URL holds credentials, or there is no model.
    """

    def __init__(self, base_url: str, model: str, *, timeout: openai.Timeout = TIMEOUT, max_retries: int = MAX_RETRIES):
        self._host = host_of_teacher(base_url, model)
        _key()
        self._base_url, self._model = base_url.rstrip("/"), model
        self._timeout, self._max_retries = timeout, max_retries
        self._cache = _Cache(cache_dir() / "teacher" / f"{re.sub(r'[^A-Za-z0-9._-]+', '-', model)[:100]}.jsonl")
        self.label = f"{model} at {self._host}"

    def ask(self, questions: Sequence[Question]) -> tuple[list[str], dict]:
        """Returns a reply for each question, and counts of replies for the manifest, in which equal requests are one.

        Raises UserError where the API fails for good.
        """
        self._cache.load()
        replies = self._cache.replies
        requests = [_request(self._model, q) for q in questions]
        keys = [hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest() for body in requests]
        named = zip(keys, requests, questions, strict=True)
        pending = {key: (body, q.id) for key, body, q in named if key not in replies}
        total = len(set(keys))
        known = total - len(pending)
        if pending:
            with Progress(f"asking {self.label}", total, unit="replies", done=known) as bar:
                asyncio.run(self._ask_all(pending, bar))
        answered_by = Counter(replies[key][1] for key in set(keys))
        counts = {"asked": len(pending), "from_cache": known, "answered_by": dict(sorted(answered_by.items()))}
        return [replies[key][0] for key in keys], {"teacher": self.label, **counts}

    async def _ask_all(self, pending: dict[str, tuple[dict, str]], bar: Progress) -> None:
        """Asks with several requests in flight; each reply is in the cache before the next request of its worker."""
        client = openai.AsyncOpenAI(
            api_key=_key() or "none",
            base_url=self._base_url,
            timeout=self._timeout,
            max_retries=self._max_retries,
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),  # the key goes to one address alone
        )
        client.organization = client.project = None  # else those of OPENAI_ORG_ID and OPENAI_PROJECT_ID
        waiting = iter(pending.items())

        async def work() -> None:
            for key, (body, question) in waiting:
                self._cache.add(key, await self._ask(client, body), self._host, question)
                bar.advance(1)

        async with client:
            await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))

    async def _ask(self, client: openai.AsyncOpenAI, body: dict) -> str:
        headers = None if _key() else {"Authorization": openai.Omit()}
        try:
            response = await client.chat.completions.with_raw_response.create(**body, extra_headers=headers)
            content = json.loads(response.content)["choices"][0]["message"]["content"] or ""
            reply = content.encode("utf-8", "replace").decode()  # JSON may hold half a surrogate pair, a store may not
        except openai.APIStatusError as fault:
            raise self._refused(fault) from None
        except openai.APITimeoutError:
            what = f"is silent for longer than {self._timeout.read:g} s"
            raise self._failure(what, "Check that the server is not overloaded.") from None
        except openai.APIConnectionError as fault:
            raise self._failure(
                f"cannot be reached ({_without_key(_cause(fault))})", "Check that the server runs there."
            ) from None
        except MALFORMED:
            what = "does not answer as a chat-completions API does"
            raise self._failure(what, "Correct data.cot.teacher, which mostly ends in /v1.") from None
        return reply if _without_key(reply) == reply else ""

    def _refused(self, fault: openai.APIStatusError) -> UserError:
        status, quoted = fault.status_code, _quoted(fault)
        if status < 400:
            there = re.match(r"(?:https?:)?//(?:[^/?#]*@)?([^/?#]+)", fault.response.headers.get("Location", ""))
            quoted = f": it redirects to {_without_key(there[1]) if there else 'another path'}"
            fix = "A key is not carried to another address: set data.cot.teacher to the right one."
        elif status in (401, 403):
            quoted = quoted if status == 403 else ""  # services quote a part of a key that they do not know
            fix = f"Set {KEY_VARIABLE} to {'another key' if _key() else 'a key of that service'}."
        elif status == 404:
            fix = "Correct data.cot.model, or data.cot.teacher, which mostly ends in /v1."
        elif status == 429 or status >= 500:
            fix = f"It failed {1 + self._max_retries} times: wait, or read the server's log."
        else:
            fix = "Correct data.cot.model or the server."
        return self._failure(f"answers HTTP {status}{quoted}", fix)

    def _failure(self, what: str, fix: str) -> UserError:
        return UserError(
            f"The teacher {self._model} at {self._base_url}/chat/completions {what}. {fix} "
            f"{len(self._cache.replies):,} answers are kept in {self._cache.path}: repeat the command to resume, or "
            "set data.cot.teacher to offline."
        )


def _request(model: str, q: Question) -> dict:
    options = "\n".join(f"{letter}) {option}" for letter, option in zip(LETTERS, q.options, strict=False))
    prompt = PROMPT.format(
        question=q.question, options=options, letter=q.letter, gold=q.options[q.answer], evidence=flat(q.evidence)
    )
    return {"model": model, "messages": [{"role": "user", "content": prompt}], **PARAMETERS}


def _key() -> str:
    """Returns the API's key, "" where there is none. It is read where it is used, so that no object holds it."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not re.fullmatch(r"[!-~]*", key):
        raise UserError(f"{KEY_VARIABLE} holds a blank or a character that no key has. Copy the key again.")
    return key


def _without_key(text: str) -> str:
    """Returns the text without the key: servers quote what they refuse."""
    return text.replace(_key(), "[key]") if _key() else text


def _quoted(fault: openai.APIStatusError) -> str:
    """Returns the beginning of the server's own message, to end a sentence with."""
    try:
        error = fault.response.json()["error"]
        text = error if isinstance(error, str) else error["message"]
    except MALFORMED:
        text = fault.response.text
    text = "".join(filter(str.isprintable, flat(_without_key(str(text)))))
    return f': "{text[:200]}"' if text else ""


def _cause(fault: BaseException) -> str:
    """Returns the innermost cause, which names what happened."""
    while inner := fault.__cause__ or fault.__context__:
        fault = inner
    return str(fault) or type(fault).__name__
