"""Processes of a study's commands, forked from a server that has imported the libraries they need.

    start = processes(threads=1)
    process = start(run_command, ("flexo-merge", "math.pt", "-o", "model"), folder, log)

Importing PyTorch, transformers and Lightning takes some seconds, hundreds of times in a study. A forked process
computes what one started from a shell does: the server has imported and done nothing else. Where there is no forking
it is started anew.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from flexo.commands import start as start_command
from flexo.commands.table import command_called

Process = BaseProcess
Call = Callable[[Sequence[str]], None]

IMPORTED = [
    "trainers.anchor.train", "trainers.expert.train", "trainers.router.train", "trainers.full_finetune",
    "trainers.commands.flexo_embed", "evals.matrix.evaluate",
    "transformers.models.olmo2.modeling_olmo2", "transformers.models.flex_olmo.modeling_flex_olmo",
]  # fmt: skip
GRACE = 60  # seconds for a process to save and end


def processes(threads: int) -> Callable[[Call, Sequence[str], Path, Path], Process]:
    """A function that starts a process for a call of a command, in a folder, with a log, on so many threads."""
    forks = sys.platform == "linux"
    context = multiprocessing.get_context("forkserver" if forks else "spawn")
    settings = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    settings["TOKENIZERS_PARALLELISM"] = "false"

    def start(call: Call, command: Sequence[str], folder: Path, log: Path) -> Process:
        process: Process = context.Process(  # type: ignore[attr-defined]  # both contexts have one
            target=_work, args=(call, tuple(command), folder.resolve(), log.resolve(), settings)
        )
        if forks:  # which counts for the first process only, that starts the server
            context.set_forkserver_preload(IMPORTED if call is run_command else [call.__module__])
        before = {name: os.environ.get(name) for name in settings}
        os.environ.update(settings)  # libraries read them while the server, or the process, imports them
        try:
            process.start()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
        return process

    return start


def run_command(command: Sequence[str]) -> None:
    """Runs a public command here, as a shell would."""
    program, *options = command
    start_command(command_called(program), program, options)


def succeeds(command: Sequence[str], folder: Path, log: Path) -> bool:
    """Runs a public command in a process of its own; returns whether its exit code was 0."""
    log.write_text("")
    process = processes(threads=1)(run_command, command, folder, log)
    try:
        process.join()
    finally:
        stop([process])
    return process.exitcode == 0


def ended(running: Iterable[Process]) -> list[Process]:
    """Waits until at least one process has ended, and returns those that have."""
    sentinels = {process.sentinel: process for process in running}
    done = [sentinels[sentinel] for sentinel in wait(list(sentinels))]  # type: ignore[index]  # ints, as given
    for process in done:
        process.join()
    return done


def stop(running: Iterable[Process]) -> None:
    """Tells processes to save and end, and waits for them; kills those that take longer than `GRACE`."""
    running = list(running)
    for process in running:
        process.terminate()
    until = time.monotonic() + GRACE
    for process in running:
        process.join(max(0.0, until - time.monotonic()))
        if process.is_alive():
            process.kill()
            process.join()


def _work(call: Call, command: Sequence[str], folder: Path, log: Path, settings: dict[str, str]) -> None:
    """In the new process: sets folder, streams and environment as a shell would, and runs the command."""
    threading.Thread(target=_die_with_study, daemon=True).start()
    os.setsid()  # Ctrl-C is the study's to pass on
    os.environ.update(settings)
    os.chdir(folder)
    if torch := sys.modules.get("torch"):  # of a server that another number of threads was set for
        torch.set_num_threads(int(settings["OMP_NUM_THREADS"]))
    out, nothing = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), os.open(os.devnull, os.O_RDONLY)
    for target, source in ((0, nothing), (1, out), (2, out)):
        os.dup2(source, target)
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the server's is closed
    call(command)


def _die_with_study() -> None:
    """Ends this process when the study's has ended: otherwise it would get in the way of the next study."""
    study = multiprocessing.parent_process()
    assert study is not None, "a process of a study"
    wait([study.sentinel])
    os.kill(os.getpid(), signal.SIGKILL)
