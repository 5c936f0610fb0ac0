"""A server on this machine, in a thread, with engines in this process; and requests to it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from serving.access.keys import add_key
from serving.engines.engine import Ended, EngineOptions, Failed, Job, Sink
from serving.engines.worker import build
from serving.gateway.server import serve
from serving.gateway.settings import Settings, read_settings

SMALL: dict[str, Any] = {"dtype": "float32", "device": "cpu", "pass_tokens": 256, "block_tokens": 4, "blocks": 256}


PATIENCE = 300.0  # seconds, for a machine with other work on it


class Here:
    """In the place of `RemoteEngine`: the engine itself, which `die` ends as a crash would."""

    started: list[Here]

    def __init__(self, folder: Path, options: EngineOptions, sink: Sink, died: Callable[[], None]) -> None:
        self._engine = build(folder, options, self._hear)
        self._sink, self._died, self._jobs = sink, died, set[str]()
        self.alive, self.limit = True, self._engine.limit
        type(self).started.append(self)

    @property
    def load(self) -> int:
        return len(self._jobs)

    def wait_ready(self) -> None:
        """It is."""

    def submit(self, job: Job) -> None:
        self._jobs.add(job.id)
        self._engine.submit(replace(job))

    def cancel(self, job: str) -> None:
        self._jobs.discard(job)
        self._engine.cancel(job)

    def close(self) -> None:
        self.alive = False
        self._engine.close()

    def die(self) -> None:
        self.close()
        self._died()

    def _hear(self, events: Any) -> None:
        self._jobs -= {job for job, event in events if isinstance(event, Ended | Failed)}
        self._sink(events)


class Live:
    """A server that runs."""

    def __init__(
        self, settings: Settings, server: uvicorn.Server, engines: list[Here], secrets: dict[str, str]
    ) -> None:
        self.settings, self.server, self.engines, self.secrets = settings, server, engines, secrets
        port = server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE)

    def post(self, body: Any, key: str = "all", path: str = "/v1/completions", **given: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.post(path, content=content, headers=self.headers(key), **given)

    def get(self, path: str, key: str = "all") -> httpx.Response:
        return self.http.get(path, headers=self.headers(key))

    def headers(self, key: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secrets.get(key, key)}"}

    def log(self) -> list[dict[str, Any]]:
        lines = [line for path in sorted(self.settings.log.glob("*.jsonl")) for line in path.read_text().splitlines()]
        return [json.loads(line) for line in lines]

    def answers(self) -> dict[str, dict[str, Any]]:
        return {line["id"]: line for line in self.log() if line["what"] == "answer"}


@contextmanager
def live(folder: Path, model: Path, keys: dict[str, dict[str, Any]], **settings: Any) -> Iterator[Live]:
    """A server of `model` whose files are in `folder`; each key has what `add_key` takes."""
    secrets = {name: add_key(folder / "keys.yaml", name, **allowed) for name, allowed in keys.items()}
    engine = settings.pop("engine", SMALL)
    given = read_settings(
        None, model=model, keys=folder / "keys.yaml", log=folder / "log", port=0, engine=engine, **settings
    )
    started: list[Here] = []
    begun: list[uvicorn.Server] = []
    failed: list[BaseException] = []

    class Mine(Here):
        pass

    Mine.started = started

    def run() -> None:
        try:
            asyncio.run(serve(given, Mine, begun.append))
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)  # one that never starts must not keep the tests from ending
    thread.start()
    until(lambda: bool(failed) or bool(begun and begun[0].started))
    if failed:
        raise failed[0]
    try:
        yield Live(given, begun[0], started, secrets)
    finally:
        begun[0].should_exit = True
        thread.join(PATIENCE)
    assert not thread.is_alive() and not failed


@contextmanager
def meanwhile(work: Callable[[], object], threads: int) -> Iterator[None]:
    """`work` is done over and over by several threads as long as the block lasts, also where the block fails."""
    stop = threading.Event()

    def over_and_over() -> None:
        while not stop.is_set():
            work()

    with ThreadPoolExecutor(threads) as pool:
        working = [pool.submit(over_and_over) for _ in range(threads)]
        try:
            yield
        finally:
            stop.set()
    for one in working:
        one.result()


def until(done: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Waits for something to happen elsewhere."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


def events(response: httpx.Response) -> list[dict[str, Any]]:
    """The events of a stream, without its last."""
    found = [part[6:] for part in response.text.split("\n\n") if part.startswith("data: ")]
    assert found[-1] == "[DONE]", found[-1]
    return [json.loads(part) for part in found[:-1]]
