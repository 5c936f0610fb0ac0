"""The kit for a GPU, on the CPU: its checks hold here, a part that is cut off keeps its figures, and all of it runs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu
from benchmarks.gpu_parts.checks import CHECKS, Skipped, said
from tests.source_tree import ROOT
from tests.trainers.runs import shard


def holds(name: str, device: str) -> None:
    try:
        CHECKS[name](device)
    except Skipped as skipped:
        pytest.skip(str(skipped))


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_checked_on_a_gpu_holds_here(name: str) -> None:
    holds(name, "cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("name", CHECKS)
def test_a_gpu_computes_what_is_promised(name: str) -> None:
    holds(name, "cuda")


def test_a_check_that_fails_is_a_line_of_the_report() -> None:
    def fails(_device: str) -> float:
        raise AssertionError("not the same")

    assert said(fails, "cpu") == "FAILED: AssertionError: not the same" and said(lambda _device: 0.25, "cpu") == "0.25"


def test_figures_are_kept_of_a_part_that_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.gpu_parts import speed

    def endless(note: Any, _device: str) -> None:
        note(tokens_per_second=12.5)
        os.write(1, b"so far\n")  # what pytest puts in the place of stdout is not the process's
        while True:
            os.getppid()

    monkeypatch.setattr(speed, "machine", endless)
    options, part = argparse.Namespace(toy=False, device="cpu"), gpu.Part("machine", "speed.machine", {}, 1.0)
    found = gpu._apart(part, options, 100.0, tmp_path, "fork")
    assert (found["ended"], found["figures"], found["log"]) == ("cut off", {"tokens_per_second": 12.5}, "so far\n")
    assert gpu._apart(part, options, 1.0, tmp_path, "fork")["ended"] == "no time was left"
    results = {"command": "python benchmarks/gpu.py", "commit": "abc", "said": "Load 1.", "parts": {"machine": found}}
    assert "cut off after 1 s.\n\n| | |\n|---|---|\n| tokens_per_second | 12.5 |" in gpu.page(results)


def test_lacking_packages_are_named_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "WHEELS", {"torch": ("torch", "99.1", 900), "nowhere": ("no_such_module", "1.2", 3)})
    older, absent = gpu.lacking()
    assert older == f"torch>=99.1: {torch.__version__}; its wheel has about 900 MB"
    assert absent == "nowhere>=1.2: lacking; its wheel has about 3 MB"


@pytest.mark.slow  # every part, a study among them
def test_all_of_it_runs_at_toy_size(tmp_path: Path) -> None:
    for name in ("public", "math", "code"):
        for split, documents in (("train", 200), ("test", 20)):
            shard(tmp_path / "corpora" / name / f"{split}.jsonl.gz", name, documents)
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--toy", "--device", "cpu", "--seconds", "3600"]
    command += ["--corpora", tmp_path / "corpora", "-o", tmp_path / "gpu.json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [*parts] == [part.name for part in gpu.parts(True, tmp_path)]
    assert {name: part["ended"] for name, part in parts.items()} == dict.fromkeys(parts, "done"), done.stdout
    assert not [line for line in parts["correctness"]["figures"].values() if "FAILED" in line]
    for row in ("anchor", "merged", "as-published", "BTM top-2", "math"):
        assert 0 < parts["study"]["figures"][f"{row}, math"] < 20
    assert "## study" in (tmp_path / "gpu.md").read_text()
