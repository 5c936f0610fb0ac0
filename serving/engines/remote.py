"""An engine in a process of its own, as the gateway sees it."""

from __future__ import annotations

import multiprocessing
import threading
from collections.abc import Callable
from pathlib import Path

from flexo.errors import InputError
from serving.engines.engine import Ended, EngineOptions, Failed, Job, Sink
from serving.engines.worker import work

SECONDS = 5.0  # to end by itself
STOPPED = Failed("the engine has stopped.", again=True)


class RemoteEngine:
    """Starts the process at once; `wait_ready` waits until it has loaded the model.

    Args:
        folder: a merged folder.
        options: how it runs.
        sink: told what becomes of jobs, from a thread of this object; those of a process that died have failed.
        died: called once when the process has ended without `close`.
    """

    def __init__(self, folder: Path, options: EngineOptions, sink: Sink, died: Callable[[], None]) -> None:
        self._sink, self._died = sink, died
        self._lock, self._jobs, self._sending = threading.Lock(), set[str](), threading.Lock()
        self.limit, self._closing, self._over = 0, False, False
        self._refused, self._ready = "", threading.Event()
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=work, args=(theirs, folder, options), daemon=True)
        self.process.start()
        theirs.close()
        self._thread = threading.Thread(target=self._listen, name="engine", daemon=True)
        self._thread.start()

    def wait_ready(self) -> None:
        """Returns when it can answer; raises `InputError` if it never will."""
        self._ready.wait()
        if self._refused:
            raise InputError(self._refused)

    @property
    def alive(self) -> bool:
        return self._ready.is_set() and not self._refused

    @property
    def load(self) -> int:
        """Jobs on their way."""
        return len(self._jobs)

    def submit(self, job: Job) -> None:
        with self._lock:
            over = self._over
            if not over:
                self._jobs.add(job.id)
        if over:
            self._sink([(job.id, STOPPED)])
        else:
            self._send(job)

    def cancel(self, job: str) -> None:
        with self._lock:
            known = job in self._jobs
            self._jobs.discard(job)
        if known:
            self._send(job)

    def close(self) -> None:
        self._closing = True
        self._send(None)
        self.process.join(SECONDS)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self._thread.join()

    def _send(self, message: Job | str | None) -> None:
        try:
            with self._sending:
                self._pipe.send(message)
        except OSError:
            pass  # it died; the thread that listens fails its jobs

    def _listen(self) -> None:
        try:
            while True:
                kind, content = self._pipe.recv()
                if kind == "events":
                    with self._lock:
                        self._jobs -= {job for job, event in content if isinstance(event, Ended | Failed)}
                    self._sink(content)
                elif kind == "refused":
                    self._refused = content
                else:
                    self.limit = content
                self._ready.set()
        except (EOFError, OSError):
            pass
        with self._lock:
            self._over = True
            jobs, self._jobs = self._jobs, set()
        self._refused = self._refused or "the engine's process has ended."
        self._ready.set()
        self._sink([(job, STOPPED) for job in jobs])
        if not self._closing:
            self._died()
