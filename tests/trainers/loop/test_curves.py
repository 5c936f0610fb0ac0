"""Metrics of a run that was interrupted, and the picture of it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger

from trainers.expert.module import mass_and_entropy
from trainers.expert.train import Result
from trainers.loop.curves import draw_curves, read_metrics


def test_a_step_that_was_taken_twice_counts_as_it_was_the_last_time(tmp_path: Path) -> None:
    for version, rows in {2: "0,1.5,\n1,1.4,\n", 10: "1,1.3,\n2,,7\n"}.items():
        folder = tmp_path / f"metrics/version_{version}"
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text("step,train/loss,own/loss\n" + rows)
    assert read_metrics(tmp_path) == {"train/loss": {0: 1.5, 1: 1.3}, "own/loss": {2: 7.0}}


def test_a_run_leaves_its_curves_and_what_the_router_did_in_every_layer(train: Callable[..., Result]) -> None:
    pytest.importorskip("matplotlib")
    result = train("math", logger=partial(CSVLogger, name="metrics"))
    work = result.path.with_suffix(".run")
    metrics = read_metrics(work)
    assert len(metrics["train/loss"]) == 12
    assert all(rate > 0 for rate in metrics["train/tokens_per_second"].values())
    assert all(0 <= entropy <= 1 for entropy in metrics["train/router_entropy"].values())
    masses = [list(metrics[f"own/router_mass/layer_{n}"].values())[-1] for n in range(2)]
    assert sum(masses) / 2 == pytest.approx(result.header.training.router_mass, abs=1e-5)
    assert result.curves == work / "curves.png"
    assert result.curves.read_bytes().startswith(b"\x89PNG")


def test_no_metrics_no_picture(tmp_path: Path) -> None:
    assert draw_curves(tmp_path, "nothing") is None


def test_entropy_is_in_bits() -> None:
    import torch

    mass, entropy = mass_and_entropy(torch.tensor([[[[0.0, 0.0], [0.0, 100.0]]]]))
    torch.testing.assert_close(mass, torch.tensor([[[0.5, 1.0]]]))
    torch.testing.assert_close(entropy, torch.tensor([[[1.0, 0.0]]]))
