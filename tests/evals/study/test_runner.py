"""Order, skipping, resuming, failing and being killed, with commands that only write what they were told to make."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from evals.study.runner import Runner
from evals.study.steps import Step
from flexo.errors import InputError

STEPS = [
    Step("anchor", ("make", "anchor"), ()),
    Step("seed0/ours/math.pt", ("make", "seed0/ours/math.pt", "tokens=1"), ("anchor",)),
    Step("seed0/ours/code.pt", ("make", "seed0/ours/code.pt", "tokens=1"), ("anchor",)),
    Step("seed0/models/ours", ("make", "seed0/models/ours"), ("seed0/ours/math.pt", "seed0/ours/code.pt")),
]


def make(command: Sequence[str]) -> None:
    """What steps run here, in a process of its own."""
    made = Path(command[1])
    with Path("calls").open("a") as calls:
        calls.write(f"{made}\n")
    print("threads", os.environ["OMP_NUM_THREADS"], flush=True)
    if Path("fail").exists() and Path("fail").read_text() == str(made):
        sys.exit("error: no room for it")
    if Path("slow").exists():
        time.sleep(60)
    made.parent.mkdir(parents=True, exist_ok=True)
    made.write_text("made")


def run(folder: Path, steps: Sequence[Step] = STEPS, **options: object) -> list[str]:
    """What is said."""
    said: list[str] = []
    Runner(folder, say=said.append, call=make, **options).run(steps)  # type: ignore[arg-type]
    return said


def descendants(process: int) -> list[str]:
    """Processes that were started by this one, and by those."""
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return children + [other for child in children for other in descendants(int(child))]


def calls(folder: Path) -> list[str]:
    found = (folder / "calls").read_text().split()
    (folder / "calls").unlink()
    return found


def test_what_is_made_is_made_once_in_order_and_logged(tmp_path: Path) -> None:
    said = run(tmp_path)
    assert calls(tmp_path) == [step.makes for step in STEPS]
    assert said[:2] == ["4 runs, 0 of them done before", "[1/4] anchor"] and "nothing left" in said[-1]
    log = (tmp_path / "seed0/ours/math.log").read_text().splitlines()
    assert log[:2] == ["$ make seed0/ours/math.pt tokens=1", "threads 1"] and log[2].startswith("# done in ")
    assert run(tmp_path) == ["4 runs, 4 of them done before"]
    (tmp_path / "seed0/models/ours").unlink()
    run(tmp_path, jobs=3)
    assert calls(tmp_path) == ["seed0/models/ours"]


def test_a_failure_names_its_log_and_the_next_start_goes_on(tmp_path: Path) -> None:
    (tmp_path / "fail").write_text("seed0/ours/math.pt")
    with pytest.raises(InputError, match=r"seed0/ours/math failed[^!]*seed0/ours/math\.log ends[^!]*no room for it"):
        run(tmp_path)
    assert calls(tmp_path) == ["anchor", "seed0/ours/math.pt"]
    with pytest.raises(InputError, match=r"math failed, 1 runs"):
        run(tmp_path, keep_going=True)
    assert calls(tmp_path) == ["seed0/ours/math.pt", "seed0/ours/code.pt"]
    (tmp_path / "fail").unlink()
    assert run(tmp_path)[0] == "4 runs, 2 of them done before"
    assert calls(tmp_path) == ["seed0/ours/math.pt", "seed0/models/ours"]


def test_what_another_command_made_is_refused_before_anything_is_run(tmp_path: Path) -> None:
    run(tmp_path)
    (tmp_path / "anchor").unlink()
    other = [*STEPS[:2], Step(STEPS[2].makes, ("make", STEPS[2].makes, "tokens=2"), ("anchor",)), STEPS[3]]
    calls(tmp_path)
    with pytest.raises(InputError, match=r"code\.pt: made by another command[^!]*tokens=1\n[^!]*tokens=2\n"):
        run(tmp_path, other)
    assert not (tmp_path / "calls").exists()
    (tmp_path / "seed0/ours/code.pt").unlink()
    run(tmp_path, other)
    assert (tmp_path / "seed0/ours/code.log").read_text().startswith("$ make seed0/ours/code.pt tokens=2\nthreads")


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stopped_study_takes_its_runs_with_it_and_goes_on(tmp_path: Path, stop: signal.Signals) -> None:
    (tmp_path / "slow").touch()
    code = "import sys; from tests.evals.study.test_runner import run; from flexo.console import refusals\n"
    code += "from pathlib import Path\nwith refusals(): run(Path(sys.argv[1]))"
    study = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stderr=subprocess.DEVNULL)
    children: list[str] = []
    while not (tmp_path / "calls").exists():
        assert study.poll() is None
        time.sleep(0.02)
        children = descendants(study.pid)
    study.send_signal(stop)
    assert study.wait() == {signal.SIGKILL: -9, signal.SIGTERM: 143, signal.SIGINT: 130}[stop]
    assert children
    for child in children:
        until = time.monotonic() + 10
        while Path(f"/proc/{child}").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
            assert time.monotonic() < until, f"{child} goes on"
            time.sleep(0.02)
    (tmp_path / "slow").unlink()
    run(tmp_path)
    assert calls(tmp_path) == ["anchor", *(step.makes for step in STEPS)]
