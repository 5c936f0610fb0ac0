"""Runs the tasks of a stage on a Ray cluster by datatrove's executor: `flexo-data prepare ... --ray` (extra `ray`).

datatrove warns of a task that failed and goes on as if all were well; here that ends the run, with the reason. What a
task writes is the same wherever it runs, so the nodes need a shared disk, and flexo installed at the same version.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from datatrove.executor.ray import RayPipelineExecutor
from loguru import logger

from flexmix.prepare.executors import Stage, forget_refusals, refusals_of
from flexo.console import Advance, progress
from flexo.errors import InputError

POLL = 1.0  # seconds between looks at what is done


@dataclass(frozen=True)
class Ray:
    """What to ask Ray for."""

    mem_gb: int = 2  # for a task


def run_ray(stages: list[Stage], ray: Ray, workers: int, failed: Path) -> None:
    """Runs what is left of the stages, one after the other, `workers` tasks at a time.

    The cluster is the one that `RAY_ADDRESS` names or that runs on this machine; where there is none, one is started
    for the time of the run. `failed` is a file made when a task failed for no reason that an owner could mend: then
    its log is worth keeping.

    Raises:
        InputError: Ray is not installed or not to be reached, has no room for a task, or tasks did not finish.
    """
    logger.disable("datatrove")
    stages = [stage for stage in stages if _executor(stage, ray, workers).get_incomplete_ranks()]
    if not stages:
        return
    with _connected(ray):
        for stage in stages:
            forget_refusals(stage)
            executor = _executor(stage, ray, workers)
            left = len(executor.get_incomplete_ranks())
            with progress(f"{stage.label}, on Ray", left, "tasks") as advance, _watched(executor, left, advance):
                executor.run()
            if missing := executor.get_incomplete_ranks():
                raise InputError(_why_unfinished(stage, missing, failed))
    failed.unlink(missing_ok=True)


class _Ray(RayPipelineExecutor):  # type: ignore[misc]
    def __init__(self, *arguments: Any, place: Path, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.place = place

    def _run_for_rank(self, rank: int, local_rank: int = 0, node_rank: int = -1) -> Any:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one task, one core
        if self.place.is_dir():
            os.chdir(self.place)  # where an owner's own filters are looked for
        return super()._run_for_rank(rank, local_rank, node_rank)


def _executor(stage: Stage, ray: Ray, workers: int) -> _Ray:
    return _Ray(
        stage.steps,
        tasks=stage.tasks,
        workers=workers,
        mem_per_cpu_gb=ray.mem_gb,
        logging_dir=str(stage.folder),
        place=Path.cwd(),
    )


@contextmanager
def _connected(asked: Ray) -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or a cluster that starts here would report on itself
    try:
        ray: Any = import_module("ray")
    except ImportError:
        raise InputError("Ray is not installed. Install it with pip install 'flexo[ray]'.") from None
    try:
        ray.init(log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(
            f"Ray cannot be reached ({' '.join(str(error).split())[:200]}). Is RAY_ADDRESS "
            f"{os.environ.get('RAY_ADDRESS', 'unset')!r} right, and the cluster up?"
        ) from None
    try:
        _refuse_too_small(ray.nodes(), asked)
        yield
    finally:
        ray.shutdown()


def _refuse_too_small(nodes: list[dict[str, Any]], asked: Ray) -> None:
    """A task for which no node is large enough would wait for ever."""
    there = [node["Resources"] for node in nodes if node["Alive"]]
    if any(node.get("CPU", 0) >= 1 and node.get("memory", 0) >= asked.mem_gb << 30 for node in there):
        return
    most = max((node.get("memory", 0) for node in there), default=0) / (1 << 30)
    raise InputError(
        f"no node of this Ray cluster has a CPU and {asked.mem_gb} GB for a task (the largest of {len(there)} has "
        f"{most:.1f} GB). Ask for less with --mem; a task needs some 100 MB."
    )


@contextmanager
def _watched(executor: _Ray, left: int, advance: Advance) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        done = 0
        while not over.wait(POLL):
            now = left - len(executor.get_incomplete_ranks())
            advance(now - done)
            done = now

    watching = threading.Thread(target=watch, daemon=True)
    watching.start()
    try:
        yield
    finally:
        over.set()
        watching.join()


def _why_unfinished(stage: Stage, missing: list[int], failed: Path) -> str:
    for rank, said in refusals_of(stage).items():
        return f"{said} (Task {rank} of {stage.tasks} on Ray, its log: {_log(stage, rank)})"
    failed.touch()
    log = _log(stage, missing[0])
    lines = log.read_text(encoding="utf-8").strip().splitlines() if log.is_file() else []
    return (
        f"{len(missing)} of {stage.tasks} tasks did not finish on Ray, the first is task {missing[0]} "
        f"({lines[-1].strip() if lines else 'no log of it; a node may be lost, or short of memory'}). Its log: {log}. "
        "What is done is kept: run the same command again."
    )


def _log(stage: Stage, rank: int) -> Path:
    return stage.folder / "logs" / f"task_{rank:05d}.log"
