"""The engines of one model behind the gateway, and the change from one model folder to the next.

An engine that dies is taken out and started again. Its requests are tried once more elsewhere if nothing of them had
been told, and fail otherwise. A new folder is loaded beside the old one; the old one ends with its last request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from transformers import AutoTokenizer

from flexo.errors import InputError
from flexo.model_config import start_token
from merge.formats.merged_folder import open_merged
from merge.planning.revocation import model_digest
from serving.access.errors import RequestError, unavailable
from serving.engines.engine import Ended, EngineOptions, Event, Failed, Job, Sink

LOG = logging.getLogger("flexo.serve")
TRIES = 2
MOST_JOBS = 512  # that wait at an engine
LONGEST_PAUSE = 60.0  # seconds before an engine that keeps dying is started again


class Startable(Protocol):
    """An engine as the pool starts it, `serving.engines.remote.RemoteEngine`."""

    @property
    def alive(self) -> bool: ...
    @property
    def load(self) -> int: ...
    @property
    def limit(self) -> int: ...
    def wait_ready(self) -> None: ...
    def submit(self, job: Job) -> None: ...
    def cancel(self, job: str) -> None: ...
    def close(self) -> None: ...


Start = Callable[[Path, EngineOptions, Sink, Callable[[], None]], Startable]


class ServedModel:
    """A model folder and the engines that run it. Belongs to one event loop.

    Args:
        folder: a merged folder.
        options: of each engine.
        count: of engines.
        start: starts one.

    Raises:
        InputError: the folder is not one whole merged model.
    """

    def __init__(self, folder: Path, options: EngineOptions, count: int, start: Start) -> None:
        self.folder, self.name = folder.resolve(), folder.name  # a link may point elsewhere tomorrow
        merged = open_merged(self.folder, quantised=True)
        self.experts: list[dict[str, Any]] = merged.manifest["experts"]
        self.names = merged.domains
        self.digest = model_digest(merged.manifest)
        self.limit = 0  # tokens of a prompt and its answer, once an engine is ready
        self.vocabulary = int(merged.weights.config["vocab_size"])
        self.end = start_token(merged.weights.config.get("eos_token_id"))
        self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
        self.restarts = self.active = 0
        self.closing = False
        self._options, self._start = options, start
        self._loop = asyncio.get_running_loop()
        self._queues: dict[str, asyncio.Queue[Event]] = {}
        self._engines: list[Startable | None] = [None] * count
        self._tasks: set[asyncio.Task[None]] = set()

    async def ready(self) -> None:
        """Starts all engines, and returns when they have been probed; raises `InputError` if one refuses."""
        try:
            await asyncio.gather(*(self._run(place) for place in range(len(self._engines))))
        except BaseException:  # a stop, too: nobody can end while a thread waits for an engine
            await self.close()
            raise

    @property
    def alive(self) -> int:
        """Engines that answer."""
        return sum(engine is not None and engine.alive for engine in self._engines)

    @property
    def load(self) -> int:
        """Jobs on their way."""
        return sum(engine.load for engine in self._engines if engine)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The time of a request, for which the engines are kept."""
        self.active += 1
        try:
            yield
        finally:
            self.active -= 1

    async def run(self, job: Job, streamed: bool) -> AsyncGenerator[Event]:
        """What becomes of a job, as it comes if it is to be streamed, and else when it has ended.

        Leaving the loop early cancels it. It is tried again elsewhere unless something of it has been told, and
        raises `RequestError` if it cannot be done.
        """
        failed = Failed("no engine is running.", again=True)
        for attempt in range(TRIES):
            engine = min((one for one in self._engines if one and one.alive), key=lambda one: one.load, default=None)
            if engine is None:
                break
            if self.load >= MOST_JOBS * len(self._engines):
                raise unavailable("too many requests are waiting.")
            name = f"{job.id}.{attempt}"
            queue = self._queues[name] = asyncio.Queue()
            events: list[Event] = []
            try:
                engine.submit(replace(job, id=name))
                while not events or not isinstance(events[-1], Ended | Failed):
                    events.append(await queue.get())
                    if streamed and not isinstance(events[-1], Failed):
                        yield events[-1]
            finally:
                del self._queues[name]
                engine.cancel(name)
            if not isinstance(events[-1], Failed):
                for event in () if streamed else events:
                    yield event
                return
            failed = events[-1]
            if not failed.again or (streamed and len(events) > 1):
                break
        raise RequestError(503, failed.why, code="unavailable", wait=5 if failed.again else None)

    async def close(self) -> None:
        self.closing = True
        for engine in self._engines:
            if engine:
                await asyncio.to_thread(engine.close)
        for task in self._tasks:
            task.cancel()

    async def _run(self, place: int) -> None:
        engine = self._start(self.folder, self._options, self._hear, lambda: self._later(self._died, place))
        self._engines[place] = engine
        await asyncio.to_thread(engine.wait_ready)
        self.limit = engine.limit

    def _hear(self, events: list[tuple[str, Event]]) -> None:
        self._later(self._deliver, events)

    def _later(self, call: Callable[..., None], *given: Any) -> None:
        """Runs something on the loop; engines tell from threads of their own, and may outlive the loop."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *given)

    def _deliver(self, events: list[tuple[str, Event]]) -> None:
        for job, event in events:
            if queue := self._queues.get(job):
                queue.put_nowait(event)

    def _died(self, place: int) -> None:
        if not self.closing:
            self.restarts += 1
            LOG.error("engine %d has ended; it is started again", place)
            task = asyncio.ensure_future(self._restart(place))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _restart(self, place: int) -> None:
        await asyncio.sleep(min(2.0 ** min(self.restarts, 10) / 4, LONGEST_PAUSE))
        if not self.closing:
            try:
                await self._run(place)
            except InputError as error:
                LOG.error("engine %d: %s", place, error)


class Pool:
    """The model that is served now, and those that end."""

    def __init__(self, options: EngineOptions, count: int, start: Start) -> None:
        self._options, self._count, self._start = options, count, start
        self.served: ServedModel | None = None
        self.changed: Callable[[ServedModel], None] = lambda _served: None  # told of each model before it answers
        self._changing = asyncio.Lock()
        self._ending: set[asyncio.Task[None]] = set()

    @property
    def now(self) -> ServedModel:
        """The model for new requests; raises `RequestError` before the first one is there."""
        if self.served is None:
            raise unavailable("no model has been loaded yet.")
        return self.served

    async def serve(self, folder: Path) -> None:
        """Loads a folder and serves it from now on; a folder that is refused changes nothing."""
        async with self._changing:
            began = time.monotonic()
            served = ServedModel(folder, self._options, self._count, self._start)
            await served.ready()
            self.changed(served)
            before, self.served = self.served, served
            took = time.monotonic() - began
            LOG.info("serving %s, model %s, after %.1f s", folder, served.digest[:16], took)
            if before:
                task = asyncio.ensure_future(self._end(before))
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    async def close(self) -> None:
        """Ends all engines at once."""
        for task in self._ending:
            task.cancel()
        await asyncio.gather(*self._ending, return_exceptions=True)
        if self.served:
            await self.served.close()

    async def _end(self, before: ServedModel) -> None:
        began = time.monotonic()
        try:
            while before.active:
                await asyncio.sleep(0.05)
        finally:
            await before.close()
        LOG.info("model %s has ended after %.1f s", before.digest[:16], time.monotonic() - began)
