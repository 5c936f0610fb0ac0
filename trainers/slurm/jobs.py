"""Jobs of SLURM that train: what is asked for, the script that runs, and what puts a stopped job back into the queue.

A job that is told to stop, before its time limit or by a preemption, saves, requeues itself and resumes. Its exit code
stays in a file beside its log, so that no accounting is needed to know how it ended.
"""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.utils import filter_overrides

from flexo.errors import InputError

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
    """What SLURM is asked for, and whether the launcher waits. Every job of an array gets the same."""

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
class ArrayRun:
    """One run of a multirun, a job of the array: its part of the command line, and the file or folder that it makes."""

    overrides: list[str]
    output: str
    name: str


def named(overrides: Sequence[Sequence[str]], outputs: Sequence[str]) -> list[ArrayRun]:
    """Runs named after what sets them apart from each other; one alone after all that it was given."""
    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    names = [" ".join(part for part in filter_overrides(given) if part not in shared) for given in overrides]
    return [ArrayRun(list(given), *rest) for given, *rest in zip(overrides, outputs, names, strict=True)]


def submit(runs: list[ArrayRun], command: list[str], options: SlurmOptions, folder: Path, name: str) -> str:
    """Hands the runs to SLURM as an array and returns its id. What it was given stays in `folder`, as `<id>.sbatch`."""
    by_output: dict[str, ArrayRun] = {}
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
    done = ask(["sbatch", "--parsable"], script, environment)
    if done.returncode:
        raise InputError(f"sbatch did not take the jobs: {' '.join(done.stderr.split())}")
    job = done.stdout.strip().split(";")[0]
    (folder / f"{job}.sbatch").write_text(script)
    return job


def batch_script(runs: list[ArrayRun], command: list[str], options: SlurmOptions, folder: Path, name: str) -> str:
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


def slurm_environment() -> list[Any]:
    """For Lightning, inside a job: its SLURM environment without its own requeuing.

    That saves wherever in a step the signal falls, under a name that is not looked for where a run resumes from
    `last.ckpt`, and requeues without end.
    """
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    return [SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else []


def ask(
    command: list[str], given: str | None = None, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command of SLURM. One that does not answer in two minutes has failed.

    Raises `InputError` if there is no such command.
    """
    try:
        return subprocess.run(command, input=given, capture_output=True, text=True, env=environment, timeout=120)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 1, "", f"{command[0]} has not answered for two minutes.")
    except FileNotFoundError:
        raise InputError(
            f"hydra/launcher=slurm: there is no {command[0]} on PATH. Is this a login node of the cluster? To try "
            "it on one machine: bash launch/local_slurm.sh up"
        ) from None
