"""The drill with real training and processes, and twenty owners who submit at once while others are killed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from federation.coordinator.found import add_owner
from federation.coordinator.refresh import refresh
from tests.federation.conftest import MakeWorld

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the first drill's experts are found by the second."""
    return tmp_path_factory.mktemp("drills") / "trained"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "sftp"])
def test_the_drill(kind: str, tmp_path: Path, trained: Path, request: pytest.FixtureRequest) -> None:
    """`launch/federation.sh`, which stops at what is not as promised; what is trained serves twice."""
    store = request.getfixturevalue("sftp") if kind == "sftp" else "folder"
    done = subprocess.run(
        ["bash", ROOT / "launch" / "federation.sh"],
        env=os.environ | {"BIN": str(BIN), "DRILL": str(tmp_path / "drill"), "STORE": store, "TRAINED": str(trained)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "done: all of it as promised" in done.stdout
    if not trained.exists():
        trained.symlink_to(tmp_path / "drill")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "sftp"])
def test_twenty_submit_at_once_and_every_third_is_killed(
    kind: str, make_world: MakeWorld, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    store = request.getfixturevalue("sftp") + str(tmp_path / "world" / "store") if kind == "sftp" else ""
    world = make_world(store=store)
    world.found()
    domains = [f"domain{n:02}" for n in range(20)]
    experts = {domain: world.expert(domain, seed=n) for n, domain in enumerate(domains)}  # no two alike
    for domain in domains:
        add_owner(world.coordinator, domain, world.key(domain).with_suffix(".pub"))
        world.home(domain)

    def start(domain: str) -> subprocess.Popen[bytes]:
        words = ["submit", experts[domain], "--key", world.key(domain), "--home", world.folder / domain]
        return subprocess.Popen(
            [sys.executable, "-m", "federation.commands.flexo_federation", *map(str, words)],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        )  # fmt: skip

    running = {domain: start(domain) for domain in domains}
    began, killed = time.monotonic(), []
    while any(process.poll() is None for process in running.values()):
        time.sleep(0.3)
        refresh(world.coordinator)  # as cron would, in between
        whole(world.store)
        for n, (domain, process) in enumerate(running.items()):
            if n % 3 == 0 and process.poll() is None and time.monotonic() - began > 2 + n / 4:
                process.send_signal(signal.SIGKILL)
                killed.append(domain)
    said = {domain: process.stderr.read() for domain, process in running.items() if process.stderr}
    failed = {domain: said[domain] for domain, process in running.items() if process.wait() and domain not in killed}
    assert not failed
    refresh(world.coordinator)
    found = world.seen()
    lost = [one.domain for one in found.owners if not one.in_force]
    assert set(lost) <= set(killed), "who was not killed is in force"
    for domain in lost:
        assert start(domain).wait() == 0, "and who was goes on with the same command"
    refresh(world.coordinator)
    assert [one.domain for one in world.seen().owners if one.in_force] == domains
    whole(world.store)
    for owner in world.seen().owners:
        for one in owner.submissions.values():
            assert (world.store / one.stored_as).read_bytes() == experts[owner.domain].read_bytes()


def whole(store: Path) -> None:
    """No file that shows is half there."""
    for folder in ("metadata", "events", "history"):
        for path in (store / folder).iterdir():
            if not path.name.startswith("."):
                assert path.read_bytes().rstrip().endswith(b"}"), path


def test_the_drill_is_a_script_that_bash_reads() -> None:
    assert shutil.which("bash")
    subprocess.run(["bash", "-n", ROOT / "launch" / "federation.sh"], check=True)
