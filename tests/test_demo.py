"""The order of the demo, with commands that only note how they were called: who is given what, what is done twice."""

from __future__ import annotations

import os
import subprocess
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
    return [" ".join(call.split()[:2]) for call in calls]


def test_every_owner_is_given_their_own_shard_alone(commands: Path) -> None:
    code, calls, said = demo(commands)
    assert code == 0, said
    assert called(calls) == [
        "demo flexo-data", "demo python", "math python", "code python", "demo flexo-merge", "demo flexo-eval",
        *["demo flexo-generate"] * 3,
    ]  # fmt: skip
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
    assert code != 0 and called(calls)[-1] == "code python"
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
