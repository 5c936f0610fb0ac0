"""Jobs of SLURM that train: what is asked for, the script that runs, and what puts a stopped job back into the queue.

A job that is told to stop, before its time limit or by a preemption, saves, requeues itself and resumes. Its exit code
stays in a file beside its log, so that no accounting is needed to know how it ended.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flexo.cpu_threads import given_environment
from flexo.errors import InputError

ARRAY = 1001  # SLURM's own MaxArraySize
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # numbers above are of no srun: a batch script, an interactive shell
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
    parallel: int | None = None  # jobs of the array that run at a time; None: as many as SLURM lets
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
    from hydra.core.utils import filter_overrides  # here: `slurm_environment` is for runs without Hydra, too

    shared = set.intersection(*map(set, overrides)) if len(overrides) > 1 else set()
    names = [" ".join(part for part in filter_overrides(given) if part not in shared) for given in overrides]
    return [ArrayRun(list(given), *rest) for given, *rest in zip(overrides, outputs, names, strict=True)]


@dataclass(frozen=True)
class Array:
    """A job array that was submitted, and the run of each of its jobs."""

    job: str  # its id
    runs: list[ArrayRun]


def submit(runs: list[ArrayRun], command: list[str], options: SlurmOptions, folder: Path, name: str) -> list[Array]:
    """Hands the runs to SLURM as an array, or as several where an array may not have as many jobs.

    What SLURM was given stays in `folder`, as `<id>.sbatch`. With a limit on jobs at a time, an array waits for the one
    before. Raises `InputError` for two runs of one output, and with sbatch's own words if it refuses.
    """
    by_output: dict[str, ArrayRun] = {}
    for run in runs:
        if other := by_output.get(run.output):
            raise InputError(
                f"output: the runs '{other.name}' and '{run.name}' would both write {run.output}. Put what differs "
                "between them into its name, as in 'output=experts/${domain.name}-${seed}.pt'."
            )
        by_output[run.output] = run
    folder.mkdir(parents=True, exist_ok=True)
    # run_hydra has set the first for itself, and a job is to refuse in one message; the others may be those of a job in
    # which we run, and srun would take them for its options
    environment = {name: value for name, value in given_environment().items() if name != "HYDRA_FULL_ERROR"}
    if "SLURM_JOB_ID" in environment:
        environment = {n: v for n, v in environment.items() if not n.startswith("SLURM_") or n == "SLURM_CONF"}
    arrays: list[Array] = []
    left, most = list(runs), len(runs)
    while left:
        part = left[:most]
        script = batch_script(part, command, options, folder, name)
        after = [f"--dependency=afterany:{arrays[-1].job}"] if arrays and options.parallel else []
        done = ask(["sbatch", "--parsable", *after], script, environment)
        if done.returncode and "Invalid job array" in done.stderr and len(part) > longest_array():
            most = longest_array()
            continue
        if done.returncode:
            before = f" Submitted before, and still there: {' '.join(one.job for one in arrays)}." if arrays else ""
            raise InputError(f"sbatch did not take the jobs.{before} It says:\n{done.stderr.strip()}")
        sys.stderr.write(done.stderr)  # warnings
        job = done.stdout.strip().split(";")[0]
        (folder / f"{job}.sbatch").write_text(script)
        arrays.append(Array(job, part))
        left = left[most:]
    return arrays


def longest_array() -> int:
    """How many jobs an array may have: SLURM's MaxArraySize, which is one more than the largest number of a job."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", ask(["scontrol", "show", "config"]).stdout, re.MULTILINE)
    return max(1, int(found[1])) if found else ARRAY


def batch_script(runs: Sequence[ArrayRun], command: list[str], options: SlurmOptions, folder: Path, name: str) -> str:
    """What every job of the array executes; it can be read, changed, and submitted by hand."""
    limit = f"%{options.parallel}" if options.parallel else ""
    flags = {"job-name": name, "array": f"0-{len(runs) - 1}{limit}", "chdir": Path.cwd()}
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


def slurm_environment(devices: int, nodes: int) -> list[Any]:
    """For Lightning, where SLURM has left its mark: who started the processes of this run, on so many devices a node.

    SLURM did if this is one of several tasks of a step of `srun`. The variables of a job are also in a terminal, a
    notebook or a batch file that asked for several tasks and started none of them. Its requeuing is left out: that
    saves wherever in a step the signal falls, under a name that is not looked for where a run resumes from `last.ckpt`,
    and requeues without end.

    Raises:
        InputError: the step has another number of tasks than the run has devices.
    """
    from lightning.fabric.plugins.environments.lightning import LightningEnvironment
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    if "SLURM_NTASKS" not in os.environ and "SLURM_JOB_ID" not in os.environ:
        return []
    if TorchElasticEnvironment.detect():
        return [TorchElasticEnvironment()]
    tasks = tasks_of_step()
    if tasks == 1 and nodes == 1:
        return [LightningEnvironment()]
    if tasks != devices * nodes:
        raise InputError(
            f"run.devices={devices}, run.nodes={nodes}: a process for each device, and this step of SLURM has {tasks} "
            f"of them. Start it with srun --nodes={nodes} --ntasks-per-node={devices}, or without srun on one node."
        )
    os.environ.setdefault("SLURM_NTASKS_PER_NODE", str(devices))  # srun --ntasks leaves it out, and Lightning asks
    return [SLURMEnvironment(auto_requeue=False)]


def tasks_of_step() -> int:
    """How many processes `srun` has started together with this one; 1 where it is none of its steps."""
    step = os.environ.get("SLURM_STEP_ID", os.environ.get("SLURM_STEPID", ""))
    if not step.isdecimal() or int(step) >= FIRST_SPECIAL_STEP or "SLURM_PROCID" not in os.environ:
        return 1
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1")))


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
