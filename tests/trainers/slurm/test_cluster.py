"""Training on a real SLURM: what survives there, and in which bits. The cluster is made for these tests."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from merge.formats.expert_file import open_expert
from tests.trainers.test_distributed import SETTINGS

pytestmark = pytest.mark.slurm
ROOT = Path(__file__).resolve().parents[3]
STEPS = 300  # some seconds, to be interrupted in
LAUNCHER = ("hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", "hydra.launcher.poll_seconds=0.5")


class Multirun:
    """A multirun of `train_expert.py` on the cluster, in a folder whose name has a space in it."""

    def __init__(self, cluster: dict[str, str], folder: Path, anchor: Path, shards: Path, *arguments: str) -> None:
        self.environment, self.folder = cluster, folder / "a folder"
        self.folder.mkdir()
        self.process = subprocess.Popen(
            [
                sys.executable, ROOT / "train_expert.py", "-m", f"corpora={shards}", f"anchor.path={anchor}", *SETTINGS,
                f"data.tokens={STEPS * 128}", "run.checkpoint_seconds=0", "logger=none", "hydra.sweep.dir=logs",
                *LAUNCHER, *arguments,
            ],
            cwd=self.folder, env=cluster, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    def slurm(self, *command: str) -> str:
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=True).stdout

    def wait_for(self, what: Callable[[], bool], seconds: float = 1200) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < end, f"{self.slurm('squeue', '-t', 'all')}\n{self.log()}"
            time.sleep(0.05)

    def wait_for_a_checkpoint(self, domain: str = "math") -> None:
        self.wait_for((self.folder / f"experts/{domain}.run/last.ckpt").exists)

    @property
    def job(self) -> str:
        """The id of the array; it stands in the name of what was submitted."""
        (path,) = self.folder.glob("logs/*.sbatch")
        return path.stem

    def log(self, n: int = 0) -> str:
        return "\n".join(path.read_text() for path in self.folder.glob(f"logs/*_{n}.log"))

    def said(self) -> str:
        return self.process.communicate(timeout=1200)[0]

    def digests(self, domain: str = "math") -> dict[str, str]:
        """Of the tensors, once the multirun has ended well."""
        said = self.said()
        assert self.process.returncode == 0, f"{said}\n{self.log()}"
        tensors = open_expert(self.folder / f"experts/{domain}.pt").header.tensors
        return {name: tensor.sha256 for name, tensor in tensors.items()}


Start = Callable[..., Multirun]


@pytest.fixture(scope="module")
def start(
    cluster: dict[str, str], small_anchor: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Start]:
    """`start("+domain=math")`: a multirun that has been started, and is ended with the tests."""
    started: list[Multirun] = []

    def call(*arguments: str) -> Multirun:
        started.append(Multirun(cluster, tmp_path_factory.mktemp("sweep"), small_anchor, shards, *arguments))
        return started[-1]

    yield call
    for run in started:
        if run.process.poll() is None:
            run.process.terminate()
            run.process.wait()


@pytest.fixture(scope="module")
def undisturbed(start: Start) -> dict[str, str]:
    """Digests of an expert whose job ran through, beside another one."""
    both = start("+domain=math,code")
    running = lambda: both.slurm("squeue", "-h", "-t", "R", "-o", "%i").split()  # noqa: E731
    both.wait_for(lambda: len(running()) == 2)
    digests = both.digests("math")
    assert open_expert(both.folder / "experts/code.pt").header.domain == "code"
    assert not list(both.folder.rglob("hpc_ckpt*")), "Lightning requeues by itself"
    return digests


def test_a_requeue_in_the_middle_ends_in_the_same_bits(start: Start, undisturbed: dict[str, str]) -> None:
    run = start("+domain=math")
    run.wait_for_a_checkpoint()
    run.slurm("scontrol", "requeue", f"{run.job}_0")
    assert run.digests() == undisturbed
    assert "stopped at step " in run.log() and "resuming from experts/math.run/last.ckpt" in run.log()


def test_a_preemption_that_only_sends_sigterm_ends_in_the_same_bits(start: Start, undisturbed: dict[str, str]) -> None:
    run = start("+domain=math")
    run.wait_for_a_checkpoint()
    run.slurm("srun", "--partition=urgent", "--cpus-per-task=2", "sleep", "1")
    assert run.digests() == undisturbed
    assert "stopped at step " in run.log() and "resuming from experts/math.run/last.ckpt" in run.log()


def test_a_job_requeued_after_its_file_was_written_ends_well(start: Start, undisturbed: dict[str, str]) -> None:
    run = start("+domain=math", """hydra.launcher.setup=['[ "$SLURM_RESTART_COUNT" ] || trap "sleep 60" EXIT']""")
    run.wait_for(lambda: any(run.folder.glob("logs/*_0.exit")))  # the training has ended, its job has not
    written = (run.folder / "experts/math.pt").read_bytes()
    run.slurm("scontrol", "requeue", f"{run.job}_0")
    assert run.digests() == undisturbed
    assert (run.folder / "experts/math.pt").read_bytes() == written
    assert "experts/math.pt was made before by this very run; nothing to do" in run.log()


def test_a_job_that_is_killed_ends_the_multirun_and_is_named(start: Start) -> None:
    run = start("+domain=math")
    run.wait_for(lambda: run.slurm("squeue", "-h", "-o", "%T") == "RUNNING\n")
    run.slurm("scancel", "--signal=KILL", "--batch", f"{run.job}_0")
    said = run.said()
    assert run.process.returncode == 1
    assert f"error: 1 of 1 jobs did not finish. What is done stays done.\n{run.job}_0 (" in said
    assert "+domain=math): FAILED, exit code unknown. " in said and f"{run.folder}/logs/{run.job}_0.log" in said
