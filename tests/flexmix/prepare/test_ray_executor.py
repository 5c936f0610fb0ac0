"""Preparing on Ray: on a cluster of this machine, started and ended by the command itself."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import flexmix.commands.flexo_data
from flexmix.documents.source import Source
from flexmix.prepare.executors import Stage
from flexmix.prepare.options import Options
from flexmix.prepare.pipeline import prepare
from flexmix.prepare.ray_executor import Ray, _why_unfinished
from flexo.errors import InputError
from tests.flexmix.prepare.test_pipeline import STORIES, contents
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call, listing

OPTIONS = Options(duplicates="near", task_bytes=12_000)


def quiet(_line: str) -> None:
    pass


def test_without_ray_the_message_names_the_extra(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    arguments = [
        write_jsonl(tmp_path / "a.jsonl", STORIES),
        "-o",
        tmp_path / "out",
        "--tokenizer",
        tiny_anchor,
        "--ray",
    ]
    assert call(flexmix.commands.flexo_data.main, "prepare", *arguments) == 1
    assert capsys.readouterr().err == "error: Ray is not installed. Install it with pip install 'flexo[ray]'.\n"
    assert listing(tmp_path) == {"a.jsonl"}
    assert call(flexmix.commands.flexo_data.main, "prepare", *arguments, "--slurm", "--partition", "main") == 2
    assert "not both" in capsys.readouterr().err


def test_a_task_that_failed_is_named_with_its_log(tmp_path: Path) -> None:
    stage, failed = Stage("read", "reading", [], 7, tmp_path), tmp_path / "failed"
    said = _why_unfinished(stage, [3, 4], failed)
    assert said.startswith("2 of 7 tasks did not finish on Ray, the first is task 3 (no log of it; a node may be lost")
    assert said.endswith("task_00003.log. What is done is kept: run the same command again.") and failed.is_file()
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs/task_00003.log").write_text("Traceback\nZeroDivisionError: division by zero\n\n")
    assert "task 3 (ZeroDivisionError: division by zero). Its log" in _why_unfinished(stage, [3, 4], failed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:placement_group:DeprecationWarning")  # datatrove's way of asking for room
def test_ray_gives_the_same_shards(tiny_anchor: Path, tmp_path: Path) -> None:
    """Byte for byte; and datatrove's silence about a failed task is one message here, with what was done kept."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'flexo[ray]'")
    good = Source(str(write_jsonl(tmp_path / "in/a.jsonl", STORIES)))
    late = write_jsonl(tmp_path / "in/b.jsonl", STORIES[:50])
    sources = [good, Source(str(late))]
    prepare(sources, tmp_path / "local", tiny_anchor, OPTIONS, say=quiet)
    prepare(sources, tmp_path / "ray", tiny_anchor, OPTIONS, workers=2, cluster=Ray(mem_gb=1), say=quiet)
    assert contents(tmp_path / "local") == contents(tmp_path / "ray")
    late.write_bytes(late.read_bytes() + b"no JSON\n")
    with pytest.raises(
        InputError, match=r"b.jsonl: line 51: not JSON .*Task \d of \d on Ray, its log: .*task_0000\d.log"
    ):
        prepare(sources, tmp_path / "bad", tiny_anchor, OPTIONS, workers=2, cluster=Ray(mem_gb=1), say=quiet)
    assert len(list((tmp_path / ".bad.preparing/stage-read/completions").glob("*"))) >= 2
    with pytest.raises(InputError, match=r"no node of this Ray cluster has a CPU and 99999 GB for a task"):
        prepare([good], tmp_path / "large", tiny_anchor, OPTIONS, cluster=Ray(mem_gb=99999), say=quiet)
    assert not (tmp_path / ".large.preparing").exists()
