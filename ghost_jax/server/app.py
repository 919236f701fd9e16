"""The HTTP server: the OpenAI API for a model or the reader, health, metrics and the page. No request is logged."""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from importlib import resources

import fastapi
from fastapi.responses import HTMLResponse, JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from ghost_jax.data.retrieval.bm25 import Passage
from ghost_jax.inference.conversation import quoted
from ghost_jax.server.answers import Answer, complete, event, respond, too_late
from ghost_jax.server.guard import ApiError, Guard, add_errors
from ghost_jax.server.scheduler import REGISTRY
from ghost_jax.server.schemas import (
    MOST_READ,
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    ReadRequest,
    TokenizeRequest,
)
from ghost_jax.server.served import Model, Served, question_of, turns_of
from ghost_jax.text.mcq_format import LETTERS


def build(served: Served, *, key: str, seconds: float, hosts: Sequence[str]) -> fastapi.FastAPI:
    """Returns the application.

    Args:
      key: that clients must send; "" for none.
      seconds: that a request may take.
      hosts: names that a client may call the server by; none for any.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: fastapi.FastAPI) -> AsyncIterator[None]:
        if served.model:
            served.model.scheduler.start()
        yield
        if served.model:
            await run_in_threadpool(served.model.scheduler.stop)

    app = fastapi.FastAPI(title="ghost_jax", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(Guard, key=key, hosts=hosts)
    app.include_router(routes(served, seconds))
    add_errors(app)
    return app


# ---- Routes ----


def routes(served: Served, seconds: float) -> fastapi.APIRouter:
    """Returns the routes of a server."""
    router = fastapi.APIRouter()
    page, policy = _page()

    @router.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @router.get("/health")
    async def health() -> dict:
        if served.model and not served.model.scheduler.alive:
            raise ApiError(503, "The engine has ended; the log has the cause. Start the server again.", "server_error")
        return {"status": "ok"}

    @router.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [described()]}

    @router.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        _check_model(served, name)
        return described()

    def described() -> dict:
        model = {"id": served.name, "object": "model", "created": served.created, "owned_by": "ghost_jax"}
        about = {"book": served.reader is not None, "generates": served.model is not None, "note": served.note}
        about["quotes"] = served.quotes or served.model is None  # chats are answered by the lines of the book
        return model | about

    @router.post("/v1/chat/completions")
    async def chat(request: ChatRequest, raw: fastapi.Request) -> Response:
        _check_model(served, request.model)
        question = turns_of(request.messages)[-1].content
        if served.model is None or served.quotes:
            return await _read_chat(served, request, question, seconds)
        lines = await run_in_threadpool(served.lines, question)
        text, turn = await run_in_threadpool(served.model.chat, request, request.messages, lines)
        extra = {"citations": [dataclasses.asdict(line) for line in turn.lines]} if served.reader else {}
        notes = {"note": served.note, "forgotten": turn.forgotten, "lines_dropped": turn.lines_dropped}
        answer = Answer(request, served.name, "chat.completion", extra, {name: x for name, x in notes.items() if x})
        return await respond(answer, served.model, text, raw, seconds)

    @router.post("/v1/completions")
    async def completions(request: CompletionRequest, raw: fastapi.Request) -> Response:
        _check_model(served, request.model)
        model = _model(served)
        one = isinstance(request.prompt, str) or (bool(request.prompt) and isinstance(request.prompt[0], int))
        if one and request.logprobs is None and not request.echo and request.max_tokens != 0:
            answer = Answer(request, served.name, "text_completion")
            text = model.text(await run_in_threadpool(model.ids, request.prompt), request)
            return await respond(answer, model, text, raw, seconds)
        if request.stream:
            raise ApiError(400, "A stream has one prompt, without logprobs and echo. Leave stream out.", param="stream")
        try:
            async with asyncio.timeout(seconds):
                return await complete(served.name, model, request, raw, seconds)
        except TimeoutError:
            raise too_late(seconds) from None

    @router.post("/v1/read")
    async def read(request: ReadRequest) -> dict:
        if served.reader is None:
            raise ApiError(400, "The server has no book. Start it with --book=open.")
        if len(request.options) == 1:
            raise ApiError(400, "A question has two options or more, or none.", param="options")
        return await _reading(served, request.question, request.options, seconds)

    @router.get("/tokenizer_info")
    async def tokenizer_info() -> dict:
        tokenizer = _model(served).tokenizer
        bos, eos = (tokenizer.decode([i]) for i in (tokenizer.bos_id, tokenizer.eos_id))
        return {"bos_token": bos, "eos_token": eos, "pad_token": tokenizer.decode([tokenizer.pad_id])}

    @router.post("/tokenize")  # not async: long texts are encoded in another thread
    def tokenize(request: TokenizeRequest) -> dict:
        model = _model(served)
        special = {model.tokenizer.decode([i]): i for i in (model.tokenizer.bos_id, model.tokenizer.eos_id)}
        # A prompt that is a special token alone is that token: clients ask for its id in this way.
        ids = [special[request.prompt]] if request.prompt in special else model.tokenizer.encode(request.prompt)
        return {"tokens": ids, "count": len(ids), "max_model_len": model.context}

    @router.post("/detokenize")
    def detokenize(request: DetokenizeRequest) -> dict:
        model = _model(served)
        return {"prompt": model.tokenizer.decode(model.ids(request.tokens)[not model.begins(request.tokens) :])}

    return router


def _check_model(served: Served, name: str) -> None:
    if name != served.name:
        raise ApiError(404, f'There is no model "{name}"; this server has "{served.name}".', param="model")


def _model(served: Served) -> Model:
    if served.model is None:
        raise ApiError(400, "This server has no model, only the reader. Use /v1/chat/completions or /v1/read.")
    return served.model


def _page() -> tuple[str, str]:
    """Returns the page and its content security policy, which allows its own script and style alone."""
    page = resources.files("ghost_jax.server").joinpath("page.html").read_text(encoding="utf-8")

    def hashed(tag: str) -> str:
        content = re.search(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)[1]
        return base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()

    script, style = hashed("script"), hashed("style")
    return page, (
        f"default-src 'none'; script-src 'sha256-{script}'; style-src 'sha256-{style}'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


# ---- The reader alone ----


async def _reading(served: Served, question: str, options: Sequence[str], seconds: float) -> dict:
    """Returns what `_read` returns, computed in another thread. Raises ApiError for a long question, or too late."""
    if len(question) + sum(map(len, options)) > MOST_READ:
        raise ApiError(400, f"The reader takes at most {MOST_READ:,} characters of a question and its options.")
    try:
        return await asyncio.wait_for(asyncio.to_thread(_read, served, question, options), seconds)
    except TimeoutError:
        raise too_late(seconds) from None


def _read(served: Served, question: str, options: Sequence[str]) -> dict:
    """Returns the reader's answer to a question, with the lines it rests on."""
    lines = [dataclasses.asdict(line) for line in served.lines(question)]
    if not options:
        return {"answer": None, "lines": lines, "options": []}
    answer, of = served.answer(question, options)
    each = [
        {"letter": letter, "text": option, "score": score, "lines": [dataclasses.asdict(line) for line in found]}
        for letter, option, (score, found) in zip(LETTERS, options, of, strict=False)
    ]
    return {"answer": None if answer is None else LETTERS[answer], "lines": lines, "options": each}


async def _read_chat(served: Served, request: ChatRequest, asked: str, seconds: float) -> Response:
    """Answers a chat by the reader: the option that the book supports, or the lines that match the question."""
    question, options = question_of(asked)
    found = await _reading(served, question, options, seconds)
    lines = found["lines"]
    if found["answer"]:
        chosen = found["options"][LETTERS.index(found["answer"])]
        content, lines = f"{chosen['letter']}) {chosen['text']}", chosen["lines"]
    else:
        content = quoted(question, [Passage(**line) for line in lines])
    about = {"note": served.note} if served.note else {}
    answer = Answer(request, served.name, "chat.completion", {"citations": lines}, about)
    if not request.stream:
        return JSONResponse(answer.whole(content, "stop", 0, 0))
    events = [answer.chunk("", first=True), answer.chunk(content), answer.chunk("", "stop")]
    if request.stream_options and request.stream_options.include_usage:
        events.append(answer.last(0, 0))
    body = "".join(map(event, events)) + "data: [DONE]\n\n"
    return Response(body, media_type="text/event-stream")
