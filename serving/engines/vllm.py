"""vLLM as an engine. It runs in a process and an environment of its own, with the plugin `serving/vllm_plugin`.

That process is told what a request may use, and nothing of keys, and it keeps cached prefixes apart by a salt that only
this process can make. Texts, stop strings and shares are made up here, as with the other engines.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import queue
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from flexo.errors import InputError
from serving.engines.engine import EngineOptions, Job, Sink
from serving.engines.local import AnsweringEngine, Served
from serving.engines.sampling import Choice, worst

LOG = logging.getLogger("flexo.serve")
SECONDS = 5.0  # to end by itself
STOPPED = "the engine has stopped."
LISTED = 20  # likely tokens beside each, at most
ENVIRONMENT = {
    "PYTHONSAFEPATH": "1",  # a folder called vllm where the gateway was started is not what is imported
    "VLLM_PLUGINS": "flexo",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the process is the engine's own already
    "VLLM_LOGGING_LEVEL": "WARNING",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


class VllmEngine(AnsweringEngine):
    """Returns when vLLM has loaded the model.

    Args:
        served: the model.
        sink: told what becomes of the jobs.
        options: how it runs; `python` and `arguments` among them.
        ended: called once when vLLM's process has ended without `close`, and the jobs have failed.

    Raises:
        InputError: vLLM does not start.
    """

    def __init__(self, served: Served, sink: Sink, options: EngineOptions, ended: Callable[[], None]) -> None:
        super().__init__(served, sink, options)
        self._secret, self._ended = secrets.token_bytes(32), ended
        self._closing = self._over = False
        self._out: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        start = {"arguments": self._arguments(), "setting": {"experts": len(self.known), "counted": served.chooses}}
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - what vLLM prints, as long as it runs
        ours, theirs = socket.socketpair()
        self._pipe = Connection(ours.detach())
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        try:
            self.process = subprocess.Popen(
                [options.python, "-m", "flexo_vllm.process", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env=environment | ENVIRONMENT,
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                start_new_session=True,  # Ctrl-C is for the gateway, which says when it is over
            )
        except OSError as error:
            raise InputError(
                f"engine.python: {options.python!r} cannot be run ({error.strerror}). Expected the one beside vLLM."
            ) from None
        finally:
            theirs.close()
        threading.Thread(target=self._deliver, name="vllm-out", daemon=True).start()
        self._send({"start": start})
        try:
            found = json.loads(self._pipe.recv_bytes())
        except (EOFError, OSError, ValueError):
            found = {"refused": self._last_words()}
        if "refused" in found:
            self._stop()
            raise InputError(f"vLLM does not start: {found['refused']}")
        self.about: dict[str, str] = found["ready"]  # its version, and which of its model runners
        self._thread = threading.Thread(target=self._listen, name="vllm", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        super().submit(job)
        if answer := self.answering(job.id):
            owner = repr((job.tenant, answer.allowed)).encode()
            salt = hashlib.blake2b(owner, key=self._secret, digest_size=32).hexdigest()
            fields = ("id", "max_tokens", "temperature", "top_p", "seed", "top", "score")
            ask = {field: getattr(job, field) for field in fields} | {"tokens": list(job.tokens), "salt": salt}
            self._send({"ask": ask | {"allowed": answer.allowed, "ends": sorted(self.served.ends)}})
            if self._over:
                self.fail(job.id, STOPPED, again=True)

    def cancel(self, job: str) -> None:
        if self.forget(job):
            self._send({"cancel": job})

    def close(self) -> None:
        self._closing = True
        self._stop()
        self._thread.join()
        self._pipe.close()
        super().close()

    def _stop(self) -> None:
        """Ends vLLM's process, and with it the socket and the threads here."""
        self.process.terminate()
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # with what it has started
            self.process.wait()
        self._out.put(None)

    def _arguments(self) -> dict[str, Any]:
        """vLLM's `EngineArgs`: what this room decides, and over it what the settings say."""
        options = self.options
        ours = {
            "model": str(self.served.folder),
            "dtype": options.dtype,
            "max_model_len": self.limit,
            "max_num_seqs": options.at_once,
            "max_num_batched_tokens": max(options.pass_tokens, options.at_once),
            "block_size": options.block_tokens,
            "num_gpu_blocks_override": options.blocks,
            "enable_prefix_caching": options.share_prefixes,
            "max_logprobs": LISTED,
        }
        if wrong := sorted(ours.keys() & options.arguments.keys()):
            raise InputError(f"engine.arguments: {', '.join(wrong)} follow from the other settings of the engine.")
        return ours | dict(options.arguments)

    def _send(self, message: dict[str, Any]) -> None:
        self._out.put(json.dumps(message).encode())

    def _deliver(self) -> None:
        """Nobody else waits for vLLM to read: it does not while it waits for the thread that listens here."""
        with suppress(OSError):  # it died; the thread that listens fails its jobs
            while (message := self._out.get()) is not None:
                self._pipe.send_bytes(message)

    def _listen(self) -> None:
        try:
            while True:
                message = json.loads(self._pipe.recv_bytes())
                for made in message.get("made", ()):
                    self._hear(made)
                self.tell()
                if "failed" in message:
                    job, why = message["failed"]
                    self.fail(job, why, again=False)
        except (EOFError, OSError):
            pass
        except Exception:  # nobody else would hear of the jobs on their way
            LOG.exception("what vLLM says is not understood")
        self._over = True
        for job in list(self._answering):
            self.fail(job, STOPPED, again=True)
        if not self._closing:
            LOG.error("vLLM has ended: %s", self._last_words())
            self._ended()

    def _hear(self, made: dict[str, Any]) -> None:
        """What a pass brought for one job."""
        if (answer := self.answering(made["id"])) is None:
            return
        if not answer.count:
            answer.cached = made["cached"]
        for place, (token, logprob, ranked) in enumerate(made.get("prompt", ()), 1):
            answer.scored[place] = token, worst(logprob), _top(ranked, answer.job.top)
        for token, logprob, ranked, shares in made["tokens"]:
            choice = Choice(token, logprob, _top(ranked, answer.job.top)) if math.isfinite(logprob) else None
            _, over = self.take(answer, choice, shares)
            if over:
                if not made["over"]:  # a stop string, values that are not finite
                    self._send({"cancel": made["id"]})
                return
        if made["over"]:
            self.fail(made["id"], "the engine ended this answer before its end.", again=True)

    def _last_words(self) -> str:
        """The end of what vLLM has printed, once its process has closed the socket."""
        self._stop()
        self._said.seek(0)
        lines = self._said.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"it ended with {self.process.returncode}"


def _top(ranked: list[list[Any]], count: int) -> list[tuple[int, float]]:
    """The likeliest; vLLM lists the token itself beside them, and a place for none of them where `count` is 0."""
    return [(token, worst(logprob)) for token, logprob in ranked[:count]]
