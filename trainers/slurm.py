"""Training on SLURM: a multirun of Hydra becomes one job array, whose jobs are the commands of single runs.

    python train_expert.py -m +domain=math,news,code hydra/launcher=slurm

A job that is told to stop, shortly before its time limit or by a preemption, saves, puts itself back into the queue and
resumes there. What a job came to is its exit code, which it leaves beside its log, so that no accounting is needed.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import filter_overrides
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from merge.errors import InputError

UNFINISHED = {
    "PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING",
    "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD",
}  # fmt: skip
HOPELESS = ("launch failed requeued held", "JobHoldMaxRequeue", "BadConstraints", "DependencyNeverSatisfied")
RESULT_SECONDS = 10.0  # how long an ended job's exit code may take to cross a shared file system
SILENCE_SECONDS = 600.0  # how long squeue may fail before the watch is given up
# The end of every batch script, also of those in launch/.
QUEUE_AGAIN = """\
# 143: told to stop, and saved. If the job still counts as running, a time limit or preemption is near: it queues again
# and resumes there. If not, it was cancelled, or SLURM has queued it again by itself.
job=$SLURM_JOB_ID # for a job of an array it can mean all of them
[ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
if [ $code = 143 ] && [ "$(squeue -h -j "$job" -o %T)" = RUNNING ]; then
  if [ "${SLURM_RESTART_COUNT:-0}" -ge "$requeues" ]; then
    echo "error: requeued $requeues times already, and not done. The same command goes on from the last checkpoint." >&2
  elif scontrol requeue "$job"; then
    exit $code
  fi
fi
"""


@dataclass(frozen=True)
class SlurmOptions:
    """What SLURM is asked for, and how long the launcher stays. Every job of an array gets the same."""

    partition: str | None = None  # None: the cluster's default
    account: str | None = None
    qos: str | None = None
    minutes: int = 1440
    nodes: int = 1
    tasks_per_node: int = 1
    cpus_per_task: int = 1
    gpus_per_node: int | None = None
    mem_gb: int | None = None  # per node
    sbatch: dict[str, Any] = field(default_factory=dict)  # further options of sbatch
    setup: list[str] = field(default_factory=list)  # shell lines before the run
    warning_seconds: int = 120  # before the time limit
    requeues: int = 20
    wait: bool = True
    poll_seconds: float = 5.0

    def flags(self) -> dict[str, Any]:
        """The options of sbatch; None is left out, True has no value."""
        return {
            "partition": self.partition,
            "account": self.account,
            "qos": self.qos,
            "time": self.minutes,
            "nodes": self.nodes,
            "ntasks-per-node": self.tasks_per_node,
            "cpus-per-task": self.cpus_per_task,
            "gpus-per-node": self.gpus_per_node,
            "mem": f"{self.mem_gb}G" if self.mem_gb else None,
            "signal": f"TERM@{self.warning_seconds}",
            "requeue": True,
            "open-mode": "append",
        } | self.sbatch


@dataclass(frozen=True)
class Run:
    """One run of a multirun: what it was given on the command line, and the file or folder that it makes."""

    overrides: list[str]
    output: str
    name: str


def named(overrides: Sequence[Sequence[str]], outputs: Sequence[str]) -> list[Run]:
    """Runs named after what sets them apart from each other; one alone after all that it was given."""
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    names = [" ".join(part for part in filter_overrides(given) if part not in shared) for given in overrides]
    return [Run(list(given), *rest) for given, *rest in zip(overrides, outputs, names, strict=True)]


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
    command = [sys.executable, str(script)]
    for source in settings.runtime.config_sources:
        if source.provider == "command-line":
            command += ["--config-dir", str(Path(source.path).resolve())]
    job = submit(runs, command, options, folder, script.stem)
    print(how_to_follow(job, runs, folder, options), flush=True)
    if options.wait:
        watch(job, runs, folder, options.poll_seconds)


def submit(runs: list[Run], command: list[str], options: SlurmOptions, folder: Path, name: str) -> str:
    """Hands the runs to SLURM as an array and returns its id. What it was given stays in `folder`, as `<id>.sbatch`."""
    by_output: dict[str, Run] = {}
    for run in runs:
        if other := by_output.get(run.output):
            raise InputError(
                f"output: the runs '{other.name}' and '{run.name}' would both write {run.output}. Put what differs "
                "between them into its name, as in 'output=experts/${domain.name}-${seed}.pt'."
            )
        by_output[run.output] = run
    folder.mkdir(parents=True, exist_ok=True)
    script = batch_script(runs, command, options, folder, name)
    # run_hydra has set the first for itself, and a job is to refuse in one message; the others may be those of a job in
    # which we run, and srun would take them for its options
    environment = {name: value for name, value in os.environ.items() if name != "HYDRA_FULL_ERROR"}
    if "SLURM_JOB_ID" in environment:
        environment = {n: v for n, v in environment.items() if not n.startswith("SLURM_") or n == "SLURM_CONF"}
    done = _ask(["sbatch", "--parsable"], script, environment)
    if done.returncode:
        raise InputError(f"sbatch did not take the jobs: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().split(";")[0]
    (folder / f"{job}.sbatch").write_text(script)
    return job


def batch_script(runs: list[Run], command: list[str], options: SlurmOptions, folder: Path, name: str) -> str:
    """What every job of the array executes; it can be read, changed, and submitted by hand."""
    flags = {"job-name": name, "array": f"0-{len(runs) - 1}", "chdir": Path.cwd()}
    flags |= {"output": f"{str(folder).replace('%', '%%')}/%A_%a.log"} | options.flags()
    asked = [
        f"#SBATCH --{flag}" if value is True else f"#SBATCH --{flag}={shlex.quote(str(value))}"
        for flag, value in flags.items()
        if value is not None and value is not False
    ]
    cases = [f"  {n}) set -- {shlex.join(run.overrides)} ;;" for n, run in enumerate(runs)]
    lines = [
        "#!/bin/bash", *asked,
        "", "case $SLURM_ARRAY_TASK_ID in", *cases, "esac", *options.setup,
        f"requeues={options.requeues}",
        f"result={shlex.quote(str(folder))}/${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID.exit",
        'rm -f "$result"',
        "export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$SLURM_CPUS_PER_TASK} SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        "trap : TERM # this shell is told to stop as well, and has to outlive the training",
        f'srun --kill-on-bad-exit=1 {shlex.join(command)} "$@"',
        "code=$?", QUEUE_AGAIN.rstrip(), 'echo $code > "$result"', "exit $code", "",
    ]  # fmt: skip
    return "\n".join(lines)


def how_to_follow(job: str, runs: list[Run], folder: Path, options: SlurmOptions) -> str:
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


def watch(job: str, runs: list[Run], folder: Path, poll_seconds: float) -> None:
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


def slurm_environment() -> list[Any]:
    """For Lightning, inside a job: its SLURM environment without its own requeuing.

    That saves wherever in a step the signal falls, under a name that is not looked for where a run resumes from
    `last.ckpt`, and requeues without end.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def job_states(job: str) -> dict[int, tuple[str, str]] | None:
    """State and reason of each job of an array, without those that SLURM has forgotten; None if it does not answer."""
    done = _ask(["squeue", "-h", "-a", "-r", "-t", "all", "-j", job, "-o", "%K|%T|%r"])
    if done.returncode:
        return {} if "Invalid job id" in done.stderr else None
    rows = (line.split("|", 2) for line in done.stdout.splitlines())
    return {int(n): (state, reason) for n, state, reason in rows}


def _ask(
    command: list[str], given: str | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, env=environment, timeout=120)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} has not answered for two minutes.")
    except FileNotFoundError:
        raise InputError(
            f"hydra/launcher=slurm: there is no {command[0]} on PATH. Is this a login node of the cluster? To try "
            "it on one machine: bash launch/local_slurm.sh up"
        ) from None


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
    return "\n  ".join([f"The end of {log}:", *lines[-3:]])
