"""The HTTP interface: OpenAI's, receipts, and what an operator asks."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse
from fastapi.responses import Response as HTTPResponse
from starlette.exceptions import HTTPException

from flexo.errors import InputError
from serving.access.errors import RequestError
from serving.access.keys import Key, KeyStore
from serving.access.limits import Limits
from serving.gateway.answers import Response
from serving.gateway.asking import asked_of, narrowed
from serving.gateway.bodies import Body, ChatBody, CompletionBody, parsed
from serving.gateway.pool import Pool, ServedModel
from serving.gateway.running import Books, EventStream, Running, unless_gone
from serving.page.page import page

LOG = logging.getLogger("flexo.serve")
SHORT = 8192  # bytes of a body that is cut into tokens sooner than another thread begins


class Gateway:
    """All that requests need. Belongs to one event loop.

    Args:
        pool: the engines.
        keys: who may ask.
        books: where answers are written down.
        open_metrics: whether `/metrics` is shown to other machines.
    """

    def __init__(self, pool: Pool, keys: KeyStore, books: Books, open_metrics: bool = False) -> None:
        self.pool, self.keys, self.books, self.limits = pool, keys, books, Limits()
        self._open_metrics = open_metrics
        pool.changed = self._changed

    def app(self) -> FastAPI:
        app = FastAPI(title="flexo-serve", docs_url=None, redoc_url=None, openapi_url=None)
        app.add_exception_handler(InputError, _refused)
        app.add_exception_handler(HTTPException, _no_such)
        for path, kind in (("/v1/completions", CompletionBody), ("/v1/chat/completions", ChatBody)):
            app.add_api_route(path, self._completing(kind), methods=["POST"], response_model=None)
        for path, show in (
            ("/v1/models", self.models),
            ("/v1/models/{id}", self.model),
            ("/v1/receipts/{id}", self.receipt),
            ("/health", self.health),
            ("/ready", self.ready),
            ("/metrics", self.metrics),
            ("/", self.page),
        ):
            app.add_api_route(path, show, methods=["GET"], response_model=None)
        return app

    def authenticated(self, request: Request) -> tuple[Key, list[str]]:
        """The key of a request and its experts; raises `RequestError` 401."""
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        found = self.keys.find(secret.strip()) if kind.lower() == "bearer" else None
        if found is None:
            raise RequestError(
                401,
                "no valid API key: expected a header 'Authorization: Bearer KEY' with one that is in force. Ask the "
                "operator for it.",
                code="invalid_api_key",
            )
        return found

    def _completing(self, kind: type[Body]) -> Callable[[Request], Awaitable[Any]]:
        async def complete(request: Request) -> Any:
            name, status, began = "", 500, time.monotonic()
            try:
                key, allowed = self.authenticated(request)
                name = key.name
                running = await self._admitted(kind, await request.body(), key, allowed)
                if running.asked.body.stream:
                    events = running.stream()
                    status = 200
                    return EventStream(running, events, await anext(events))
                answer = await unless_gone(running.whole(), request.receive)
                running.leave()
                status = 200 if answer else 499
                return JSONResponse(answer[0], headers=answer[1]) if answer else HTTPResponse(status_code=499)
            except RequestError as error:
                status = error.status
                raise
            finally:
                self.books.metrics.requests.labels(name, str(status)).inc()
                about = {"key": name, "status": status, "ms": round(1000 * (time.monotonic() - began), 1)}
                LOG.info("%s", request.url.path, extra={"about": about})

        return complete

    async def _admitted(self, kind: type[Body], data: bytes, key: Key, allowed: list[str]) -> Running:
        with ExitStack() as stack:
            stack.enter_context(self.limits.running(key))
            body, served = parsed(kind, data), self.pool.now
            stack.enter_context(served.held())
            if len(data) < SHORT:
                asked = asked_of(served, body, key.name, allowed)
            else:
                asked = await asyncio.to_thread(asked_of, served, body, key.name, allowed)
            response, settle = Response(asked), self.limits.reserve(key, asked.most_tokens)
            stack.callback(lambda: settle(response.prompt_tokens + response.completion_tokens))
            return Running(response, key.name, self.books, stack.pop_all())

    async def models(self, request: Request) -> JSONResponse:
        """The model, with the experts that the key allows."""
        return JSONResponse({"object": "list", "data": [self._about(request)]})

    async def model(self, request: Request, id: str) -> JSONResponse:
        about = self._about(request)
        if id != about["id"]:
            raise RequestError(404, f"model {id[:60]!r}: not served here. Expected {about['id']!r}.", "model")
        return JSONResponse(about)

    def _about(self, request: Request) -> dict[str, Any]:
        _, allowed = self.authenticated(request)
        served = self.pool.now
        mine = narrowed(allowed, None, served.names)
        fields = ("domain", "title", "licence", "contact")
        experts = [{field: entry.get(field, "") for field in fields} for entry in served.experts]
        return {
            "id": served.name,
            "object": "model",
            "created": 0,
            "owned_by": "flexo",
            "digest": served.digest,
            "max_model_len": served.limit,
            "chat": bool(served.tokenizer.chat_template),
            "experts": [{"place": n} | about for n, about in enumerate(experts) if about["domain"] in mine],
        }

    async def receipt(self, request: Request, id: str) -> JSONResponse:
        key, _ = self.authenticated(request)
        found = self.books.receipts.find(key.name, id)
        if found is None:
            raise RequestError(404, f"receipt {id[:60]!r}: none of this key, or it has expired.", code="no_receipt")
        return JSONResponse(found)

    async def health(self) -> JSONResponse:
        """Whether the process lives."""
        return JSONResponse({"status": "ok"})

    async def ready(self) -> JSONResponse:
        """Whether requests can be answered now."""
        faults = ["the log cannot be written"] if self.books.fault else []  # where it is, is nobody's business
        if not (self.pool.served and self.pool.served.alive):
            faults.append("no engine is running")
        try:
            self.keys.read()
        except InputError:
            faults.append("the keys cannot be read")
        return JSONResponse({"ready": not faults, "faults": faults}, 503 if faults else 200)

    async def metrics(self, request: Request) -> HTTPResponse:
        if not (self._open_metrics or _loopback(request)):
            raise RequestError(403, "/metrics is shown on the server's own machine alone. See open_metrics.")
        return HTTPResponse(self.books.metrics.text(), media_type="text/plain; version=0.0.4")

    async def page(self) -> HTMLResponse:
        text, policy = page()
        return HTMLResponse(text, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer"})

    def _changed(self, served: ServedModel) -> None:
        """Says in the log whose experts the answers from now on may use."""
        fields = ("domain", "title", "licence", "contact", "digest")
        experts = [{field: entry.get(field, "") for field in fields} for entry in served.experts]
        self.books.log.append("model", model=served.digest, name=served.name, experts=experts)


def _loopback(request: Request) -> bool:
    try:
        return request.client is not None and ipaddress.ip_address(request.client.host).is_loopback
    except ValueError:
        return False


async def _refused(_request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, RequestError):  # the key file cannot be read: an operator's affair
        LOG.error("%s", error)
        error = RequestError(503, "the server cannot read its keys, and lets nobody in without them.", wait=5)
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _no_such(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    path = f"{request.method} {request.url.path[:80]}"
    message = f"{path}: {error.detail}. Expected POST /v1/completions or another that docs/serving.md names."
    return JSONResponse(RequestError(error.status_code, message).body(), error.status_code)
