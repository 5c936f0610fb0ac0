"""Who runs the tasks of a stage: processes of this machine, or a SLURM array. Both are datatrove's executors, as is
the one for Ray in `flexmix.prepare.ray_executor`.

A stage is a datatrove pipeline run once for each task; a task that is done leaves a mark in the stage's folder and is
not run again. What is ours: workers end when their parent is killed, a worker that dies stops the run instead of
hanging it, progress is counted in bytes, and libraries stay quiet.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.slurm import SlurmPipelineExecutor
from loguru import logger

from flexo.console import Advance, progress
from flexo.errors import InputError

POLL = 0.2  # seconds between looks at a local run
SLURM_POLL = 2.0
ARRAY = 1000  # jobs in an array; more tasks than this share them
ERRORS = "errors"  # in a stage's folder, a file for each task that was refused

Report = Callable[[float], None]


@dataclass(frozen=True)
class Stage:
    """A pipeline and how many tasks it is run for.

    `sizes` are the bytes that each task reads, for progress; empty where a stage is too short for that.
    """

    name: str
    label: str
    steps: list[Any]
    tasks: int
    folder: Path
    sizes: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Slurm:
    """How to ask SLURM for an array."""

    partition: str
    time: str = "24:00:00"
    mem_gb: int = 2
    qos: str | None = None
    detach: bool = False  # submit and leave; the same command goes on later
    arguments: dict[str, str] = field(default_factory=dict)  # of sbatch


def _silent(_amount: float) -> None:
    pass


_report: Report = _silent  # set anew in each worker


def report(amount: float) -> None:
    """Called by steps: so many bytes of input more are done."""
    _report(amount)


def run_local(stage: Stage, workers: int) -> None:
    """Runs what is left of a stage in `workers` processes; one worker is this process.

    Raises:
        InputError: a task refused its input, or a worker was killed. What is done stays done.
    """
    executor = _executor(stage, workers)
    ranks = executor.get_incomplete_ranks()
    if not ranks:
        return
    left = sum(stage.sizes[rank] for rank in ranks) if stage.sizes else 0
    total, unit = (left or None, "bytes") if stage.sizes else (len(ranks), "tasks")
    with progress(stage.label, total, unit) as advance:
        if workers == 1:
            _run_here(executor, ranks, advance, bool(stage.sizes))
        else:
            _run_processes(executor, ranks, workers, advance, bool(stage.sizes))


def run_slurm(stages: list[Stage], slurm: Slurm, workers: int, jobs: Path, say: Callable[[str], None]) -> bool:
    """Submits what is left of the stages as arrays, one after another, and waits for them.

    `jobs` is a file that holds the numbers of submitted jobs until they are done.

    Returns:
        Whether all is done; False after submitting with `detach`.

    Raises:
        InputError: SLURM refuses the job, or jobs ended without finishing their tasks.
    """
    logger.disable("datatrove")
    executors: list[Any] = []
    for stage in stages:
        executors.append(_slurm_executor(stage, slurm, workers, executors[-1] if executors else None))
    if all(not executor.get_incomplete_ranks() for executor in executors):
        return True
    if not (jobs.is_file() and _alive(jobs.read_text().split())):
        for stage in stages:
            forget_refusals(stage)
        try:
            executors[-1].run()
        except (OSError, subprocess.CalledProcessError) as error:
            raise InputError(f"sbatch did not take the job ({error}). Is this a SLURM login node?") from None
        ids = [str(executor.job_id) for executor in executors if executor.job_id not in (None, -1)]
        jobs.write_text(" ".join(ids))
        say(f"submitted to SLURM: {', '.join(ids)}")
    if slurm.detach:
        say("the same command shows how far it is, and finishes the work when the jobs are done")
        return False
    _wait_for_slurm(stages, executors, jobs.read_text().split())
    jobs.unlink()
    return True


def refusals_of(stage: Stage) -> dict[int, str]:
    """What the tasks of a stage refused where nobody could hear them: by task, the message."""
    paths = sorted((stage.folder / ERRORS).glob("*"))
    return {int(path.name): path.read_text(encoding="utf-8") for path in paths}


def forget_refusals(stage: Stage) -> None:
    """Before a stage is run again."""
    for path in (stage.folder / ERRORS).glob("*"):
        path.unlink()


class _Local(LocalPipelineExecutor):  # type: ignore[misc]
    def run_task(self, rank: int) -> None:
        logger.disable("datatrove")
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one task, one core
        self._run_for_rank(rank, local_rank=1)


class _Slurm(SlurmPipelineExecutor):  # type: ignore[misc]
    def launch_merge_stats(self) -> None:
        """datatrove would submit one more job; the numbers that we show are counted elsewhere."""


def _executor(stage: Stage, workers: int) -> _Local:
    return _Local(stage.steps, tasks=stage.tasks, workers=workers, logging_dir=str(stage.folder))


def _slurm_executor(stage: Stage, slurm: Slurm, workers: int, depends: Any) -> _Slurm:
    return _Slurm(
        stage.steps,
        tasks=stage.tasks,
        time=slurm.time,
        partition=slurm.partition,
        mem_per_cpu_gb=slurm.mem_gb,
        workers=workers,
        tasks_per_job=-(-stage.tasks // ARRAY),
        job_name=f"flexo-{stage.name}",
        qos=slurm.qos,
        venv_path=f"{sys.prefix}/bin/activate",
        sbatch_args={"kill-on-invalid-dep": "yes"} | slurm.arguments,  # a stage whose input failed would wait for ever
        depends=depends,
        logging_dir=str(stage.folder),
        env_command=f"export PATH={Path(sys.executable).parent}:$PATH TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1",
    )


def _run_here(executor: _Local, ranks: list[int], advance: Advance, by_bytes: bool) -> None:
    global _report
    _report = advance if by_bytes else _silent
    try:
        for rank in ranks:
            executor.run_task(rank)
            if not by_bytes:
                advance(1)
    finally:
        _report = _silent


def _run_processes(executor: _Local, ranks: list[int], workers: int, advance: Advance, by_bytes: bool) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["flexmix.prepare.steps", "flexmix.prepare.deduplication"]
    )  # once, not in each worker
    tally, told = context.Value("d", 0.0), 0.0
    pool = ProcessPoolExecutor(min(workers, len(ranks)), context, _start_worker, (tally,))
    try:
        running = {pool.submit(executor.run_task, rank) for rank in ranks}
        while running:
            done, running = wait(running, POLL, FIRST_COMPLETED)
            for task in done:
                task.result()
            now = tally.value if by_bytes else told + len(done)
            advance(now - told)
            told = now
    except BaseException as error:
        for child in multiprocessing.active_children():  # or a long task would be waited for
            child.terminate()
        if not isinstance(error, BrokenProcessPool):
            raise
        raise InputError(
            "a worker process was killed, perhaps for want of memory. What is done is kept: run the same command "
            "again, with fewer --workers if memory is short."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _start_worker(tally: Any) -> None:
    global _report

    def add(amount: float) -> None:
        with tally.get_lock():
            tally.value += amount

    _report = add
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (wait_for([parent.sentinel]), os._exit(1)), daemon=True).start()


def _wait_for_slurm(stages: list[Stage], executors: list[Any], jobs: list[str]) -> None:
    tasks = sum(stage.tasks for stage in stages)
    done = tasks - sum(len(executor.get_incomplete_ranks()) for executor in executors)
    with progress("tasks on SLURM", tasks, "tasks") as advance:
        advance(done)
        while True:
            alive = _alive(jobs)  # asked first: what ends between the two questions is counted as done
            now = tasks - sum(len(executor.get_incomplete_ranks()) for executor in executors)
            advance(now - done)
            done = now
            if done == tasks:
                return
            if not alive:
                raise InputError(_why_unfinished(stages, tasks - done))
            time.sleep(SLURM_POLL)


def _why_unfinished(stages: list[Stage], missing: int) -> str:
    for stage in stages:
        for said in refusals_of(stage).values():
            return said
    logs = stages[0].folder / "slurm_logs"
    return (
        f"{missing} tasks did not finish on SLURM. Their output is in {logs}. What is done is kept: run the same "
        "command again."
    )


def _alive(jobs: list[str]) -> bool:
    """Whether SLURM still has one of the jobs, waiting or running."""
    asked = subprocess.run(["squeue", "-h", "-j", ",".join(jobs), "-o", "%T"], capture_output=True, text=True)
    return asked.returncode == 0 and any(state != "COMPLETING" for state in asked.stdout.split())
