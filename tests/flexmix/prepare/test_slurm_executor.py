"""Preparing on SLURM: what is asked of it, with stand-ins for its commands, and the whole of it where there is one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flexmix.documents.source import Source
from flexmix.prepare.executors import Slurm
from flexmix.prepare.options import Options
from flexmix.prepare.pipeline import prepare
from flexo.errors import InputError
from tests.flexmix.prepare.test_pipeline import STORIES, contents
from tests.flexmix.text import write_jsonl

OPTIONS = Options(duplicates="near", task_bytes=4000)


@pytest.fixture
def partition(cluster: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The default one of a SLURM of one machine, which the commands of this test reach."""
    monkeypatch.setenv("SLURM_CONF", cluster["SLURM_CONF"])
    return "main"


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder first on PATH with an `sbatch` that writes down what it is asked for, and a `squeue` that lists none."""
    folder = tmp_path / "bin"
    folder.mkdir()
    scripts = {
        "sbatch": f'echo "$@" >> {folder}/asked; for last; do :; done; cat "$last" >> {folder}/asked; '
        f"echo Submitted batch job $(($(grep -c bash {folder}/asked)))",
        "squeue": f"cat {folder}/alive 2>/dev/null || exit 0",
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_ARRAY_TASK_ID", raising=False)
    return folder


def test_stages_are_submitted_as_arrays_that_wait_for_each_other(
    tiny_anchor: Path, tmp_path: Path, commands: Path
) -> None:
    sources, said = [Source(str(write_jsonl(tmp_path / "a.jsonl", STORIES[:100])))], []
    slurm = Slurm("main", time="10", qos="low", detach=True, arguments={"account": "us"})
    assert prepare(sources, tmp_path / "out", tiny_anchor, OPTIONS, workers=3, cluster=slurm, say=said.append) is None
    asked = (commands / "asked").read_text()
    for line in (
        "--array=0-1%3",
        "--partition=main",
        "--time=10",
        "--qos=low",
        "--account=us",
        "--kill-on-invalid-dep=yes",
    ):
        assert f"#SBATCH {line}" in asked
    assert asked.count("launch_pickled_pipeline") == 3
    assert "--dependency=afterok:1" in asked and "--dependency=afterok:2" in asked
    assert said[0] == "submitted to SLURM: 1, 2, 3"
    (commands / "alive").write_text("PENDING\n")  # while jobs wait or run, nothing is submitted again
    assert prepare(sources, tmp_path / "out", tiny_anchor, OPTIONS, workers=3, cluster=slurm, say=said.append) is None
    assert (commands / "asked").read_text() == asked
    (commands / "alive").unlink()
    found = prepare(sources, tmp_path / "out", tiny_anchor, OPTIONS, say=said.append)  # and the rest may be done here
    assert found is not None and found.read == 100


def test_jobs_that_vanish_are_one_message(tiny_anchor: Path, tmp_path: Path, commands: Path) -> None:
    sources = [Source(str(write_jsonl(tmp_path / "a.jsonl", STORIES[:100])))]
    with pytest.raises(InputError, match=r"17 tasks did not finish on SLURM. Their output is in .*slurm_logs. What is"):
        prepare(sources, tmp_path / "out", tiny_anchor, OPTIONS, cluster=Slurm("main"), say=lambda _line: None)


def test_a_refused_job_is_one_message(tiny_anchor: Path, tmp_path: Path, commands: Path) -> None:
    sources = [Source(str(write_jsonl(tmp_path / "a.jsonl", STORIES)))]
    (commands / "sbatch").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(InputError, match=r"sbatch did not take the job .*exit status 1.*Is this a SLURM login node"):
        prepare(sources, tmp_path / "out", tiny_anchor, OPTIONS, cluster=Slurm("main"), say=lambda _line: None)


@pytest.mark.slurm
def test_slurm_gives_the_same_shards(tiny_anchor: Path, tmp_path: Path, partition: str) -> None:
    source = Source(str(write_jsonl(tmp_path / "in/a.jsonl", STORIES)))
    slurm = Slurm(partition, time="5", mem_gb=1)
    prepare([source], tmp_path / "local", tiny_anchor, OPTIONS, say=lambda _line: None)
    prepare([source], tmp_path / "slurm", tiny_anchor, OPTIONS, workers=2, cluster=slurm, say=lambda _line: None)
    assert contents(tmp_path / "local") == contents(tmp_path / "slurm")


@pytest.mark.slurm
def test_bad_input_in_a_job_is_the_same_message(tiny_anchor: Path, tmp_path: Path, partition: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", STORIES)
    good = path.read_bytes()
    path.write_bytes(good + b"no JSON\n")
    slurm = Slurm(partition, time="5", mem_gb=1)
    with pytest.raises(InputError, match=r"a.jsonl: line 401: not JSON"):
        prepare([Source(str(path))], tmp_path / "out", tiny_anchor, OPTIONS, cluster=slurm, say=lambda _line: None)
