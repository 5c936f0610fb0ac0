"""In front of the application: limits of size and time of bodies, clients that read too slowly, errors that escape."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from serving.access.errors import RequestError

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
LOG = logging.getLogger("flexo.serve")


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands in front of.
        body_bytes: of a body, at most.
        body_seconds: in which it must have come.
        send_seconds: in which a client must take a part of the response.
    """

    def __init__(self, app: App, body_bytes: int, body_seconds: float, send_seconds: float) -> None:
        self._app, self._bytes, self._body_seconds, self._send_seconds = app, body_bytes, body_seconds, send_seconds

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = False

        async def timed(message: Message) -> None:
            nonlocal started
            started = True
            async with asyncio.timeout(self._send_seconds):
                await send(message)

        try:
            body = await self._body(scope, receive)
            if body is not None:
                await self._app(scope, _replayed(body, receive), timed)
        except RequestError as error:
            if not started:
                await refuse(error, send)
        except TimeoutError:
            LOG.warning("a client took nothing for %.0f s", self._send_seconds)
        except Exception:
            LOG.exception("a request failed")
            if not started:
                await refuse(RequestError(500, "the server failed; its log says why. Try again."), send)

    async def _body(self, scope: MutableMapping[str, Any], receive: Receive) -> bytes | None:
        """The whole body; None if the client has gone."""
        too_large = RequestError(413, f"the body is too large: expected at most {self._bytes} bytes.", code="too_large")
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._bytes:
            raise too_large
        parts, size = [], 0
        try:
            async with asyncio.timeout(self._body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._bytes:
                        raise too_large
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise RequestError(
                408, f"the body had not come after {self._body_seconds:g} s. Send it at once.", code="timeout"
            ) from None


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, and then what the client does next."""
    given = False

    async def again() -> Message:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        return await receive()

    return again


async def refuse(error: RequestError, send: Send) -> None:
    body = json.dumps(error.body()).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), "Connection": "close"}
    raw = [(name.lower().encode(), value.encode()) for name, value in (headers | error.headers()).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
