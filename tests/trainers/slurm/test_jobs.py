"""SLURM without SLURM: stand-ins for its commands show what it would be asked, and answer what we want it to answer."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from flexo.errors import InputError
from trainers.entry.hydra_entry import run_hydra
from trainers.slurm import multirun
from trainers.slurm.jobs import QUEUE_AGAIN, Array, SlurmOptions, batch_script, named, slurm_environment, submit
from trainers.slurm.multirun import named_jobs, watch

ROOT = Path(__file__).resolve().parents[3]
BATCH_FILES = sorted((ROOT / "launch").glob("*.sbatch"))
SLURM = ["+domain=math", "hydra/launcher=slurm"]
RUNS = named([["+domain=math"], ["+domain=my text"]], ["experts/math.pt", "experts/my.pt"])
StandIn = Callable[[str, str], Path]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """`stand_in("squeue", "echo RUNNING")`: a command that notes its arguments in the file returned, then does that."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    for name in [name for name in os.environ if name.startswith(("SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)

    def make(name: str, body: str) -> Path:
        calls = tmp_path / f"{name}.calls"
        (folder / name).write_text(f'#!/bin/bash\necho "$*" >> {calls}\n{body}\n')
        (folder / name).chmod(0o755)
        return calls

    return make


@pytest.mark.parametrize(
    ("code", "state", "restarts", "requeued", "ends"),
    [
        (0, "RUNNING", 0, False, 0),
        (1, "RUNNING", 0, False, 1),
        (143, "RUNNING", 0, True, 143),  # a warning before the time limit, or the grace of a preemption
        (143, "RUNNING", 20, False, 143),
        (143, "COMPLETING", 0, False, 143),  # scancel, or scontrol requeue
        (143, "", 0, False, 143),  # squeue does not answer
        (137, "RUNNING", 0, False, 137),
    ],
)
@pytest.mark.parametrize("script", ["array", *(path.name for path in BATCH_FILES)])
def test_a_stopped_job_queues_again_only_while_it_counts_as_running(
    stand_in: StandIn, tmp_path: Path, script: str, code: int, state: str, restarts: int, requeued: bool, ends: int
) -> None:
    trained = stand_in("srun", f"exit {code}")
    asked, requeues = stand_in("squeue", f"echo {state}"), stand_in("scontrol", "exit 0")
    if script == "array":
        text = batch_script(RUNS, ["python", "train.py"], SlurmOptions(), tmp_path, "train")
    else:
        text = (ROOT / "launch" / script).read_text()
    array = script in ("array", "experts.sbatch")
    job = {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "1", "SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8"}
    job |= {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "1", "DOMAINS": "math code"} if array else {}
    done = subprocess.run(
        ["bash", "-c", text],
        env=os.environ | job | {"SLURM_RESTART_COUNT": str(restarts)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == ends, done.stderr
    assert trained.read_text().count("\n") == 1
    name = "7_1" if array else "7"
    assert asked.exists() == (code == 143) and (code != 143 or asked.read_text() == f"-h -j {name} -o %T\n")
    assert requeues.exists() == requeued and (not requeued or requeues.read_text() == f"requeue {name}\n")
    assert ("requeued 20 times already" in done.stderr) == (restarts == 20)
    if script == "array":
        assert "train.py +domain=my text\n" in trained.read_text()
        result = tmp_path / "7_1.exit"
        assert not result.exists() if requeued else int(result.read_text()) == ends


def test_a_job_that_slurm_will_not_requeue_counts_as_failed(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("srun", "exit 143"), stand_in("squeue", "echo RUNNING"), stand_in("scontrol", "exit 1")
    text = batch_script(RUNS, ["python"], SlurmOptions(), tmp_path, "train")
    job = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "SLURM_CPUS_PER_TASK": "1"}
    assert subprocess.run(["bash", "-c", text], env=os.environ | job).returncode == 143
    assert (tmp_path / "7_0.exit").read_text() == "143\n"


@pytest.mark.parametrize("path", BATCH_FILES, ids=lambda path: path.name)
def test_batch_files_end_as_the_launchers_script_does(path: Path) -> None:
    assert path.read_text().endswith(f"code=$?\n{QUEUE_AGAIN}exit $code\n")
    assert "#SBATCH --signal=TERM@" in path.read_text() and "#SBATCH --requeue\n" in path.read_text()


def test_options_become_those_of_sbatch(tmp_path: Path) -> None:
    options = SlurmOptions(
        partition="gpu", gpus_per_node=2, mem_gb=8, sbatch={"constraint": "a b", "exclusive": True, "signal": None},
        setup=["module load x"],
    )  # fmt: skip
    lines = batch_script(RUNS, ["python"], options, tmp_path / "my 100%", "train").splitlines()
    asked = [line.removeprefix("#SBATCH --") for line in lines if line.startswith("#SBATCH")]
    assert asked == [
        "job-name=train", "array=0-1", f"chdir={Path.cwd()}", f"output='{tmp_path}/my 100%%/%A_%a.log'",
        "partition=gpu", "time=1440", "nodes=1", "ntasks-per-node=1", "cpus-per-task=1", "gpus-per-node=2", "mem=8G",
        "requeue", "open-mode=append", "constraint='a b'", "exclusive",
    ]  # fmt: skip
    assert "module load x" in lines


def test_runs_that_would_write_the_same_file_are_refused(stand_in: StandIn, tmp_path: Path) -> None:
    sbatch = stand_in("sbatch", "echo 7")
    runs = named([["+domain=math", "seed=0"], ["+domain=math", "seed=1"]], ["math.pt", "math.pt"])
    with pytest.raises(InputError, match=r"'seed=0' and 'seed=1' would both write math\.pt"):
        submit(runs, ["python"], SlurmOptions(), tmp_path / "logs", "train")
    assert not sbatch.exists() and not (tmp_path / "logs").exists()


def test_what_sbatch_says_is_passed_on(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("sbatch", "echo 'sbatch: error: invalid partition' >&2; exit 1")
    with pytest.raises(InputError, match=r"sbatch did not take the jobs\. It says:\nsbatch: error: invalid partition"):
        submit(RUNS, ["python"], SlurmOptions(), tmp_path, "train")


def test_what_sbatch_warns_of_is_passed_on(
    stand_in: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in("sbatch", "echo 'sbatch: memory was rounded up' >&2; echo 7")
    assert [array.job for array in submit(RUNS, ["python"], SlurmOptions(), tmp_path, "train")] == ["7"]
    assert capsys.readouterr().err == "sbatch: memory was rounded up\n"


LIMITED = """
n=$(cat {folder}/count 2> /dev/null || echo 40); script=$(cat)
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' <<< "$script")
[ $last -lt 2 ] || {{ echo "sbatch: error: Batch job submission failed: Invalid job array specification" >&2; exit 1; }}
[ $n != {broken} ] || {{ echo "sbatch: error: QOSMaxSubmitJobPerUserLimit" >&2; exit 1; }}
echo $((n + 1)) > {folder}/count; echo $n
"""


def test_more_runs_than_an_array_may_have_are_several_arrays(stand_in: StandIn, tmp_path: Path) -> None:
    calls = stand_in("sbatch", LIMITED.format(folder=tmp_path, broken="none"))
    stand_in("scontrol", "echo 'MaxArraySize            = 2'")
    runs = named([[f"seed={n}"] for n in range(5)], [f"{n}.pt" for n in range(5)])
    arrays = submit(runs, ["python"], SlurmOptions(parallel=2), tmp_path / "logs", "train")
    assert [(array.job, [run.name for run in array.runs]) for array in arrays] == [
        ("40", ["seed=0", "seed=1"]), ("41", ["seed=2", "seed=3"]), ("42", ["seed=4"])
    ]  # fmt: skip
    assert calls.read_text().splitlines()[1:] == [
        "--parsable", "--parsable --dependency=afterany:40", "--parsable --dependency=afterany:41"
    ]  # fmt: skip
    assert "#SBATCH --array=0-1%2\n" in (tmp_path / "logs/41.sbatch").read_text()
    assert list(named_jobs(arrays)) == ["40_0", "40_1", "41_0", "41_1", "42_0"]


def test_arrays_that_were_taken_before_a_refusal_are_named(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in("sbatch", LIMITED.format(folder=tmp_path, broken="41"))
    stand_in("scontrol", "echo 'MaxArraySize            = 2'")
    runs = named([[f"seed={n}"] for n in range(5)], [f"{n}.pt" for n in range(5)])
    with pytest.raises(InputError, match="and still there: 40\\. It says:\nsbatch: error: QOSMax"):
        submit(runs, ["python"], SlurmOptions(), tmp_path / "logs", "train")


@pytest.fixture
def answers(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`answers("0|RUNNING|None", "0|COMPLETED|None")`: what squeue says, call by call, the last one for ever."""
    monkeypatch.setattr(multirun, "RESULT_SECONDS", 0.1)
    monkeypatch.setattr(multirun, "SILENCE_SECONDS", 0.1)

    def give(*said: str) -> Path:
        for n, text in enumerate(said):
            (tmp_path / f"said.{n}").write_text(text + "\n")
        last = len(said) - 1
        calls = tmp_path / "squeue.calls"
        return stand_in(
            "squeue",
            f"n=$(($(wc -l < {calls}) - 1)); [ $n -lt {last} ] || n={last}; grep -q 'rror' {tmp_path}/said.$n && "
            f"{{ cat {tmp_path}/said.$n >&2; exit 1; }}; cat {tmp_path}/said.$n",
        )

    return give


def watch_one(folder: Path) -> None:
    watch([Array("7", RUNS[:1])], folder, poll_seconds=0.02)


def test_a_watch_ends_when_the_job_has_done_its_work(
    answers: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers("0|PENDING|Priority", "slurm_load_jobs error: timed out", "0|RUNNING|None", "0|RUNNING|None",
            "0|PENDING|BeginTime", "0|RUNNING|None", "0|COMPLETED|None")  # fmt: skip
    watch_one(tmp_path)
    log = os.path.relpath(tmp_path / "7_0.log")
    assert capsys.readouterr().out.split("\n") == [
        "7_0  PENDING (Priority)", "7_0  RUNNING", "7_0  PENDING (BeginTime)", "7_0  RUNNING", "7_0  COMPLETED",
        f"job  state      exit code  run           {'log'}", f"7_0  COMPLETED  0          +domain=math  {log}", "",
    ]  # fmt: skip


def test_a_job_that_slurm_has_forgotten_is_judged_by_its_exit_code(
    answers: Callable[..., Path], tmp_path: Path
) -> None:
    answers("slurm_load_jobs error: Invalid job id specified")
    (tmp_path / "7_0.exit").write_text("0\n")
    watch_one(tmp_path)


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        (
            "0|FAILED|NonZeroExitCode",
            "1\n",
            r"7_0 \(\+domain=math\): FAILED, exit code 1\. The end of .*7_0\.log:\n  reading\n  error: no text",
        ),
        ("0|NODE_FAIL|NodeDown", None, r"7_0 \(\+domain=math\): NODE_FAIL, exit code unknown\. The end of"),
        ("0|CANCELLED|None", "", r"\): CANCELLED, exit code unknown\. "),
        ("0|PENDING|launch failed requeued held", None, r"\): PENDING \(launch failed requeued held\), exit"),
        ("slurm_load_jobs error: Invalid job id specified", None, r"\): gone from the queue, exit"),
        ("slurm_load_jobs error: Unable to contact slurm controller", None, "squeue has not answered for"),
    ],
)
def test_a_job_without_a_result_ends_the_watch(
    answers: Callable[..., Path], tmp_path: Path, said: str, code: str | None, message: str
) -> None:
    answers("0|RUNNING|None", said)
    (tmp_path / "7_0.log").write_text("reading\nerror: no text\n\n")
    if code is not None:
        (tmp_path / "7_0.exit").write_text(code)
    with pytest.raises(InputError, match=message):
        watch_one(tmp_path)


def test_one_failed_job_does_not_hide_the_others(answers: Callable[..., Path], tmp_path: Path) -> None:
    answers("0|FAILED|NonZeroExitCode\n1|RUNNING|None", "0|FAILED|NonZeroExitCode\n1|COMPLETED|None")
    for n in (0, 1):
        (tmp_path / f"7_{n}.exit").write_text(f"{1 - n}\n")
    with pytest.raises(InputError, match=r"1 of 2 jobs did not finish\. What is done stays done\.\n7_0 .*left no log"):
        watch([Array("7", RUNS)], tmp_path, poll_seconds=0.02)


def test_all_jobs_of_all_arrays_are_in_the_table_and_all_failures_are_told(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(multirun, "RESULT_SECONDS", 0.0)
    stand_in(
        "squeue",
        """case "$*" in *" 7 "*) echo '0|FAILED|NonZeroExitCode'; echo '1|COMPLETED|None' ;;
        *) echo '0|NODE_FAIL|NodeDown' ;; esac""",
    )
    (tmp_path / "7_0.exit").write_text("1\n")
    (tmp_path / "7_0.log").write_text("error: no text\n")
    runs = named([[f"seed={n}"] for n in range(3)], [f"{n}.pt" for n in range(3)])
    with pytest.raises(InputError) as refused:
        watch([Array("7", runs[:2]), Array("8", runs[2:])], tmp_path, poll_seconds=0.02)
    said = str(refused.value)
    assert said.startswith("2 of 3 jobs did not finish.")
    assert "7_0 (seed=0): FAILED, exit code 1. The end of" in said and "error: no text" in said
    assert "8_0 (seed=2): NODE_FAIL, exit code unknown. It left no log" in said
    table = [line.split()[:4] for line in capsys.readouterr().out.splitlines()[-3:]]
    assert table == [
        ["7_0", "FAILED", "1", "seed=0"], ["7_1", "COMPLETED", "0", "seed=1"], ["8_0", "NODE_FAIL", "unknown", "seed=2"]
    ]  # fmt: skip


def test_who_stops_watching_is_told_how_to_stop_the_jobs(
    answers: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers("0|RUNNING|None")

    def interrupt(_seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(multirun.time, "sleep", interrupt)
    with pytest.raises(SystemExit) as stopped:
        watch_one(tmp_path)
    assert stopped.value.code == 130
    assert capsys.readouterr().err == "stopped watching; the jobs go on. To stop them: scancel 7\n"


@pytest.fixture
def sweep(stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Calls `train_expert.py` with these arguments, in an empty folder."""

    def call(*arguments: str) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")
        monkeypatch.setattr(sys, "argv", [str(ROOT / "train_expert.py"), *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        GlobalHydra.instance().clear()
        run_hydra(lambda _cfg: pytest.fail("it ran here"), "train_expert")

    return call


def test_a_detached_multirun_says_how_to_follow_and_collect(
    sweep: Callable[..., None],
    stand_in: StandIn,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stand_in("sbatch", f'cat > {tmp_path}/given; env > {tmp_path}/env; echo "41;cluster"')
    monkeypatch.setenv("SLURM_JOB_ID", "3")  # as on a node that was asked for interactively
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    sweep(
        "-m", "+domain=math,code", "run.devices=2", "hydra/launcher=slurm_detached", "hydra.launcher.partition=gpu",
        "hydra.sweep.dir=logs/x",
    )  # fmt: skip
    assert capsys.readouterr().out.splitlines() == [
        "submitted as 41, 2 jobs:",
        "  41_0  +domain=math -> experts/math.pt",
        "  41_1  +domain=code -> experts/code.pt",
        "queue:    squeue -j 41",
        "follow:   tail -F logs/x/41_*.log",
        "stop:     scancel 41",
        "collect:  flexo-merge experts/math.pt experts/code.pt -o model/   (when squeue is empty)",
    ]
    script = (tmp_path / "given").read_text()
    assert (tmp_path / "here/logs/x/41.sbatch").read_text() == script
    assert "#SBATCH --partition=gpu\n" in script and "#SBATCH --ntasks-per-node=2\n" in script
    assert "  1) set -- +domain=code run.devices=2 ;;\nesac" in script
    assert f'srun --kill-on-bad-exit=1 {sys.executable} {ROOT / "train_expert.py"} "$@"\n' in script
    names = {line.split("=")[0] for line in (tmp_path / "env").read_text().splitlines()}
    assert "HYDRA_FULL_ERROR" not in names, "a job would answer a refusal with a traceback"
    assert {name for name in names if name.startswith("SLURM_")} == {"SLURM_CONF"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (SLURM, "hydra/launcher: SLURM is for the runs of a multirun. Add -m"),
        (["-m", *SLURM, "hydra.launcher.minutes=soon"], "hydra.launcher.minutes: 'soon' does not fit"),
        (["-m", *SLURM, "run.devices=1,2", "output=${run.devices}.pt"], "Submit them apart"),
        (["-m", "+domain=math", "hydra/launcher=slrm"], "there is no such hydra/launcher. Did you mean 'slurm'?"),
    ],
)
def test_what_cannot_be_submitted_is_refused(
    sweep: Callable[..., None],
    stand_in: StandIn,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    sbatch = stand_in("sbatch", "echo 7")
    with pytest.raises(SystemExit) as stopped:
        sweep(*arguments)
    assert stopped.value.code == 1 and message in capsys.readouterr().err
    assert not sbatch.exists()


def test_without_slurm_one_message_says_so(
    sweep: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        sweep("-m", "+domain=math", "hydra/launcher=slurm")
    assert stopped.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("error: hydra/launcher=slurm: there is no sbatch on PATH.") and err.count("\n") == 1


JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "jupyter", "SLURM_NTASKS": "4"}
STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_TASKS": "4"}


@pytest.mark.parametrize(
    ("variables", "devices", "kind"),
    [
        ({}, 1, ""),
        (JOB, 1, "Lightning"),  # salloc, a notebook, a terminal of an editor
        (JOB, 2, "Lightning"),  # which starts the other process itself
        (JOB | STEP | {"SLURM_STEP_ID": "4294967290"}, 1, "Lightning"),  # the shell that salloc gives on some clusters
        (JOB | {"SLURM_PROCID": "0"}, 1, "Lightning"),  # a batch script without srun
        (JOB | STEP | {"SLURM_STEP_NUM_TASKS": "1"}, 2, "Lightning"),  # srun --pty bash
        (JOB | STEP, 4, "SLURM"),
        (JOB | STEP | {"SLURM_JOB_NAME": "bash"}, 4, "SLURM"),
        (JOB | STEP | {"TORCHELASTIC_RUN_ID": "x"}, 8, "TorchElastic"),  # srun torchrun
    ],
)
def test_ranks_are_those_of_slurm_only_inside_a_step(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], devices: int, kind: str
) -> None:
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in (variables | {"SLURM_NTASKS_PER_NODE": "4"} if kind == "SLURM" else variables).items():
        monkeypatch.setenv(name, value)
    found = slurm_environment(devices, 1)
    assert [type(one).__name__.removesuffix("Environment") for one in found] == ([kind] if kind else [])
    if kind == "SLURM":
        assert not found[0].auto_requeue and (found[0].global_rank(), found[0].world_size()) == (1, 4)


def test_a_step_of_another_size_is_refused_and_ntasks_alone_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (JOB | STEP).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_NTASKS_PER_NODE", "")
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")  # as `srun --ntasks=4` leaves it; put back after the test
    with pytest.raises(InputError, match=r"run\.devices=1, run\.nodes=1: .* has 4 of them\. .*--ntasks-per-node=1"):
        slurm_environment(1, 1)
    (environment,) = slurm_environment(4, 1)
    environment.validate_settings(4, 1)


LOCAL = ROOT / "launch/local_slurm.sh"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["up"], 77, "missing, and no apt-get to install it with"),
        (["run", "true"], 77, "no SLURM here: "),
        (["status"], 1, "slurmctld does not run"),
        (["env"], 0, "export SLURM_CONF="),
        (["down"], 0, ""),
        ([], 2, "eval \"$(bash launch/local_slurm.sh env)\""),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_local_slurm_on_a_machine_without_packages(tmp_path: Path, arguments: list[str], code: int, said: str) -> None:
    """Its PATH has the tools that it calls, and nothing of SLURM, nor apt-get."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "id", "hostname", "mkdir", "chmod", "xargs", "sort", "sed", "cat", "rm", "grep", "tr", "env"):
        (tools / name).symlink_to(next(p for d in ("/bin", "/usr/bin") if (p := Path(d, name)).exists()))
    text = LOCAL.read_text().replace("PATH=$PATH:/usr/sbin:/sbin\n", "")
    done = subprocess.run(
        [tools / "bash", "-c", text, "launch/local_slurm.sh", *arguments] if arguments else ["bash", LOCAL],
        env={"PATH": str(tools) if arguments else os.environ["PATH"], "FLEXO_SLURM": str(tmp_path / "s")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and said in done.stdout + done.stderr
