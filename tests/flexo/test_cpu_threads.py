"""Commands tell OpenMP how to share the machine before PyTorch is loaded, and leave alone what the user has set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexo import cpu_threads
from flexo.cpu_threads import (
    choose_how_to_wait,
    given_environment,
    share_processors,
    threads_of_one,
    usable_cores,
)

ROOT = Path(__file__).resolve().parents[2]
NAMES = (*cpu_threads.WAITING, *cpu_threads.THREADS)


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is set, by nobody, and the machine has eight cores."""
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(cpu_threads, "_ours", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)), raising=False)
    monkeypatch.setattr(cpu_threads, "OURS", Path("/nowhere"))
    monkeypatch.setattr(cpu_threads, "USED", Path("/nowhere"))


def group(monkeypatch: pytest.MonkeyPatch, folder: Path, ours: str, **files: str) -> None:
    """A machine on which this process is in these control groups."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("cpu_", "cpu.")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "ours").write_text(ours)
    monkeypatch.setattr(cpu_threads, "CGROUPS", folder)
    monkeypatch.setattr(cpu_threads, "OURS", folder / "ours")


V1 = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n"


@pytest.mark.parametrize(
    ("ours", "files", "cores"),
    [
        ("0::/a/b\n", {}, 8),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n"}, 8),
        ("0::/a/b\n", {"a__b__cpu_max": "250000 100000\n"}, 3),
        ("0::/a/b\n", {"a__b__cpu_max": "max 100000\n", "a__cpu_max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu_max": "50000 100000\n"}, 1),  # a container that sees its own group as the root
        ("0::/../x\n", {"cpu_max": "nonsense\n"}, 8),
        (V1, {"cpu,cpuacct__cpu_cfs_quota_us": "-1", "cpu,cpuacct__cpu_cfs_period_us": "100000"}, 8),
        (V1, {"cpu,cpuacct__cpu_cfs_quota_us": "200000", "cpu,cpuacct__cpu_cfs_period_us": "100000"}, 2),
        (V1, {"cpu__docker__x__cpu_cfs_quota_us": "400000", "cpu__docker__x__cpu_cfs_period_us": "100000"}, 4),
        (V1, {"cpu,cpuacct__cpu_cfs_quota_us": "1600000", "cpu,cpuacct__cpu_cfs_period_us": "100000"}, 8),
    ],
)
def test_the_quota_of_a_container_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, ours: str, files: dict[str, str], cores: int
) -> None:
    group(monkeypatch, tmp_path, ours, **files)
    assert usable_cores() == cores
    share_processors()
    choose_how_to_wait()
    assert os.environ.get("OMP_NUM_THREADS") == (None if cores == 8 else str(cores))
    assert {name: os.environ[name] for name in cpu_threads.ALONE} == cpu_threads.ALONE
    assert not {*NAMES} & given_environment().keys(), "a job elsewhere finds its own"


USED = "cpu  9 9 9 9 9 9 9 9 0 0\ncpu0 {} {} 0 50 0 0 0 {} 0 0\ncpu9 {} 0 0 0 0 0 0 0 0 0\nintr 5\n"


@pytest.mark.parametrize(
    ("user", "nice", "stolen", "not_ours", "threads", "shared"),
    [(0, 0, 0, 0, "", False), (4, 0, 0, 0, "", False), (6, 0, 0, 0, "", True), (0, 10, 0, 0, "", False),
     (2, 0, 4, 0, "", True), (0, 0, 0, 10, "", False), (10, 0, 0, 0, "7", False), (16, 0, 0, 0, "7", True),
     (6, 0, 0, 0, "8,2", True)],
)  # fmt: skip
def test_threads_sleep_where_others_leave_fewer_cores_than_there_are_threads(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, user: int, nice: int, stolen: int, not_ours: int, threads: str,
    shared: bool,
) -> None:  # fmt: skip
    """Counters of a tenth of a second, at a hundred ticks a second; of eight cores, the tenth is not ours."""
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    monkeypatch.setattr(cpu_threads, "USED", tmp_path / "stat")
    monkeypatch.setattr(os, "sysconf", lambda _name: 100)
    (tmp_path / "stat").write_text(USED.format(0, 0, 0, 0))
    after = USED.format(user, nice, stolen, not_ours)
    monkeypatch.setattr("flexo.cpu_threads.time.sleep", lambda _seconds: (tmp_path / "stat").write_text(after))
    choose_how_to_wait()
    found = {name: os.environ[name] for name in cpu_threads.ALONE}
    assert found == (cpu_threads.BESIDE_OTHERS if shared else cpu_threads.ALONE)


def test_nobody_looks_around_where_no_thread_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(cpu_threads, "_used_by_others", lambda: pytest.fail("looked"))
    choose_how_to_wait()
    assert os.environ["GOMP_SPINCOUNT"] == cpu_threads.ALONE["GOMP_SPINCOUNT"]


@pytest.mark.parametrize("name", cpu_threads.WAITING)
def test_how_to_wait_is_left_to_who_has_set_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "7")
    choose_how_to_wait()
    assert {one: os.environ[one] for one in NAMES if one in os.environ} == {name: "7"}
    assert given_environment()[name] == "7"


@pytest.mark.parametrize("name", cpu_threads.THREADS)
def test_the_number_of_threads_is_left_to_who_has_set_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    group(monkeypatch, tmp_path, "0::/\n", cpu_max="200000 100000\n")
    monkeypatch.setenv(name, "5")
    share_processors()
    assert {one: os.environ[one] for one in cpu_threads.THREADS if one in os.environ} == {name: "5"}
    assert threads_of_one(2) is None


def test_processes_of_one_run_share_the_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    group(monkeypatch, tmp_path, "0::/\n", cpu_max="400000 100000\n")
    share_processors()
    assert (threads_of_one(1), threads_of_one(2), os.environ["OMP_NUM_THREADS"]) == (None, 2, "2")
    monkeypatch.setattr(cpu_threads, "_ours", {})  # in the process that was started, it is as if the user had set it
    share_processors()
    assert threads_of_one(2) is None and os.environ["OMP_NUM_THREADS"] == "2"


COMMANDS = """
import importlib, os, sys
from flexo.commands.table import COMMANDS
from flexo.console import session
for command in COMMANDS:
    importlib.import_module(command.module)
loaded = sorted({"torch", "transformers"} & sys.modules.keys())
assert not loaded, f"{loaded}: loaded before OpenMP was told"
with session():
    assert "GOMP_SPINCOUNT" not in os.environ, "who does without PyTorch does not look around"
    import torch
    print(os.environ["GOMP_SPINCOUNT"], torch.get_num_threads())
"""


def test_every_command_is_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    command = [sys.executable, "-c", COMMANDS]
    if sys.platform == "linux":
        command = ["taskset", "-c", "0", *command]
    done = subprocess.run(command, env=environment | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [cpu_threads.ALONE["GOMP_SPINCOUNT"], "1"], "and follows the affinity mask"


@pytest.mark.skipif(not Path("/proc/stat").exists() or (os.cpu_count() or 1) < 2, reason="Linux, and two cores")
def test_a_command_sees_a_busy_core() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    code = "import os\nfrom flexo.console import session\n"
    code += "with session():\n    import torch\n    print(os.environ['GOMP_SPINCOUNT'])"
    command = [sys.executable, "-c", code]
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as busy:
        try:
            done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
        finally:
            busy.kill()
    assert done.stdout.split() == [cpu_threads.BESIDE_OTHERS["GOMP_SPINCOUNT"]], done.stderr


PRIVATE = """
import re, torch
from pathlib import Path
from flexo.cpu_threads import keep_freed_memory, return_freed_memory
def private(): return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
keep_freed_memory()
before = private()
kept = [torch.ones(4 << 20).bfloat16() for _ in range(16)]
del kept
held = private() - before
return_freed_memory()
kept = [torch.ones(4 << 20).bfloat16() for _ in range(16)]
print(held, private() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from Linux")
def test_memory_that_was_kept_for_steps_is_free_for_what_comes_after_them() -> None:
    """Sixteen tensors of 8 MB, each by way of one of 16 MB."""
    held, after = map(int, subprocess.check_output([sys.executable, "-c", PRIVATE], cwd=ROOT, text=True).split())
    assert held > 180
    assert after < 170, "without the return it is as much as was held"
