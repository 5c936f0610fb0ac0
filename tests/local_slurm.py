"""A SLURM of one machine for the tests marked `slurm`, made with launch/local_slurm.sh."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

LOCAL_SLURM = Path(__file__).resolve().parents[1] / "launch/local_slurm.sh"
CANNOT = 77


@contextmanager
def local_slurm() -> Iterator[dict[str, str]]:
    """The environment in which sbatch reaches a cluster of two CPUs, which is gone afterwards.

    Uses the one that FLEXO_SLURM names, if it is set, and leaves it running. Skips with the script's own words where
    there can be none.
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_"))}
    given = "FLEXO_SLURM" in environment
    if not given:  # a short path, for sockets lie below it
        environment |= {"FLEXO_SLURM": tempfile.mkdtemp(prefix="slurm-", dir="/tmp"), "FLEXO_SLURM_CPUS": "2"}
    folder = environment["FLEXO_SLURM"]
    up = _call("up", environment)
    if up.returncode:
        if not given:
            shutil.rmtree(folder)
        (pytest.skip if up.returncode == CANNOT else pytest.fail)(up.stderr.strip())
    try:
        yield environment | {"SLURM_CONF": f"{folder}/slurm.conf"}
    finally:
        if not given:
            down = _call("down", environment, "--purge")
            assert down.returncode == 0, down.stderr


def _call(what: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    # to files, for daemons that inherit a pipe would keep it open
    with tempfile.TemporaryFile("w+") as said:
        done = subprocess.run(
            ["bash", LOCAL_SLURM, what, *arguments], env=environment, stdout=said, stderr=said, timeout=400
        )
        said.seek(0)
        return subprocess.CompletedProcess(done.args, done.returncode, "", said.read())
