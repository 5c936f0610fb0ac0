"""A multirun of Hydra on SLURM: one array of jobs, each the command of a single run, followed until all have ended.

python train_expert.py -m +domain=math,news,code hydra/launcher=slurm
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from flexo.errors import InputError
from trainers.slurm.jobs import Array, ArrayRun, SlurmOptions, ask, named, submit

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
    arrays = submit(runs, command, options, folder, script.stem)
    print(how_to_follow(arrays, folder, options), flush=True)
    if options.wait:
        watch(arrays, folder, options.poll_seconds)


def how_to_follow(arrays: list[Array], folder: Path, options: SlurmOptions) -> str:
    """What to type to see, to stop and to collect the runs of submitted arrays."""
    logs, jobs = shlex.quote(os.path.relpath(folder)), [array.job for array in arrays]
    by_name = named_jobs(arrays)
    runs = list(by_name.values())
    lines = [f"submitted as {', '.join(jobs)}, {len(runs)} {'jobs' if len(runs) > 1 else 'job'}:"]
    lines += [f"  {name}  {run.name or 'as configured'} -> {run.output}" for name, run in by_name.items()]
    lines += [
        f"queue:    squeue -j {','.join(jobs)}",
        f"follow:   tail -F {' '.join(f'{logs}/{job}_*.log' for job in jobs)}",
        f"stop:     scancel {' '.join(jobs)}",
    ]
    if all(run.output.endswith((".pt", ".safetensors")) for run in runs):
        lines.append(
            f"collect:  flexo-merge {shlex.join(run.output for run in runs)} -o model/   (when squeue is empty)"
        )
    if options.wait:
        lines.append("Ctrl-C stops watching; the jobs go on.")
    return "\n".join(lines)


def named_jobs(arrays: Sequence[Array]) -> dict[str, ArrayRun]:
    """The run of each job, by the job's name: `41_0`."""
    return {f"{array.job}_{n}": run for array in arrays for n, run in enumerate(array.runs)}


def watch(arrays: list[Array], folder: Path, poll_seconds: float) -> None:
    """Waits until all jobs have ended, says when one changes its state, and how each ended.

    Raises:
        InputError: SLURM has not answered for ten minutes, or a job ended without having done its work: with another
            exit code than 0, or with none within ten seconds.
    """
    runs, jobs = named_jobs(arrays), " ".join(array.job for array in arrays)
    shown: dict[str, str] = {}
    ended: dict[str, float] = {}  # since when, for jobs without a result
    codes: dict[str, int | None] = {}
    answered = time.monotonic()
    waiting = dict.fromkeys(runs)  # a set in order
    try:
        while waiting:
            states, now = job_states(arrays), time.monotonic()
            if states is None and now - answered > SILENCE_SECONDS:
                raise InputError(
                    f"squeue has not answered for {now - answered:.0f} s. The jobs of {jobs} may well go on; "
                    f"their logs and exit codes are in {folder}."
                )
            if states is not None:
                answered = now
                for n in list(waiting):
                    state, reason = states.get(n, ("gone from the queue", ""))
                    line = f"{state} ({reason})" if state == "PENDING" and reason not in ("", "None") else state
                    if shown.get(n) != line:
                        print(f"{n}  {line}", flush=True)
                        shown[n] = line
                    if state in UNFINISHED and reason not in HOPELESS:
                        ended.pop(n, None)
                        continue
                    code = 0 if state == "COMPLETED" else _exit_code(folder / f"{n}.exit")
                    if code is not None or now - ended.setdefault(n, now) > RESULT_SECONDS:
                        del waiting[n]
                        codes[n] = code
            if waiting:
                time.sleep(poll_seconds)
    except (KeyboardInterrupt, SystemExit) as stop:
        sys.stderr.write(f"stopped watching; the jobs go on. To stop them: scancel {jobs}\n")
        sys.exit(stop.code if isinstance(stop, SystemExit) else 130)
    print(table_of(runs, shown, codes, folder), flush=True)
    if failed := [n for n in runs if codes[n] != 0]:
        told = "".join(
            f"\n{n} ({runs[n].name}): {shown[n]}, exit code {_said(codes[n])}. {_end_of(folder / f'{n}.log')}"
            for n in failed
        )
        raise InputError(f"{len(failed)} of {len(runs)} jobs did not finish. What is done stays done.{told}")


def table_of(
    runs: Mapping[str, ArrayRun], states: Mapping[str, str], codes: Mapping[str, int | None], folder: Path
) -> str:
    """How each job ended: its state, its exit code, its run, and where its log is."""
    rows = [("job", "state", "exit code", "run", "log")]
    rows += [
        (n, states[n], _said(codes[n]), run.name or "as configured", os.path.relpath(folder / f"{n}.log"))
        for n, run in runs.items()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def job_states(arrays: Sequence[Array]) -> dict[str, tuple[str, str]] | None:
    """State and reason of each job by name, without those that SLURM has forgotten; None if it does not answer."""
    states: dict[str, tuple[str, str]] = {}
    for array in arrays:  # each by itself: among several, one that is forgotten would be an error for all
        done = ask(["squeue", "-h", "-a", "-r", "-t", "all", "-j", array.job, "-o", "%K|%T|%r"])
        if done.returncode and "Invalid job id" not in done.stderr:
            return None
        rows = (line.split("|", 2) for line in done.stdout.splitlines())
        states |= {f"{array.job}_{n}": (state, reason) for n, state, reason in rows}
    return states


def _said(code: int | None) -> str:
    return "unknown" if code is None else str(code)


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
