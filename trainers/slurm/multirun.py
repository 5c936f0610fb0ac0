"""A multirun of Hydra on SLURM: one array of jobs, each the command of a single run, followed until all have ended.

python train_expert.py -m +domain=math,news,code hydra/launcher=slurm
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from flexo.errors import InputError
from trainers.slurm.jobs import ArrayRun, SlurmOptions, ask, named, submit

UNFINISHED = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip
HOPELESS = ("launch failed requeued held", "JobHoldMaxRequeue", "BadConstraints", "DependencyNeverSatisfied")
RESULT_SECONDS = 10.0  # how long an ended job's exit code may take to cross a shared file system
SILENCE_SECONDS = 600.0  # how long squeue may fail before the watch is given up


def launch(sweeps: Sequence[Any], job_overrides: Sequence[Sequence[str]], settings: Any) -> None:
    """Submits the runs of a multirun as one array, and watches it unless told otherwise.

    Args:
        sweeps: the settings of each run.
        job_overrides: what each was given on the command line.
        settings: of Hydra, for all of them.

    Raises:
        InputError: there is no SLURM, it refuses the jobs, or a job ended without having done its work.
    """
    runs = named(job_overrides, [str(sweep.output) for sweep in sweeps])
    options = _options(sweeps)
    folder = Path(settings.runtime.cwd, settings.sweep.dir)
    script = Path(sys.argv[0]).resolve()
    command = [sys.executable, *_main_program()]
    for place in settings.runtime.config_sources:
        if place.provider == "command-line":
            command += ["--config-dir", str(Path(place.path).resolve())]
    job = submit(runs, command, options, folder, script.stem)
    print(how_to_follow(job, runs, folder, options), flush=True)
    if options.wait:
        watch(job, runs, folder, options.poll_seconds)


def how_to_follow(job: str, runs: list[ArrayRun], folder: Path, options: SlurmOptions) -> str:
    """What to type to see, to stop and to collect the runs of a submitted array."""
    logs = os.path.relpath(folder)
    lines = [f"submitted as {job}, {len(runs)} {'jobs' if len(runs) > 1 else 'job'}:"]
    lines += [f"  {job}_{n}  {run.name or 'as configured'} -> {run.output}" for n, run in enumerate(runs)]
    lines += [
        f"queue:    squeue -j {job}",
        f"follow:   tail -F {shlex.quote(logs)}/{job}_*.log",
        f"stop:     scancel {job}",
    ]
    if all(run.output.endswith((".pt", ".safetensors")) for run in runs):
        lines.append(
            f"collect:  flexo-merge {shlex.join(run.output for run in runs)} -o model/   (when squeue is empty)"
        )
    if options.wait:
        lines.append("Ctrl-C stops watching; the jobs go on.")
    return "\n".join(lines)


def watch(job: str, runs: list[ArrayRun], folder: Path, poll_seconds: float) -> None:
    """Waits until all jobs of an array have ended, and says when one changes its state.

    Raises:
        InputError: SLURM has not answered for ten minutes, or a job ended without having done its work: with another
            exit code than 0, or with none within ten seconds.
    """
    shown: dict[int, str] = {}
    ended: dict[int, float] = {}  # since when, for jobs without a result
    failed: dict[int, str] = {}
    answered = time.monotonic()
    waiting = set(range(len(runs)))
    try:
        while waiting:
            states, now = job_states(job), time.monotonic()
            if states is None and now - answered > SILENCE_SECONDS:
                raise InputError(
                    f"squeue has not answered for {now - answered:.0f} s. The jobs of {job} may well go on; "
                    f"their logs and exit codes are in {folder}."
                )
            if states is not None:
                answered = now
                for n in sorted(waiting):
                    state, reason = states.get(n, ("gone from the queue", ""))
                    line = f"{state} ({reason})" if state == "PENDING" and reason not in ("", "None") else state
                    if shown.get(n) != line:
                        print(f"{job}_{n}  {line}", flush=True)
                        shown[n] = line
                    if state in UNFINISHED and reason not in HOPELESS:
                        ended.pop(n, None)
                        continue
                    code = 0 if state == "COMPLETED" else _exit_code(folder / f"{job}_{n}.exit")
                    if code is not None or now - ended.setdefault(n, now) > RESULT_SECONDS:
                        waiting.remove(n)
                        if code != 0:
                            failed[n] = f"{line}, exit code {'unknown' if code is None else code}"
            if waiting:
                time.sleep(poll_seconds)
    except (KeyboardInterrupt, SystemExit) as stop:
        sys.stderr.write(f"stopped watching; the jobs go on. To stop them: scancel {job}\n")
        sys.exit(stop.code if isinstance(stop, SystemExit) else 130)
    if failed:
        told = "".join(
            f"\n{job}_{n} ({runs[n].name}): {why}. {_end_of(folder / f'{job}_{n}.log')}" for n, why in failed.items()
        )
        raise InputError(f"{len(failed)} of {len(runs)} jobs did not finish. What is done stays done.{told}")


def job_states(job: str) -> dict[int, tuple[str, str]] | None:
    """State and reason of each job of an array, without those that SLURM has forgotten; None if it does not answer."""
    done = ask(["squeue", "-h", "-a", "-r", "-t", "all", "-j", job, "-o", "%K|%T|%r"])
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    return {int(n): (state, reason) for n, state, reason in rows}


def _options(sweeps: Sequence[Any]) -> SlurmOptions:
    """The settings in hydra.launcher, which have to be the same for all runs of an array."""
    found = []
    for sweep in sweeps:
        try:
            values: Any = OmegaConf.to_container(sweep.hydra.launcher, resolve=True)
            values.pop("_target_")
            found.append(TypeAdapter(SlurmOptions).validate_python(values))
        except OmegaConfBaseException as error:
            raise InputError(f"hydra.launcher: {str(error).splitlines()[0]}") from None
        except ValidationError as error:
            first = error.errors()[0]
            at = ".".join(["hydra.launcher", *map(str, first["loc"])])
            raise InputError(f"{at}: {first['input']!r} does not fit. {first['msg']}.") from None
    if any(options != found[0] for options in found):
        raise InputError("hydra.launcher: the runs ask SLURM for different things (nodes, devices). Submit them apart.")
    return found[0]


def _main_program() -> list[str]:
    """How Python is told to run what runs here: by name if it was started so, as everything in a wheel is."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None and spec.origin == sys.argv[0]:
        return ["-m", str(spec.name)]
    return [str(Path(sys.argv[0]).resolve())]


def _exit_code(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (FileNotFoundError, ValueError):  # not there, or not whole yet
        return None


def _end_of(log: Path) -> str:
    """Where a log is, and its last lines."""
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        return f"It left no log at {log}."
    return "\n  ".join([f"The end of {log}:", *lines[-4:]])
