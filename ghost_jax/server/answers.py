"""The answers of a model in the OpenAI API's shape: whole, as a stream, and with log-probabilities."""

import asyncio
import codecs
import contextlib
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence

import numpy as np
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import Histogram
from starlette.concurrency import run_in_threadpool

from ghost_jax.data.retrieval.bm25 import Passage
from ghost_jax.inference.engine import TOP, Scores, Text
from ghost_jax.inference.sampling import GREEDY
from ghost_jax.server.guard import ApiError, error_of
from ghost_jax.server.scheduler import REGISTRY
from ghost_jax.server.schemas import CompletionRequest, Generation
from ghost_jax.server.served import Model

Pieces = AsyncIterator[tuple[str, str | None]]  # of a text, each with None, the last with why it ended
STREAMED = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}  # proxies pass each piece on
FIRST = Histogram("ghost_first_token_seconds", "Seconds to the first token", registry=REGISTRY)


@dataclasses.dataclass
class Answer:
    """The JSON objects of an answer, whole or in chunks."""

    request: Generation
    model: str
    kind: str  # "chat.completion" or "text_completion"
    about: dict = dataclasses.field(default_factory=dict)  # of the answer; what is false is left out
    citations: Sequence[Passage] | None = None  # of the message
    read: int = 0  # tokens of its prompt
    taken: list[int] = dataclasses.field(default_factory=list)  # its ids so far
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def _is_chat(self) -> bool:
        return self.kind == "chat.completion"

    @property
    def _usage(self) -> dict:
        total = self.read + len(self.taken)
        return {"usage": {"prompt_tokens": self.read, "completion_tokens": len(self.taken), "total_tokens": total}}

    @property
    def _cited(self) -> dict:
        return {} if self.citations is None else {"citations": [dataclasses.asdict(line) for line in self.citations]}

    def whole(self, choices: list[dict]) -> dict:
        return self._object(choices) | self._usage

    def choice(self, text: str, finish: str) -> dict:
        message = {"role": "assistant", "content": text} | self._cited
        return _choice({"message": message} if self._is_chat else {"text": text}, finish)

    def chunk(self, text: str, finish: str | None = None, *, first: bool = False) -> dict:
        """Returns a chunk of a stream; the last one has `finish`, and the citations."""
        of = {"text": text}
        if self._is_chat:
            delta = {"role": "assistant"} if first else {}
            of = {"delta": delta | {"content": text} | (self._cited if finish else {})}
        return self._object([_choice(of, finish)], ".chunk")

    def last(self) -> dict:
        """Returns the chunk behind the last one, with the usage."""
        return self._object([], ".chunk") | self._usage

    def _object(self, choices: list[dict], part: str = "") -> dict:
        kind = self.kind + part if self._is_chat else self.kind
        about = {name: value for name, value in self.about.items() if value}
        found = {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices}
        return found | ({"ghost_jax": about} if about else {})


def _choice(of: dict, finish: str | None) -> dict:
    return {"index": 0, **of, "logprobs": None, "finish_reason": finish}


async def generate(answer: Answer, model: Model, text: Text, seconds: float) -> Response:
    """Answers with a text, whole or as a stream."""
    answer.read = len(text.prompt)
    return await respond(answer, _pieces(model, text, answer.request.stops, seconds, answer.taken), seconds)


async def respond(answer: Answer, pieces: Pieces, seconds: float) -> Response:
    """Answers with the pieces of a text, whole or as a stream."""
    if not answer.request.stream:
        return JSONResponse(answer.whole([answer.choice(*await _collected(pieces))]))
    first = await anext(pieces)  # a full queue is refused with a status, before the stream begins

    async def events() -> AsyncIterator[str]:
        try:
            yield _event(answer.chunk("", first=True))
            piece, finish = first
            while finish is None:
                if piece:
                    yield _event(answer.chunk(piece))
                piece, finish = await anext(pieces)
            yield _event(answer.chunk(piece, finish))
            options = answer.request.stream_options
            if options and options.include_usage:
                yield _event(answer.last())
            yield "data: [DONE]\n\n"
        except Exception as fault:
            yield _event(json.loads(error_of(fault, seconds).response().body))
            if not isinstance(fault, TimeoutError):
                raise  # to the log
        finally:
            await pieces.aclose()

    return StreamingResponse(events(), media_type="text/event-stream", headers=STREAMED)


def _event(content: dict) -> str:
    return f"data: {json.dumps(content)}\n\n"  # in ASCII: some clients end a line at U+0085 or U+2028 too


async def _pieces(model: Model, text: Text, stops: Sequence[str], seconds: float, taken: list[int]) -> Pieces:
    """Yields the pieces of a text, each with None, the last with "stop" or "length". Raises TimeoutError.

    A piece has complete characters, and nothing that may be the beginning of a stop text. The ids of the pieces are
    appended to `taken`; those of `text` go on while it is being stopped.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start, pending, ended, first = time.monotonic(), "", None, True
    longest = max(map(len, stops), default=0)
    generating = model.scheduler.generate(text)
    try:
        while ended is None:
            left = start + seconds - time.monotonic()
            ids, ended = await asyncio.wait_for(anext(generating), left)
            if first:
                FIRST.observe(time.monotonic() - start)
                first = False
            taken += ids
            pending += decoder.decode(model.tokenizer.decode_bytes(ids), final=bool(ended))
            if (at := _first_stop(pending, stops)) is not None:
                yield pending[:at], "stop"
                return
            ready = len(pending) if ended else max(0, len(pending) - max(longest - 1, 0))
            yield pending[:ready], ended
            pending = pending[ready:]
    finally:
        await generating.aclose()


def _first_stop(text: str, stops: Sequence[str]) -> int | None:
    return min((at for stop in stops if (at := text.find(stop)) >= 0), default=None)


async def _collected(pieces: Pieces) -> tuple[str, str]:
    """Returns the whole text and why it ended."""
    found, finish = "", None
    async with contextlib.aclosing(pieces):
        while finish is None:
            piece, finish = await anext(pieces)
            found += piece
    return found, finish


# ---- Completions with log-probabilities ----


async def complete(name: str, model: Model, request: CompletionRequest, seconds: float) -> Response:
    """Answers one or several prompts, with echo and log-probabilities where they are asked for."""
    answer, choices = Answer(request, name, "text_completion"), []
    for index, prompt in enumerate(request.prompts):
        ids = await run_in_threadpool(model.ids, prompt)
        if len(ids) > model.context:
            raise ApiError(400, f"A prompt has {len(ids):,} tokens; the context is {model.context:,}.", param="prompt")
        chosen, written, finish, scores = np.zeros(0, np.int32), "", "length", None
        if request.logprobs is not None and request.max_tokens == 1 and request.sampling == GREEDY:
            scores = await model.scheduler.score(ids)
            chosen = scores.top_ids[-1:, 0]
            written = model.tokenizer.decode(chosen.tolist())
            answer.taken += [each for each in chosen.tolist() if each not in model.stops]
            if chosen[0] in model.stops:
                written, finish = "", "stop"
            elif (at := _first_stop(written, request.stops)) is not None:
                written, finish = written[:at], "stop"
        elif request.max_tokens != 0 and len(ids) < model.context:
            text, taken = model.text(ids, request), []
            written, finish = await _collected(_pieces(model, text, request.stops, seconds, taken))
            answer.taken += taken  # counted as in a request without log-probabilities
            if finish == "stop" and model.tokenizer.decode(taken) == written:
                taken.append(text.stop)
            elif finish == "stop":  # at a stop text, whose tokens are not part of the answer
                while taken and model.tokenizer.decode(taken[:-1]).startswith(written):
                    taken.pop()
            chosen = np.array(taken, np.int32)
        hidden = not model.begins(prompt)
        log_probs = None
        if request.logprobs is not None:
            scores = scores or await model.scheduler.score(np.concatenate([ids, chosen])[: model.context])
            log_probs = _log_probs(model, np.concatenate([ids, chosen]), scores, request, len(ids), hidden)
        shown_text = (model.tokenizer.decode(ids[hidden:]) if request.echo else "") + written
        choices.append({"index": index, "text": shown_text, "logprobs": log_probs, "finish_reason": finish})
        answer.read += len(ids)
    return JSONResponse(answer.whole(choices))


def _log_probs(
    model: Model, ids: np.ndarray, scores: Scores, request: CompletionRequest, prompt: int, hidden: bool
) -> dict:
    """Returns the log-probabilities of the ids that the answer shows, in the API's shape.

    The first id of a document has none. `hidden` is whether the server itself put it in front.
    """
    first = int(hidden) if request.echo else prompt
    count = min(max(request.logprobs, 1), TOP)
    tokens, values, top, offsets, at = [], [], [], [], 0
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for place in range(first, len(ids)):
        token = _spelled(model, int(ids[place]))
        tokens.append(token)
        offsets.append(at)
        at += len(decoder.decode(model.tokenizer.decode_bytes([ids[place]])))
        if place == 0 or place > len(scores.top_ids):
            values.append(None)
            top.append(None)
            continue
        inside = place <= len(scores.log_probs)  # behind the last id read, only the top is known
        value = float(scores.log_probs[place - 1] if inside else scores.top_log_probs[place - 1][0])
        values.append(value)
        best = {token: value}
        for i, log_prob in zip(scores.top_ids[place - 1][:count], scores.top_log_probs[place - 1][:count], strict=True):
            name = _spelled(model, int(i))
            best[name] = max(best.get(name, -np.inf), float(log_prob))
        top.append(best)
    return {"tokens": tokens, "token_logprobs": values, "top_logprobs": top, "text_offset": offsets}


def _spelled(model: Model, token: int) -> str:
    r"""Returns the text of an id; of a part of a character its bytes, as the API spells them: `bytes:\xe2\x80`."""
    content = model.tokenizer.decode_bytes([token])
    try:
        return content.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
