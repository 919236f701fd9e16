"""What every request passes: the host's name, the key, limits of the body, and errors of the API's shape."""

import asyncio
import itertools
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import Counter, Histogram
from starlette.exceptions import HTTPException

from ghost_jax.core.errors import UserError
from ghost_jax.server.scheduler import REGISTRY, Busy

MOST_BYTES = 1 << 20  # of a body
READ_SECONDS = 20  # to send it
RETRY_SECONDS = 2  # advised where the queue is full
OPEN_PATHS = ("/", "/health")  # without a key

REQUESTS = Counter("ghost_requests", "Requests by path and status", ["path", "status"], registry=REGISTRY)
SECONDS = Histogram("ghost_request_seconds", "Seconds to the end of an answer", ["path"], registry=REGISTRY)


class ApiError(Exception):
    """An answer with an error of the API's shape."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", param: str | None = None):
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param

    def response(self) -> JSONResponse:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": None}
        headers = {"Retry-After": str(RETRY_SECONDS)} if self.status == 429 else None
        return JSONResponse({"error": error}, self.status, headers)


class Guard:
    """Checks the key, reads the body within its limits, and counts and times each request."""

    def __init__(self, app: Callable[..., Awaitable[None]], key: str, hosts: Sequence[str]):
        self._app, self._key, self._hosts = app, key, hosts

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, status, read = time.monotonic(), 500, []

        async def counted(message: dict) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        async def replayed() -> dict:
            return read.pop() if read else await receive()

        try:
            self._check(scope)
            read.append({"type": "http.request", "body": await _body(receive), "more_body": False})
        except ApiError as error:
            await error.response()(scope, receive, counted)
        else:
            await self._app(scope, replayed, counted)
        finally:  # a defect passes through here, before it is answered with 500
            path = scope.get("route").path if scope.get("route") else "other"
            REQUESTS.labels(path, status).inc()
            SECONDS.labels(path).observe(time.monotonic() - start)

    def _check(self, scope: dict) -> None:
        headers = dict(scope["headers"])
        host = re.sub(r":\d+$", "", headers.get(b"host", b"").decode("latin-1"))
        if self._hosts and host not in self._hosts:  # a page elsewhere may have pointed its own name at this machine
            raise ApiError(400, f"The server is not called {host}. Use {' or '.join(self._hosts)}.")
        if scope["method"] == "POST" and b"json" not in headers.get(b"content-type", b""):
            # A page elsewhere cannot send JSON unasked.
            raise ApiError(415, "The body is not declared as JSON. Send Content-Type: application/json.")
        if not self._key or scope["path"] in OPEN_PATHS:
            return
        given = headers.get(b"authorization", b"")
        if not secrets.compare_digest(given, f"Bearer {self._key}".encode()):
            raise ApiError(401, "The key is missing or wrong. Send Authorization: Bearer KEY.", "authentication_error")


async def _body(receive: Callable) -> bytes:
    body, more = b"", True
    try:
        async with asyncio.timeout(READ_SECONDS):
            while more:
                message = await receive()
                body += message.get("body", b"")
                more = message.get("more_body", False)
                if len(body) > MOST_BYTES:
                    raise ApiError(413, f"The body is larger than {MOST_BYTES:,} bytes. Send less.")
    except TimeoutError:
        raise ApiError(408, f"The body was not sent within {READ_SECONDS} seconds.") from None
    return body


async def while_connected(request: fastapi.Request, answering: Coroutine[Any, Any, Response]) -> Response:
    """Returns an answer; cancels it and raises ApiError where the client leaves before it begins."""

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = asyncio.ensure_future(answering), asyncio.ensure_future(left())
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ApiError(499, "The client has left.")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


def add_errors(app: fastapi.FastAPI, seconds: float) -> None:
    """Gives every error the API's shape; `seconds` is what a request may take."""

    async def handle(_: fastapi.Request, fault: Exception) -> Response:
        return error_of(fault, seconds).response()

    for kind in (ApiError, RequestValidationError, UserError, Busy, TimeoutError, HTTPException, Exception):
        app.add_exception_handler(kind, handle)


def error_of(fault: Exception, seconds: float) -> ApiError:
    """Returns the error that a client gets for a fault."""
    match fault:
        case ApiError():
            return fault
        case RequestValidationError():
            return _invalid(fault)
        case UserError():
            return ApiError(400, str(fault))
        case Busy():
            return ApiError(429, f"The server is busy. Try again in {RETRY_SECONDS} seconds.", "rate_limit_error")
        case TimeoutError():
            return ApiError(504, f"The answer took more than {seconds:g} seconds.", "server_error")
        case HTTPException():
            return ApiError(fault.status_code, str(fault.detail))
        case _:
            return ApiError(500, "The server failed; its log has the cause.", "server_error")


def _invalid(fault: RequestValidationError) -> ApiError:
    first = fault.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, "The body is not valid JSON.")
    # pydantic also names the member of a union that it tried, such as "constrained-str".
    named = itertools.takewhile(lambda part: re.fullmatch(r"\w+", str(part)), first["loc"][1:])
    place = ".".join(map(str, named)) or "the body"
    unknown = first["type"] in ("extra_forbidden", "literal_error", "none_required")
    message = f"{place} is not supported, or not with this value." if unknown else f"{place}: {first['msg']}."
    return ApiError(400, message, param=place)
