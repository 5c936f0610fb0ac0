"""Locks: one holder, given back by any end of its process, and a warning where there are none."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flexo.errors import InputError
from flexo.locks import hold, take

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from flexo.locks import hold
with hold(Path("lock")):
    print(flush=True)
    sys.stdin.read()
"""


def test_one_holds_a_lock_until_its_process_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None and holder.stdout.readline() == b"\n"
        with pytest.raises(InputError, match="somebody works here"), hold(Path("lock"), "somebody works here"):
            raise AssertionError("held twice")
        holder.kill()
    with hold(Path("lock"), "somebody works here"):
        assert take(Path("lock")) is None
    with hold(Path("lock")):
        pass


def test_a_file_that_its_holder_removed_is_no_lock(tmp_path: Path) -> None:
    """Who opened it before it was removed makes a new one, which everybody finds."""
    path, flock = tmp_path / "lock", __import__("fcntl").flock
    calls = []

    def removed_meanwhile(descriptor: int, how: int) -> None:
        flock(descriptor, how)
        calls.append(how)
        if len(calls) == 1:
            path.unlink()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fcntl.flock", removed_meanwhile)
        descriptor = take(path)
    assert descriptor is not None
    assert len(calls) == 2 and path.exists() and take(path) is None
    os.close(descriptor)


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL])
def test_where_there_are_no_locks_a_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    def flock(_descriptor: int, _how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with hold(tmp_path / "lock", "held"):
        pass
    assert capsys.readouterr().err.startswith(f"warning: {tmp_path}: this file system has no locks.")
