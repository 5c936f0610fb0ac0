"""What all four trainings share: what they refuse, say, write down, and leave behind."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flexo.errors import InputError
from tests.trainers.runs import TRAINER, data_options
from trainers.loop import run as module
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run import Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path / "made", data_options(tmp_path / "tokens"), OptimizerOptions(lr=1.0), LossOptions(), TRAINER)


def test_a_model_folder_needs_a_free_place_and_whole_devices(run: Run) -> None:
    run.check_whole("an anchor")
    with pytest.raises(InputError, match=r"run\.strategy=fsdp: an anchor is trained whole on every device\. Use ddp"):
        replace(run, trainer=replace(TRAINER, strategy="fsdp")).check_whole("an anchor")
    run.output.mkdir()
    (run.output / "file").touch()
    with pytest.raises(InputError, match="not empty"):
        run.check_whole("an anchor")


def test_settings_are_what_decides_about_the_result(run: Run, tmp_path: Path) -> None:
    assert run.settings.keys() == {"data", "optimizer", "loss", "precision", "seed"}
    for other in (
        replace(run, output=tmp_path / "elsewhere", logger=print, resume=False, say=lambda _line: None),
        replace(run, trainer=replace(TRAINER, log_every=7, checkpoint_seconds=1.0, accumulate=2)),
        replace(run, data=replace(run.data, cache=tmp_path / "elsewhere")),
    ):
        assert other.settings == run.settings
    for name, value in (("seed", 1), ("loss", LossOptions(lm_z=0.0)), ("optimizer", OptimizerOptions(lr=2.0))):
        changes: dict[str, Any] = {name: value}
        assert replace(run, **changes).settings != run.settings
    assert run.extent == {"tokens": 32 * 4 * 12, "steps": 12, "seed": 0}
    assert replace(run, data=data_options(tmp_path, tokens=32 * 4 * 3 - 1)).extent["tokens"] == 32 * 4 * 2, (
        "whole steps"
    )


def test_a_run_is_seeded_and_its_checkpoint_goes_at_the_end_alone(run: Run) -> None:
    drawn = []
    for _ in range(2):
        torch.rand(3)
        with run.work_folder(run.settings) as work:
            drawn.append(torch.rand(3))
            (work / "last.ckpt").touch()
        assert sorted(path.name for path in work.iterdir()) == ["lock", "settings.json"]
    assert torch.equal(*drawn)
    with pytest.raises(KeyboardInterrupt), run.work_folder(run.settings) as work:
        (work / "last.ckpt").touch()
        raise KeyboardInterrupt
    assert (work / "last.ckpt").exists()


def test_the_first_device_speaks_and_clears_up_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    run = replace(run, say=said.append)
    run.tell("first")
    with run.work_folder(run.settings) as work:
        (work / "last.ckpt").touch()
        monkeypatch.setattr(module, "is_first", lambda: False)
        run.tell("second")
    assert said == ["first"] and (work / "last.ckpt").exists()
