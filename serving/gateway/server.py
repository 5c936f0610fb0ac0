"""A server from its start to its end: it loads the model, answers, changes to the next model, and stops gracefully.

SIGHUP, or another model behind the path of the settings, loads that beside the old one. SIGTERM and Ctrl-C take no new
requests, finish those on their way, and sign the log.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn

from flexo.errors import InputError
from merge.formats.manifest import MANIFEST
from serving.access.keys import KeyStore
from serving.engines.remote import RemoteEngine
from serving.gateway.app import Gateway
from serving.gateway.guard import Guard
from serving.gateway.metrics import Metrics
from serving.gateway.pool import Pool, Start
from serving.gateway.running import Books
from serving.gateway.settings import Settings
from serving.receipts.log import Log
from serving.receipts.store import Receipts

LOG = logging.getLogger("flexo.serve")


class JsonLines(logging.Formatter):
    """A line of JSON for each message. Neither prompts nor answers are ever in one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"at": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"), "level": record.levelname.lower()}
        line |= {"message": record.getMessage()} | getattr(record, "about", {})
        if record.exc_info and record.exc_info[2]:  # where it happened, and not what it said
            trace = record.exc_info[2]
            while trace.tb_next:
                trace = trace.tb_next
            kind = record.exc_info[0].__name__ if record.exc_info[0] else ""
            line |= {"error": kind, "where": f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"}
        return json.dumps(line)


async def serve(
    settings: Settings,
    start: Start = RemoteEngine,
    listening: Callable[[uvicorn.Server], None] = lambda _server: None,
) -> None:
    """Serves until it is told to stop; `listening` is told once all is loaded.

    Raises:
        InputError: something is wrong, and nobody has been answered.
    """
    log = Log(settings.log, settings.sign, settings.log_bytes)
    pool = Pool(settings.options(), settings.engines, start)
    watching: asyncio.Task[None] | None = None
    try:
        books = Books(log, Receipts(3600 * settings.receipt_hours), Metrics(pool))
        app = Gateway(pool, KeyStore(settings.keys), books, settings.open_metrics).app()
        LOG.info("loading %s", settings.model)
        await pool.serve(settings.model)
        hang_up = asyncio.Event()
        with suppress(RuntimeError, NotImplementedError):  # another thread than the main one has no signals
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, hang_up.set)
        watching = asyncio.ensure_future(_watch(pool, settings, hang_up))
        server = uvicorn.Server(_config(app, settings))
        listening(server)
        await server.serve()
    finally:
        if watching:
            watching.cancel()
            await asyncio.wait([watching])  # it may have to end engines that were loading
        await pool.close()
        log.close(rotate=True)


def _config(app: Any, settings: Settings) -> uvicorn.Config:
    guarded = Guard(app, settings.body_bytes, settings.body_seconds, settings.send_seconds)
    return uvicorn.Config(
        guarded,
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls.certificate if settings.tls else None,
        ssl_keyfile=settings.tls.key if settings.tls else None,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
        ws="none",
        limit_concurrency=settings.connections,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=settings.stop_seconds,
    )


async def _watch(pool: Pool, settings: Settings, hang_up: asyncio.Event) -> None:
    """Serves another model when there is one. One that is refused is not tried again until it has changed."""
    seen = _stamp(settings.model)
    while True:
        with suppress(TimeoutError):
            await asyncio.wait_for(hang_up.wait(), settings.watch_seconds or None)
        now = await asyncio.to_thread(_stamp, settings.model)
        if now and (now != seen or hang_up.is_set()):
            seen = now
            hang_up.clear()
            LOG.info("loading %s beside the model that is served", settings.model)
            try:
                await pool.serve(settings.model)
            except InputError as error:
                LOG.error("the model that is served stays: %s", error)
            except Exception:
                LOG.exception("the model that is served stays")


def _stamp(folder: Path) -> tuple[object, ...]:
    """What changes when another model is behind a path; nothing while none is there."""
    try:
        there = folder.resolve()  # once, for a link may be changed meanwhile
        status = (there / MANIFEST).stat()
        return there, status.st_mtime_ns, status.st_ino, status.st_size
    except OSError:
        return ()


def run(settings: Settings) -> None:
    """Serves in this process, with JSON lines on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    for name in ("flexo.serve", "uvicorn"):
        logging.getLogger(name).handlers = [handler]
        logging.getLogger(name).propagate = False
    logging.getLogger("flexo.serve").setLevel(logging.INFO)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    asyncio.run(serve(settings, listening=lambda _server: gc.freeze()))  # what is there now will stay
