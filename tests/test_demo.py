"""The order of the demo, with commands that only note how they were called: who is given what, what is done twice."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Each makes its output as the real one does. `python` stands for both training scripts; FAIL names one that breaks off.
STAND_INS = {
    "flexo-data": 'for d in public math code; do mkdir -p "$3/$d"; echo $d | tee "$3/$d/train.jsonl.gz" '
    '> "$3/$d/test.jsonl.gz"; done',
    "python": 'for a in "$@"; do case $a in output=*) out=${a#output=};; esac; done; '
    '[ "$FAIL" = "$(basename "$out")" ] && exit 1; case $out in *.pt) cat shard/* > "$out";; *) mkdir "$out";; esac',
    "flexo-merge": "mkdir model",
    "flexo-eval": "echo bits; echo {} > matrix.json",
    "flexo-generate": "echo text",
}


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name, body in STAND_INS.items():
        path = folder / name
        path.write_text(f'#!/usr/bin/env bash\nset -e\necho "$(basename "$PWD") {name} $*" >> "$CALLS"\n{body}\n')
        path.chmod(0o755)
    return folder


def demo(commands: Path, domains: str = "math code", fail: str = "") -> tuple[int, list[str], str]:
    """Exit code, the calls made, and what was said."""
    calls = commands.parent / "calls"
    calls.write_text("")
    variables = {"BIN": commands, "DEMO": commands.parent / "demo", "DOMAINS": domains, "CALLS": calls, "FAIL": fail}
    done = subprocess.run(
        ["bash", ROOT / "launch/demo.sh"],
        env=os.environ | {name: str(value) for name, value in variables.items()},
        capture_output=True,
        text=True,
    )
    return done.returncode, calls.read_text().splitlines(), done.stdout + done.stderr


def called(calls: list[str]) -> list[str]:
    """Where each ran and its name, those of owners, who run at the same time, in the order of their names."""
    names = [" ".join(call.split()[:2]) for call in calls]
    owners = [n for n, name in enumerate(names) if not name.startswith("demo ")]
    for n, name in zip(owners, sorted(names[n] for n in owners), strict=True):
        names[n] = name
    return names


def test_every_owner_is_given_their_own_shard_alone(commands: Path) -> None:
    code, calls, said = demo(commands)
    assert code == 0, said
    assert called(calls) == [
        "demo flexo-data", "demo python", "code python", "math python", "demo flexo-merge", "demo flexo-eval",
        *["demo flexo-generate"] * 3,
    ]  # fmt: skip
    assert calls[0] == "demo flexo-data sample -o corpora --domains public,math,code"
    folder = commands.parent / "demo"
    for domain in ("math", "code"):
        owner = folder / "owners" / domain
        assert sorted(str(path.relative_to(owner)) for path in owner.rglob("*.gz")) == [
            "shard/test.jsonl.gz", "shard/train.jsonl.gz"
        ]  # fmt: skip
        assert (folder / f"experts/{domain}.pt").read_text() == f"{domain}\n{domain}\n", "another owner's text was read"
    (merge,) = [call for call in calls if "flexo-merge" in call]
    assert merge.endswith("flexo-merge experts/math.pt experts/code.pt -o model --anchor anchor")
    assert "Try next" in said and str(folder) in said


def test_a_broken_demo_goes_on_where_it_broke(commands: Path) -> None:
    code, calls, _ = demo(commands, fail="code.pt")
    assert code != 0 and called(calls)[2:] == ["code python", "math python"]
    assert (commands.parent / "demo/experts/math.pt").exists(), "the other owner goes on"
    assert not (commands.parent / "demo/model").exists()
    code, calls, said = demo(commands)
    assert code == 0, said
    assert called(calls)[:4] == ["demo flexo-data", "code python", "demo flexo-merge", "demo flexo-eval"]
    code, calls, _ = demo(commands)
    assert code == 0 and called(calls) == ["demo flexo-data", *["demo flexo-generate"] * 3]


def test_a_domain_that_could_not_be_built_is_named(commands: Path) -> None:
    code, calls, said = demo(commands, domains="math poems")
    assert code == 1 and called(calls) == ["demo flexo-data"]
    assert "error: poems could not be built on this machine" in said and 'DOMAINS="math code educational"' in said


def test_owners_train_at_the_same_time_and_stop_together(commands: Path) -> None:
    python = commands / "python"
    waits = python.read_text().replace(
        "case $out", 'case $out in *.pt) echo $$ > "$PIDS/$$"; exec sleep 60;; esac; case $out', 1
    )
    python.write_text(waits)
    pids = commands.parent / "pids"
    pids.mkdir()
    variables = {"BIN": commands, "DEMO": commands.parent / "demo", "DOMAINS": "math code", "PIDS": pids}
    variables |= {"CALLS": commands.parent / "calls", "FAIL": ""}
    env = os.environ | {name: str(value) for name, value in variables.items()}
    script = subprocess.Popen(["bash", ROOT / "launch/demo.sh"], env=env, stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 20
        while len(running := [int(path.name) for path in pids.iterdir()]) < 2 and time.monotonic() < until:
            time.sleep(0.02)
        assert len(running) == 2, "both owners at once"
        script.send_signal(signal.SIGINT)
        assert script.wait(20) == 130
    finally:
        script.kill()
    assert not any(Path(f"/proc/{pid}").exists() for pid in running), "an owner's process was left behind"
