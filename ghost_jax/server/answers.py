"""The answers of a model in the OpenAI API's shape: whole, as a stream, and with log-probabilities."""

import asyncio
import codecs
import dataclasses
import json
import secrets
import time
from collections.abc import AsyncIterator

import fastapi
import numpy as np
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import Histogram
from starlette.concurrency import run_in_threadpool

from ghost_jax.inference.engine import TOP, Scores, Text
from ghost_jax.inference.sampling import GREEDY
from ghost_jax.server.guard import ApiError
from ghost_jax.server.scheduler import REGISTRY
from ghost_jax.server.schemas import CompletionRequest, Generation
from ghost_jax.server.served import Model

FIRST = Histogram("ghost_first_token_seconds", "Seconds to the first token", registry=REGISTRY)


@dataclasses.dataclass
class Answer:
    """The JSON objects of an answer, whole or in chunks."""

    request: Generation
    model: str
    kind: str  # "chat.completion" or "text_completion"
    extra: dict = dataclasses.field(default_factory=dict)  # of the message
    about: dict = dataclasses.field(default_factory=dict)  # of the answer
    id: str = dataclasses.field(default_factory=lambda: secrets.token_hex(12))
    created: int = dataclasses.field(default_factory=lambda: int(time.time()))

    @property
    def _is_chat(self) -> bool:
        return self.kind == "chat.completion"

    def whole(self, text: str, finish: str, prompt_tokens: int, tokens: int) -> dict:
        """Returns the complete answer."""
        of = {"message": {"role": "assistant", "content": text} | self.extra} if self._is_chat else {"text": text}
        return self.object(self.kind, [self._choice(of, finish)]) | {"usage": usage(prompt_tokens, tokens)}

    def chunk(self, text: str, finish: str | None = None, *, first: bool = False) -> dict:
        """Returns a chunk of a stream; the last one has `finish`, and the citations."""
        of = {"text": text}
        if self._is_chat:
            delta = {"role": "assistant"} if first else {}
            of = {"delta": delta | {"content": text} | (self.extra if finish else {})}
        return self.object(f"{self.kind}.chunk" if self._is_chat else self.kind, [self._choice(of, finish)])

    def last(self, prompt_tokens: int, tokens: int) -> dict:
        """Returns the chunk behind the last one, with the usage."""
        kind = f"{self.kind}.chunk" if self._is_chat else self.kind
        return self.object(kind, []) | {"usage": usage(prompt_tokens, tokens)}

    def _choice(self, of: dict, finish: str | None) -> dict:
        return {"index": 0, **of, "logprobs": None, "finish_reason": finish}

    def object(self, kind: str, choices: list[dict]) -> dict:
        """Returns an object of this kind with its choices."""
        about = {"ghost_jax": self.about} if self.about else {}
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": choices} | about


def usage(prompt_tokens: int, tokens: int) -> dict:
    """Returns the counts of tokens."""
    return {"prompt_tokens": prompt_tokens, "completion_tokens": tokens, "total_tokens": prompt_tokens + tokens}


async def respond(answer: Answer, model: Model, text: Text, raw: fastapi.Request, seconds: float) -> Response:
    """Answers with a text, whole or as a stream."""
    taken: list[int] = []
    pieces = _pieces(model, text, answer.request, seconds, taken)
    if not answer.request.stream:
        found, finish = await _collected(pieces, raw)
        return JSONResponse(answer.whole(found, finish, len(text.prompt), len(taken)))
    first = await anext(pieces)  # a full queue is refused with a status, before the stream begins

    async def events() -> AsyncIterator[str]:
        try:
            yield event(answer.chunk("", first=True))
            piece, finish = first
            while finish is None:
                if piece:
                    yield event(answer.chunk(piece))
                piece, finish = await anext(pieces)
            yield event(answer.chunk(piece, finish))
            options = answer.request.stream_options
            if options and options.include_usage:
                yield event(answer.last(len(text.prompt), len(taken)))
            yield "data: [DONE]\n\n"
        except ApiError as error:
            yield event(json.loads(error.response().body))
        finally:
            await pieces.aclose()

    return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})


def too_late(seconds: float) -> ApiError:
    """Returns the error of an answer that takes too long."""
    return ApiError(504, f"The answer took more than {seconds:g} seconds.", "server_error")


def event(content: dict) -> str:
    """Returns an event of a stream."""
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _pieces(
    model: Model, text: Text, request: Generation, seconds: float, taken: list[int]
) -> AsyncIterator[tuple[str, str | None]]:
    """Yields the pieces of a text, each with None, the last with "stop" or "length".

    A piece has complete characters, and nothing that may be the beginning of a stop text. The ids of the pieces are
    appended to `taken`; those of `text` go on while it is being stopped.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    start, pending, ended, first = time.monotonic(), "", None, True
    stops = request.stops
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
            if found := [at for stop in stops if (at := pending.find(stop)) >= 0]:
                yield pending[: min(found)], "stop"
                return
            ready = len(pending) if ended else max(0, len(pending) - max(longest - 1, 0))
            yield pending[:ready], ended
            pending = pending[ready:]
    except TimeoutError:
        raise too_late(seconds) from None
    finally:
        await generating.aclose()


async def _collected(pieces: AsyncIterator[tuple[str, str | None]], raw: fastapi.Request) -> tuple[str, str]:
    """Returns the whole text and why it ended. A client that has left ends it."""
    found, finish = "", None
    try:
        while finish is None:
            piece, finish = await anext(pieces)
            found += piece
            if await raw.is_disconnected():
                return found, "length"
    finally:
        await pieces.aclose()
    return found, finish


# ---- Completions with log-probabilities ----


async def complete(
    name: str, model: Model, request: CompletionRequest, raw: fastapi.Request, seconds: float
) -> Response:
    """Answers one or several prompts, with echo and log-probabilities where they are asked for."""
    given = request.prompt
    prompts = given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    choices, read, made = [], 0, 0
    for index, prompt in enumerate(prompts):
        if await raw.is_disconnected():
            break
        ids = await run_in_threadpool(model.ids, prompt)
        if len(ids) > model.context:
            raise ApiError(400, f"A prompt has {len(ids):,} tokens; the context is {model.context:,}.", param="prompt")
        chosen, written, finish, scores = np.zeros(0, np.int32), "", "length", None
        if request.logprobs is not None and request.max_tokens == 1 and request.sampling == GREEDY:
            scores = await model.scheduler.score(ids)
            chosen = scores.top_ids[-1:, 0]
            written = model.tokenizer.decode(chosen.tolist())
            if chosen[0] in model.stops:
                written, finish = "", "stop"
            elif found := [at for stop in request.stops if (at := written.find(stop)) >= 0]:
                written, finish = written[: min(found)], "stop"
        elif request.max_tokens != 0 and len(ids) < model.context:
            text, taken = model.text(ids, request), []
            written, finish = await _collected(_pieces(model, text, request, seconds, taken), raw)
            if text.stop is not None and len(taken) == len(text.ids):
                taken.append(text.stop)
            elif finish == "stop":  # at a stop text, whose tokens are not part of the answer
                while taken and len(model.tokenizer.decode(taken[:-1])) >= len(written):
                    taken.pop()
            chosen = np.array(taken, np.int32)
        hidden = not model.begins(prompt)
        log_probs = None
        if request.logprobs is not None:
            scores = scores or await model.scheduler.score(np.concatenate([ids, chosen])[: model.context])
            log_probs = _log_probs(model, np.concatenate([ids, chosen]), scores, request, len(ids), hidden)
        shown_text = (model.tokenizer.decode(ids[hidden:]) if request.echo else "") + written
        choices.append({"index": index, "text": shown_text, "logprobs": log_probs, "finish_reason": finish})
        read, made = read + len(ids), made + len(chosen)
    answer = Answer(request, name, "text_completion")
    return JSONResponse(answer.object(answer.kind, choices) | {"usage": usage(read, made)})


def _log_probs(
    model: Model, ids: np.ndarray, scores: Scores, request: CompletionRequest, prompt: int, hidden: bool
) -> dict:
    """Returns the log-probabilities of the ids that the answer shows, in the API's shape.

    The first id of a document has none. `hidden` is whether the server itself put it in front.
    """
    first = int(hidden) if request.echo else prompt
    count = min(max(request.logprobs, 1), TOP)
    tokens, values, top, offsets, at = [], [], [], [], 0
    for place in range(first, len(ids)):
        token = _spelled(model, int(ids[place]))
        tokens.append(token)
        offsets.append(at)
        at += len(model.tokenizer.decode([int(ids[place])]))
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
