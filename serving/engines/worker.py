"""The process of an engine: it loads a model, shows that selections are in force, and answers over a pipe.

A gateway starts it with `serving.engines.remote`. If it dies, or is killed, the gateway lives.
"""

from __future__ import annotations

import gc
import os
import signal
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from flexo.errors import InputError, ModelFolderError
from inference.load import load_model, quiet
from merge.formats.merged_folder import open_merged
from serving.engines.engine import EngineOptions, Event, Failed, Job, Sink
from serving.engines.local import AnsweringEngine, Served
from serving.engines.packed import PackedEngine
from serving.engines.padded import PaddedEngine
from serving.engines.probe import Probe
from serving.engines.vllm import VllmEngine

HERE = {"packed": PackedEngine, "padded": PaddedEngine}


def build(
    folder: Path, options: EngineOptions, sink: Sink, ended: Callable[[], None] = lambda: None
) -> AnsweringEngine:
    """An engine that has been probed; raises `InputError` for a model that must not be served.

    Args:
        folder: a merged folder.
        options: how the engine runs.
        sink: told what becomes of jobs.
        ended: called if an engine that has a process of its own ends by itself.
    """
    merged = open_merged(folder, quantised=True)
    if options.verify and merged.digests:
        for name in sorted(merged.weights.names):
            if merged.weights.stored(name).digest() != merged.digests[name]:
                raise ModelFolderError(
                    f"{folder}: {name} is not as its manifest says. The folder was changed; copy it again."
                )
    apart = options.kind == "vllm"  # then the model is loaded here only for the probe
    model, tokenizer = load_model(folder, options.dtype, "cpu" if apart else options.device)
    probe = Probe(model)
    probed = False

    def tell(events: list[tuple[str, Event]]) -> None:
        (sink if probed else probe.hear)(events)

    engine: AnsweringEngine
    if apart:
        served = Served.of(model, tokenizer)
        del model
        engine = VllmEngine(served, tell, options, ended)
    else:
        engine = HERE[options.kind](model, tokenizer, tell, options)
    try:
        probe.check(engine)
    except BaseException:
        engine.close()
        raise
    probed = True
    return engine


def work(pipe: Connection, folder: Path, options: EngineOptions) -> None:
    """Builds an engine, says `ready` with its limit or `refused` with why, and answers until the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the gateway says when it is over
    sending = threading.Lock()

    def send(message: tuple[str, object]) -> None:
        with sending:
            pipe.send(message)

    quiet()
    try:
        engine = build(folder, options, lambda events: send(("events", events)), lambda: os._exit(1))
    except InputError as error:
        send(("refused", str(error)))
        return
    try:
        gc.freeze()  # what is there now will stay, and need not be walked through
        send(("ready", engine.limit))
        while (message := pipe.recv()) is not None:
            if isinstance(message, Job):
                try:
                    engine.submit(message)
                except InputError as error:
                    send(("events", [(message.id, Failed(str(error), again=False))]))
            else:
                engine.cancel(message)
    except (EOFError, OSError):
        pass  # the gateway is gone
    finally:
        engine.close()
