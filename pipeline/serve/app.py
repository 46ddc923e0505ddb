"""The service's HTTP: OpenAI's routes, the store's, the page; one engine behind them."""

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse
from fastapi.staticfiles import StaticFiles
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.types import Receive, Scope, Send

from vococache import __version__
from vococache.errors import VoCoError
from vococache.pipeline.serve import chat
from vococache.pipeline.serve.engine import Checked, Engine, Event, Outcome, Pending
from vococache.pipeline.serve.errors import described, error_body, error_response
from vococache.pipeline.serve.metrics import Metrics
from vococache.pipeline.serve.pictures import Pictures
from vococache.pipeline.serve.security import Guard, session_cookie
from vococache.pipeline.serve.videos import routes
from vococache.workers.reason import ReasonStage, answer_text

PAGE = Path(__file__).parent / "page"
HTTP_CODES = {404: "not_found", 405: "method_not_allowed", 413: "content_too_large"}
log = logging.getLogger(__name__)


def make_app(
    engine: Engine, *, token: str | None = None, hosts: Collection[str] | None = None, sources: bool = False
) -> Guard:
    """The service as an ASGI application. `token`, `hosts`: as `Guard`; `sources`: hand out files."""
    stage, metrics, pictures = engine.stage, engine.metrics, Pictures()
    name = model_name(stage)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        engine.start()
        yield
        await run_in_threadpool(engine.stop)
        pictures.close()

    app = FastAPI(title="VoCoCache", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _handle_errors(app, stage.store.url)
    created = int(time.time())

    @app.get("/v1/models", tags=["OpenAI"])
    def models() -> dict[str, Any]:
        """The one model that answers, with its note and the store that it reads."""
        config = stage.model.config
        own = {
            "note": config.extra.get("note"), "store": store_name(stage), "tokens": stage.store.header.tokens,
            "positions": config.max_positions - config.prefix_entries, "sources": sources,
        }  # fmt: skip
        return {
            "object": "list",
            "data": [{"id": name, "object": "model", "created": created, "owned_by": "vococache", "voco": own}],
        }

    @app.post("/v1/chat/completions", tags=["OpenAI"], response_model=None)
    async def completions(body: chat.ChatRequest, request: Request) -> Response:
        """Answer the last question behind its videos. Streamed as server-sent events where `stream` is true."""
        if body.model != name:
            return error_response(
                404, f"model {body.model[:100]!r} is not served here: expected {name!r}", "invalid_request_error",
                "model_not_found", "model",
            )  # fmt: skip
        engine.enter()
        try:
            checked = await run_in_threadpool(engine.check, body.question())
            events: asyncio.Queue[Event] = asyncio.Queue()
            loop = asyncio.get_running_loop()
            pending = engine.submit(checked, lambda event: _tell(loop, events, event), streamed=body.stream)
        except BaseException:  # a cancelled request too gives its place back
            engine.leave()
            raise
        answer = Answering(engine, metrics, pending, events, name)
        if body.stream:
            usage = body.stream_options is not None and body.stream_options.include_usage
            return Streamed(answer, usage)
        return await answer.whole(request)

    @app.post("/session", include_in_schema=False)
    def session() -> Response:
        """Who shows the token here gets it as a cookie, for what a page loads without a header of its own."""
        response = Response(status_code=204)
        if token is not None:
            response.headers["set-cookie"] = session_cookie(token)
        return response

    @app.get("/metrics", tags=["service"], response_class=Response)
    def metrics_text() -> Response:
        """Counters, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/healthz", tags=["service"])
    def health() -> Response:
        """200 while questions are answered."""
        return JSONResponse({"status": "ok"} if engine.alive else {"status": "dead"}, 200 if engine.alive else 503)

    app.include_router(routes(stage, pictures, sources=sources))

    @app.get("/", include_in_schema=False)
    def page() -> Response:
        return FileResponse(PAGE / "index.html", headers={"cache-control": "no-cache"})

    app.mount("/page", StaticFiles(directory=PAGE), name="page")
    return Guard(app, token=token, hosts=hosts)  # outermost: what answers a fault of ours lies inside too


def model_name(stage: ReasonStage) -> str:
    """The name that clients ask by: a folder's last part, a hub id, an embedded model's name."""
    name = stage.model.name
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def store_name(stage: ReasonStage) -> str:
    """The last part of the store's place."""
    return stage.store.url.rstrip("/").rpartition("/")[2]


def _tell(loop: asyncio.AbstractEventLoop, events: "asyncio.Queue[Event]", event: Event) -> None:
    """Hand an event to the loop; one that is gone by now has nobody who would want it."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(events.put_nowait, event)


class Answering:
    """One question's way out: streamed or whole. However it ends, its place is given back."""

    def __init__(
        self, engine: Engine, metrics: Metrics, pending: Pending, events: "asyncio.Queue[Event]", model: str
    ) -> None:
        self.engine, self.metrics, self.pending, self.events = engine, metrics, pending, events
        self.model = engine.stage.model
        self.common: dict[str, Any] = {
            "id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model,
        }  # fmt: skip
        self._left = False

    @property
    def checked(self) -> Checked:
        return self.pending.checked

    def leave(self) -> None:
        """Give the place back, once."""
        if not self._left:
            self._left = True
            if not self.pending.ended:
                self.metrics.cancelled.inc()
                self.pending.cancel()
            self.engine.leave()

    async def whole(self, request: Request) -> Response:
        """The answer when it is there, unless its client leaves before."""
        told, left = asyncio.ensure_future(self.events.get()), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait((told, left), return_when=asyncio.FIRST_COMPLETED)
            if not told.done():
                return Response(status_code=499)
            event = told.result()
            if isinstance(event, Exception):
                raise event
            assert isinstance(event, Outcome)
            choice = {
                "index": 0, "finish_reason": chat.finish_reason(event), "logprobs": None,
                "message": {"role": "assistant", "content": answer_text(self.model, event.ids), "refusal": None},
            }  # fmt: skip
            own = chat.read(self.checked) | chat.rests(self.checked, event)
            return JSONResponse(
                {"object": "chat.completion", **self.common, "choices": [choice],
                 "usage": chat.usage(self.checked, event), "voco": own}
            )  # fmt: skip
        finally:
            told.cancel()
            left.cancel()
            self.leave()

    async def stream(self, usage: bool) -> AsyncIterator[str]:
        """The answer as server-sent events: first what it rests on, then its text, at the end timings."""
        growing = chat.Growing(self.model)
        yield self._chunk({"role": "assistant", "content": ""}, None, voco=chat.read(self.checked))
        while isinstance(event := await self.events.get(), list):
            if text := growing.add(event):
                yield self._chunk({"content": text}, None)
        if isinstance(event, Exception):
            yield _event(described(_logged(event), self.engine.stage.store.url)[1])
            return
        if text := growing.rest():
            yield self._chunk({"content": text}, None)
        yield self._chunk({}, chat.finish_reason(event), voco=chat.rests(self.checked, event))
        if usage:
            chunk = {"object": "chat.completion.chunk", **self.common, "choices": []}
            yield _event(chunk | {"usage": chat.usage(self.checked, event)})
        yield "data: [DONE]\n\n"

    def _chunk(self, delta: dict[str, Any], finish: str | None, **own: Any) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({"object": "chat.completion.chunk", **self.common, "choices": [choice], **own})


class Streamed(StreamingResponse):
    """An answer's events. A client may leave before the first of them."""

    def __init__(self, answer: Answering, usage: bool) -> None:
        super().__init__(answer.stream(usage), media_type="text/event-stream")
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them, and give the place back."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.leave()


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"


async def _disconnected(request: Request) -> None:
    """Returns when the client has left."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _logged(error: Exception) -> Exception:
    if not isinstance(error, VoCoError):
        log.error("a request failed", exc_info=error)
    return error


def _handle_errors(app: FastAPI, url: str) -> None:
    """All errors in OpenAI's form."""

    @app.exception_handler(VoCoError)
    async def ours(_: Request, error: VoCoError) -> Response:
        status, body = described(error, url)
        return JSONResponse(body, status, {"retry-after": "1"} if status in (429, 503) else None)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or None
        return JSONResponse(
            error_body(f"{where or 'body'}: {first['msg']}", "invalid_request_error", "invalid_request", where), 400
        )

    @app.exception_handler(StarletteHTTPException)
    async def http(_: Request, error: HTTPException) -> Response:
        code = HTTP_CODES.get(error.status_code, "http_error")
        return error_response(error.status_code, str(error.detail), "invalid_request_error", code)

    @app.exception_handler(Exception)
    async def other(_: Request, error: Exception) -> Response:
        status, body = described(error, url)
        return JSONResponse(body, status)
