"""One request from its admission to its line in the log, whole or streamed.

Tokens count once they are told. An answer that is cut, because its client left or its engine died in a stream, counts
with the tokens told until then; one of which nothing was told does not count, and is not in the log.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.responses import Response as HTTPResponse

from serving.access.errors import RequestError
from serving.engines.engine import Event, Made
from serving.gateway.answers import Choice, Response, sse
from serving.gateway.guard import Receive, Send
from serving.gateway.metrics import Metrics
from serving.receipts.log import Log, LogError
from serving.receipts.store import Receipts

LOG = logging.getLogger("flexo.serve")


class Books:
    """Where answers are written down."""

    def __init__(self, log: Log, receipts: Receipts, metrics: Metrics) -> None:
        self.log, self.receipts, self.metrics = log, receipts, metrics
        self.fault = False  # whether nothing can be written

    def answered(self, key: str, response: Response, whole: bool) -> dict[str, Any]:
        """Writes an answer's line, before its end is sent, and returns its receipt; `RequestError` if it cannot."""
        asked = response.asked
        about = {
            "id": asked.id,
            "key": key,
            "model": asked.served.digest,
            "experts": asked.experts,
            "prompt_tokens": response.prompt_tokens,
            "completion_tokens": response.completion_tokens,
            "shares": {name: share for name, share in response.shares().items() if share},
            "whole": whole,
        }
        try:
            line = self.log.append("answer", **about)
            self.fault = False
        except LogError as error:
            self.fault = True
            LOG.error("%s", error)
            raise RequestError(503, "the server cannot write its log, and answers nothing without it.") from error
        receipt = about | {"log": line}
        self.receipts.add(key, receipt)
        self.metrics.answered(key, response)
        return receipt


class Running:
    """A request that has been admitted.

    Args:
        response: what becomes of it.
        key: the name of the key.
        books: where it is written down.
        place: what it holds, given back at the end.
    """

    def __init__(self, response: Response, key: str, books: Books, place: ExitStack) -> None:
        self.asked, self.key, self.response = response.asked, key, response
        self._books, self._place = books, place
        began = time.monotonic()
        self._first: Callable[[], None] = lambda: books.metrics.first.observe(time.monotonic() - began)
        place.callback(lambda: books.metrics.whole.observe(time.monotonic() - began))

    def leave(self) -> None:
        """The end, in any case; a second time does nothing."""
        self._place.close()

    async def whole(self) -> tuple[dict[str, Any], dict[str, str]]:
        """The body of the response, and its headers."""
        try:
            async with aclosing(self._events()) as events:
                async for choice, event in events:
                    choice.add(event)
            receipt = self._books.answered(self.key, self.response, whole=True)
        finally:
            self.leave()
        shares = ", ".join(f"{name}={share:.6f}" for name, share in receipt["shares"].items())
        return self.response.whole(), {"X-Request-Id": self.asked.id, "X-Flexo-Shares": shares,
                                       "X-Flexo-Log": receipt["log"]}  # fmt: skip

    async def stream(self) -> AsyncGenerator[str]:
        """The events of a streamed response. The first is asked for before its head is sent; close it at the end."""
        told = written = False
        try:
            async with aclosing(self._events()) as events:
                async for choice, event in events:
                    if not told:
                        for text in self.response.first_chunks():
                            yield text
                    choice.add(event)
                    told = True
                    if said := self.response.chunk(choice, event):
                        yield said
            written = True
            receipt = self._books.answered(self.key, self.response, whole=True)
            if self.asked.body.stream_options and self.asked.body.stream_options.include_usage:
                yield self.response.last_chunk()
            yield f": log {receipt['log']}\n\ndata: [DONE]\n\n"
        except RequestError as error:
            if not told:
                raise
            yield sse(error.body())
        finally:
            try:
                if not written and self.response.completion_tokens:
                    self._books.answered(self.key, self.response, whole=False)
            finally:
                self.leave()

    async def _events(self) -> AsyncGenerator[tuple[Choice, Event]]:
        """What is said of all answers of the request, as it comes."""
        queue: asyncio.Queue[tuple[Choice, Event] | RequestError | None] = asyncio.Queue()

        async def follow(choice: Choice) -> None:
            try:
                async with aclosing(self.asked.served.run(choice.job, bool(self.asked.body.stream))) as events:
                    async for event in events:
                        queue.put_nowait((choice, event))
                queue.put_nowait(None)
            except RequestError as error:
                queue.put_nowait(error)

        tasks = [asyncio.ensure_future(follow(choice)) for choice in self.response.choices]
        left, first = len(tasks), True
        try:
            while left:
                said = await queue.get()
                if isinstance(said, RequestError):
                    raise said
                if said is None:
                    left -= 1
                    continue
                if first and isinstance(said[1], Made):
                    first = False
                    self._first()
                yield said
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


async def unless_gone(work: Any, receive: Receive) -> Any:
    """What `work` returns; it is cancelled, and None returned, when the client leaves."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


class EventStream(HTTPResponse):
    """A response that sends the events of a request, and ends it when the client leaves."""

    def __init__(self, running: Running, events: AsyncGenerator[str], first: str) -> None:
        super().__init__(status_code=200)
        self._running, self._events, self._first = running, events, first

    async def __call__(self, _scope: Any, receive: Receive, send: Send) -> None:
        await unless_gone(self._send(send), receive)

    async def _send(self, send: Send) -> None:
        async with aclosing(self._events):
            headers = {"content-type": "text/event-stream", "cache-control": "no-store",
                       "x-request-id": self._running.asked.id}  # fmt: skip
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": 200, "headers": raw})
            await send({"type": "http.response.body", "body": self._first.encode(), "more_body": True})
            async for text in self._events:
                await send({"type": "http.response.body", "body": text.encode(), "more_body": True})
            await send({"type": "http.response.body", "body": b""})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
