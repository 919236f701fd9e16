"""The HTTP server: the OpenAI API for a model or the reader, health, metrics and the page. No request is logged."""

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator, Sequence
from importlib import resources

import fastapi
from fastapi.responses import HTMLResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.concurrency import run_in_threadpool

from ghost_jax.inference.conversation import quoted
from ghost_jax.server.answers import Answer, Pieces, complete, generate, respond
from ghost_jax.server.guard import ApiError, Guard, add_errors, while_connected
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
    add_errors(app, seconds)
    page, policy = _page()

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def index() -> Response:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.get("/health")
    async def health() -> dict:
        if served.model and not served.model.scheduler.alive:
            raise ApiError(503, "The engine has ended; the log has the cause. Start the server again.", "server_error")
        return {"status": "ok"}

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [described()]}

    @app.get("/v1/models/{name}")
    async def one_model(name: str) -> dict:
        _check_model(served, name)
        return described()

    def described() -> dict:
        model = {"id": served.name, "object": "model", "created": served.created, "owned_by": "ghost_jax"}
        about = {"book": served.reader is not None, "generates": served.model is not None, "note": served.note}
        about["quotes"] = served.quotes or served.model is None  # chats are answered by the lines of the book
        return model | about

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest, raw: fastapi.Request) -> Response:
        _check_model(served, request.model)
        turns = turns_of(request.messages)
        if served.model is None or served.quotes:
            return await _read_chat(served, request, turns[-1].content, seconds)
        lines = await run_in_threadpool(served.lines, turns[-1].content)
        text, turn = await run_in_threadpool(served.model.chat, request, turns, lines)
        about = {"note": served.note, "forgotten": turn.forgotten, "lines_dropped": turn.lines_dropped}
        answer = Answer(request, served.name, "chat.completion", about, turn.lines if served.reader else None)
        return await while_connected(raw, generate(answer, served.model, text, seconds))

    @app.post("/v1/completions")
    async def completions(request: CompletionRequest, raw: fastapi.Request) -> Response:
        _check_model(served, request.model)
        model = _model(served)
        if len(request.prompts) == 1 and request.logprobs is None and not request.echo and request.max_tokens != 0:
            answer = Answer(request, served.name, "text_completion")
            text = model.text(await run_in_threadpool(model.ids, request.prompts[0]), request)
            return await while_connected(raw, generate(answer, model, text, seconds))
        if request.stream:
            raise ApiError(400, "A stream has one prompt, without logprobs and echo. Leave stream out.", param="stream")
        async with asyncio.timeout(seconds):
            return await while_connected(raw, complete(served.name, model, request, seconds))

    @app.post("/v1/read")
    async def read(request: ReadRequest) -> dict:
        if served.reader is None:
            raise ApiError(400, "The server has no book. Start it with --book=open.")
        if len(request.options) == 1:
            raise ApiError(400, "A question has two options or more, or none.", param="options")
        return await _reading(served, request.question, request.options, seconds)

    @app.get("/tokenizer_info")
    async def tokenizer_info() -> dict:
        tokenizer = _model(served).tokenizer
        bos, eos = (tokenizer.decode([i]) for i in (tokenizer.bos_id, tokenizer.eos_id))
        return {"bos_token": bos, "eos_token": eos, "pad_token": tokenizer.decode([tokenizer.pad_id])}

    @app.post("/tokenize")  # not async: long texts are encoded in another thread
    def tokenize(request: TokenizeRequest) -> dict:
        model = _model(served)
        special = {model.tokenizer.decode([i]): i for i in (model.tokenizer.bos_id, model.tokenizer.eos_id)}
        # A prompt that is a special token alone is that token: clients ask for its id in this way.
        ids = [special[request.prompt]] if request.prompt in special else model.tokenizer.encode(request.prompt)
        return {"tokens": ids, "count": len(ids), "max_model_len": model.context}

    @app.post("/detokenize")
    def detokenize(request: DetokenizeRequest) -> dict:
        model = _model(served)
        return {"prompt": model.tokenizer.decode(model.ids(request.tokens)[not model.begins(request.tokens) :])}

    return app


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
    """Returns what `Served.read` does, computed in another thread. Raises ApiError for a long question."""
    if len(question) + sum(map(len, options)) > MOST_READ:
        raise ApiError(400, f"The reader takes at most {MOST_READ:,} characters of a question and its options.")
    return await asyncio.wait_for(asyncio.to_thread(served.read, question, options), seconds)


async def _read_chat(served: Served, request: ChatRequest, asked: str, seconds: float) -> Response:
    """Answers a chat by the reader: the option that the book supports, or the lines that match the question."""
    question, options = question_of(asked)
    found = await _reading(served, question, options, seconds)
    lines = found["lines"]
    if found["answer"]:
        chosen = found["options"][LETTERS.index(found["answer"])]
        content = f"{chosen['letter']}) {chosen['text']}"
    else:
        content = quoted(question, lines)

    async def pieces() -> Pieces:
        yield content, None
        yield "", "stop"

    answer = Answer(request, served.name, "chat.completion", {"note": served.note}, lines)
    return await respond(answer, pieces(), seconds)
