"""The HTTP server: one process, one model, concurrent requests batched into its passes."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.exceptions import HTTPException as TooLarge  # the one kind that reading a body lets through
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Connection
from starlette.responses import HTMLResponse, JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bayeslora import __version__
from bayeslora.errors import RunError, UsageError
from bayeslora.serving.answer import Answer
from bayeslora.serving.batcher import Batcher, BusyError
from bayeslora.serving.schema import Health, Refusal, Request, Response

_HERE = Path(__file__).parent
_LINE = 500  # characters of a refusal
_LOOK = 0.25  # seconds between two looks at whether the caller is still there
_HEADERS = {
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
_SHAPE = 2  # place of the name of a question's shape, which no body has, in ``questions.0.shape.field``
_OUTCOMES: dict[int | str, dict[str, Any]] = {
    400: {"model": Refusal, "description": "The body is no JSON."},
    200: {"description": "The answers, in the order of the questions."},
    413: {"model": Refusal, "description": "The body is too large."},
    422: {"model": Refusal, "description": "A question cannot be asked; none of the request is answered."},
    503: {"model": Refusal, "description": "Too many questions are in flight, or the answer was not there in time."},
}


@dataclass(frozen=True)
class Limits:
    """What a request may take.

    Attributes:
        seconds: After which it is refused.
        body: Most bytes of its body.
    """

    seconds: float = 30.0
    body: int = 1 << 20


def application(batcher: Batcher, limits: Limits | None = None) -> FastAPI:
    """The server of one predictor: ``/predict``, ``/health``, a page at ``/`` and a description at ``/docs``.

    Args:
        batcher: Answers questions; it is closed when the server ends.
        limits: What a request may take.
    """
    limits = limits or Limits()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        """Close the batcher when the server ends."""
        yield
        batcher.close()

    app = FastAPI(
        title="bayeslora",
        version=__version__,
        description="Answers with calibrated probabilities, uncertainty and a decision whether to answer at all.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
    )
    app.add_middleware(_Bounded, most=limits.body)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)

    @app.post("/predict", response_model=Response, responses=_OUTCOMES, summary="Answer questions")
    async def predict(asked: Request, connection: Connection) -> Any:
        """Probabilities, uncertainty and a decision for every question, in the order in which they were asked."""
        return await _answered(batcher, asked, connection, limits)

    stopping: dict[int | str, dict[str, Any]] = {200: {"description": "They are."}, 503: {"description": "No longer."}}

    @app.get("/health", response_model=Health, responses=stopping, summary="Whether questions are answered")
    async def health() -> Any:
        """Whether the server takes questions, and what it answers with."""
        status = "ok" if batcher.alive else "stopping"
        kept = batcher.predictor.kept
        options = kept.prompting.options
        found = Health(
            status=status,
            method=kept.method,
            in_flight=batcher.in_flight,
            decides=kept.rule is not None,
            options=None if options is None else list(options),
        )
        return JSONResponse(found.model_dump(), 200 if batcher.alive else 503)

    for path, file in (("/", "page.html"), ("/docs", "docs.html")):
        app.get(path, include_in_schema=False)(_page(_HERE / file))
    return app


async def _answered(batcher: Batcher, asked: Request, connection: Connection, limits: Limits) -> JSONResponse:
    given = [question.model_dump(exclude_none=True) for question in asked.questions]
    try:
        future: asyncio.Future[Any] = asyncio.wrap_future(batcher.submit(given, limits.seconds))
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(connection))
        try:
            await asyncio.wait({future, gone}, timeout=limits.seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            gone.cancel()
        if not future.done():
            future.cancel()  # the batcher leaves out what nobody waits for
            return _refusal(503, f"the answer was not there within {limits.seconds:g} seconds; ask later")
        answers: list[Answer] = future.result()
    except UsageError as error:
        return _refusal(422, str(error))
    except BusyError as error:
        return _refusal(503, str(error))
    except RunError as error:
        return _refusal(500, str(error))
    return JSONResponse({"answers": [answer.to_dict() for answer in answers]}, headers=_HEADERS)


async def _gone(connection: Connection) -> None:
    """Returns when the caller has closed the connection."""
    while not await connection.is_disconnected():
        await asyncio.sleep(_LOOK)


def _refusal(status: int, why: str) -> JSONResponse:
    """A refusal in one line, which does not repeat a long text that was asked."""
    line = " ".join(why.encode("utf-8", "replace").decode().split())
    line = line if len(line) <= _LINE else f"{line[:_LINE]} ..."
    headers = _HEADERS | ({"Retry-After": "1"} if status == 503 else {})
    return JSONResponse({"error": line}, status, headers)


async def _invalid(connection: Connection, error: Exception) -> JSONResponse:
    """What is wrong with a body, without repeating it."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    found = [str(part) for part in first["loc"] if part != "body"]
    where = ".".join(part for place, part in enumerate(found) if place != _SHAPE)
    status = 400 if first["type"] == "json_invalid" else 422
    return _refusal(status, f"{where}: {first['msg']}" if where else str(first["msg"]))


async def _http_error(connection: Connection, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    return _refusal(error.status_code, str(error.detail))


def _page(file: Path) -> Callable[[], Awaitable[HTMLResponse]]:
    text = file.read_text(encoding="utf-8")

    async def page() -> HTMLResponse:
        """The file as it was when the server started."""
        return HTMLResponse(text, headers=_HEADERS)

    return page


class _Bounded:
    """Refuses bodies of more than so many bytes, whether their length is said or not.

    Args:
        app: The application.
        most: Most bytes of a body.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        taken = 0

        async def counted() -> Message:
            """The next part of the body, unless it is more than is allowed."""
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most:
                raise TooLarge(413, f"the body has more than {self.most} bytes")
            return message

        with contextlib.suppress(ClientDisconnect):
            await self.app(scope, counted, send)
