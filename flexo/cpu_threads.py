"""How a command shares the machine with others: its threads, how long they wait in loops, and the memory it keeps.

Threads of a computation wait for each other at the end of each of its parts, in a loop that is ready at once and takes
the processor from whoever else could use it. On a busy machine that is the thread which they wait for. So they sleep
where others leave fewer cores free than there are threads, as PyTorch is loaded; elsewhere the loop is bounded, which
costs nothing, in case somebody comes later. Their number does not depend on others: results do, in the last digits, on
it. What a user has set stays.
"""

from __future__ import annotations

import ctypes
import math
import os
import sys
import time
from importlib.abc import MetaPathFinder
from pathlib import Path

# turns of GNU's loop, and milliseconds of Intel's and LLVM's; benchmarks/busy_machine.md
ALONE = {"GOMP_SPINCOUNT": "5000", "KMP_BLOCKTIME": "1"}
BESIDE_OTHERS = {"GOMP_SPINCOUNT": "0", "KMP_BLOCKTIME": "0"}
WAITING = ("OMP_WAIT_POLICY", *ALONE)  # who sets one has decided
SHARED = 0.5  # of a core that others use and a thread needs
LOOK = 0.1  # seconds
THREADS = ("OMP_NUM_THREADS", "OMP_THREAD_LIMIT", "MKL_NUM_THREADS")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
CGROUPS, OURS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
USED = Path("/proc/stat")

_ours: dict[str, str] = {}  # what was set here


def share_processors() -> None:
    """Sets what OpenMP reads when PyTorch is loaded: call it before.

    The number of threads is set only where a container has less time than it has cores: of cores that this process may
    not use, OpenMP knows by itself. How they wait is chosen when PyTorch is imported, so that what does without it does
    not wait for the look at what others do.
    """
    cores = usable_cores()
    if cores < _cores_of_mask() and not any(name in os.environ for name in THREADS):
        _set({"OMP_NUM_THREADS": str(cores)})
    if "torch" not in sys.modules and _before_pytorch not in sys.meta_path:
        sys.meta_path.insert(0, _before_pytorch)


class _BeforePyTorch(MetaPathFinder):
    """Finds no module; that PyTorch is looked for is the moment to choose how threads wait."""

    def find_spec(self, fullname: str, *_where: object) -> None:
        if fullname == "torch":
            sys.meta_path.remove(self)
            choose_how_to_wait()


_before_pytorch = _BeforePyTorch()


def choose_how_to_wait() -> None:
    """Lets threads sleep where others leave fewer cores than there are threads; looks at that for `LOOK` seconds."""
    if any(name in os.environ for name in WAITING):
        return
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(given) if given.isdecimal() else usable_cores()
    shared = threads > 1 and threads + _used_by_others() >= _cores_of_mask() + SHARED
    _set(BESIDE_OTHERS if shared else ALONE)


def given_environment() -> dict[str, str]:
    """The environment as the user gave it, for what runs on another machine."""
    return {name: value for name, value in os.environ.items() if _ours.get(name) != value}


def threads_of_one(processes: int) -> int | None:
    """How many threads each of several processes gets that this one starts here; those to come are told.

    None where the user has set a number, or OpenMP finds it by itself: who starts the processes then sees to it.
    """
    if processes == 1 or "OMP_NUM_THREADS" not in _ours:
        return None
    _set({"OMP_NUM_THREADS": str(max(1, usable_cores() // processes))})
    return int(_ours["OMP_NUM_THREADS"])


def usable_cores() -> int:
    """How many cores' worth of time this process may use: of its affinity mask, and of its container's quota."""
    return max(1, math.ceil(min(_cores_of_mask(), _quota())))


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks for the next step instead of returning their pages to the kernel.

    A step frees and allocates its logits and activations anew, and faulting the pages in again cost a quarter to a
    third of the time of a tiny model's step. Does nothing with another C library.
    """
    _tell_glibc(mmap_threshold=1 << 30, trim_threshold=(1 << 31) - 1)


def return_freed_memory() -> None:
    """Undoes `keep_freed_memory`, and returns what is free.

    Whatever makes large tensors one by one and keeps some of them would otherwise fill the holes between those that it
    has freed, which nothing as large fits into any more: an expert of 1.6 GB was exported in 5.4 instead of 2.8 GB.
    """
    if (libc := _tell_glibc(mmap_threshold=1 << 17, trim_threshold=1 << 17)) is not None:
        libc.malloc_trim(0)


def _tell_glibc(mmap_threshold: int, trim_threshold: int) -> ctypes.CDLL | None:
    """From which size on, in bytes, blocks have pages of their own, and how much may be free; None: another library."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return None
    libc.mallopt(M_MMAP_THRESHOLD, mmap_threshold)
    libc.mallopt(M_TRIM_THRESHOLD, trim_threshold)
    return libc


def _set(values: dict[str, str]) -> None:
    _ours.update(values)
    os.environ.update(values)


def _cores_of_mask() -> int:
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def _used_by_others() -> float:
    """How many of the cores that this process may use others keep busy, while it sleeps; 0 where Linux does not say."""
    before = _ticks()
    time.sleep(LOOK)
    return (_ticks() - before) / (LOOK * os.sysconf("SC_CLK_TCK"))


def _ticks() -> int:
    """Clock ticks in which this process's cores were busy, with work of low priority left out: it gives way."""
    used = 0
    try:
        for line in USED.read_text().splitlines():
            name, *counts = line.split()
            if name[:3] == "cpu" and name[3:].isdigit() and int(name[3:]) in os.sched_getaffinity(0):
                user, _nice, system, _idle, _waiting, *interrupts_and_stolen = map(int, counts[:8])
                used += user + system + sum(interrupts_and_stolen)
    except (OSError, ValueError):
        return 0
    return used


def _quota() -> float:
    """The cores that the narrowest of this process's control groups gives it time for; infinite without a limit."""
    try:
        lines = [line.split(":", 2) for line in OURS.read_text().splitlines()]
    except OSError:
        return math.inf
    found = [math.inf]
    for _, controllers, path in lines:
        if not controllers:  # version 2
            found += [_quota_2(folder) for folder in _upwards(CGROUPS, path)]
        elif "cpu" in controllers.split(","):
            found += [_quota_1(folder) for folder in _upwards(CGROUPS / controllers, path)]
            found += [_quota_1(folder) for folder in _upwards(CGROUPS / "cpu", path)]
    return min(found)


def _upwards(root: Path, path: str) -> list[Path]:
    """A control group and those that it is in. In a container its path may be the host's, and the root alone there."""
    group = root / path.lstrip("/")
    return [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]


def _quota_2(folder: Path) -> float:
    try:
        quota, period = (folder / "cpu.max").read_text().split()
        return math.inf if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf


def _quota_1(folder: Path) -> float:
    try:
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return math.inf if quota <= 0 else quota / int((folder / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError, ZeroDivisionError):
        return math.inf
