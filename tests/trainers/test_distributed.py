"""Runs on two devices, in two processes that talk over gloo, and in parts, against the run of one process."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from flexo.errors import InputError
from merge.formats.expert_file import ExpertFile, open_expert
from tests.trainers.runs import TRAINER
from trainers.distributed import measuring_device
from trainers.expert.train import Result

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = [
    "data.tokens=768", "data.length=32", "data.batch_size=4", "data.eval_windows=4", "data.moment_windows=8",
    "run.precision=32-true", "run.accelerator=cpu", "run.log_every=1", "optimizer.lr=5e-3",
    "optimizer.weight_decay=0.1", "optimizer.kind=adamw",
]  # fmt: skip


def arguments(anchor: Path, shards: Path, output: Path, *settings: str) -> list[str]:
    return [
        sys.executable, str(ROOT / "train_expert.py"), "+domain=math", f"corpora={shards}", f"anchor.path={anchor}",
        f"output={output}", f"data.cache={output.parent / 'tokens'}", *SETTINGS, *settings,
    ]  # fmt: skip


def command(anchor: Path, shards: Path, output: Path, *settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments(anchor, shards, output, *settings), capture_output=True, text=True, cwd=output.parent
    )


def trained(anchor: Path, shards: Path, output: Path, *settings: str) -> tuple[list[float], ExpertFile]:
    """The loss of every step, and the expert."""
    done = command(anchor, shards, output, *settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("router mass on own text") == 1, "one process speaks"
    assert "Warning" not in done.stderr and ": It is recommended" not in done.stderr
    (metrics,) = output.with_suffix(".run").glob("metrics/version_0/metrics.csv")
    losses = [float(row["train/loss"]) for row in csv.DictReader(metrics.open()) if row["train/loss"]]
    return losses, open_expert(output)


def public_weight(anchor: Path, name: str) -> torch.Tensor:
    """What a tensor of an expert file began as."""
    layer, _, part = name.removeprefix("layers.").partition(".")
    return load_file(anchor / "model.safetensors")[f"model.layers.{layer}.mlp.{part}"]


Alone = Callable[..., tuple[list[float], ExpertFile]]


@pytest.fixture(scope="module")
def alone(small_anchor: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Alone:
    """`alone("model.rank=4")`: what one process makes of these settings, each made once."""

    @cache
    def call(*settings: str) -> tuple[list[float], ExpertFile]:
        return trained(small_anchor, shards, tmp_path_factory.mktemp("alone") / "math.pt", *settings)

    return call


TWO = ("run.devices=2",)
FSDP = (*TWO, "run.strategy=fsdp")
ADAFACTOR = ("optimizer.kind=adafactor", "optimizer.lr=5e-2", "model.router_bias=-0.5")  # one bias on two devices
NORMUON = ("optimizer.kind=normuon",)
START = ("model.start={start}", "model.router_init=kept")


@pytest.mark.parametrize(
    ("model", "devices"),
    [
        pytest.param((), (*TWO, "run.strategy=ddp"), id="ddp", marks=pytest.mark.slow),
        pytest.param(
            NORMUON,
            (*FSDP, "run.accumulate=2", "run.activation_checkpointing=true"),
            id="fsdp, normuon, in parts, checkpointed",
        ),
        pytest.param((), (*FSDP, "run.accumulate=2"), id="fsdp, in parts", marks=pytest.mark.slow),
        pytest.param((), FSDP, id="fsdp", marks=pytest.mark.slow),
        pytest.param((), ("run.accumulate=2",), id="parts", marks=pytest.mark.slow),
        pytest.param((), ("run.compile=true",), id="compiled", marks=pytest.mark.slow),
        pytest.param(ADAFACTOR, (*TWO, "run.strategy=ddp"), id="ddp, adafactor", marks=pytest.mark.slow),
        pytest.param(ADAFACTOR, FSDP, id="fsdp, adafactor", marks=pytest.mark.slow),
        pytest.param(NORMUON, (*TWO, "run.strategy=ddp"), id="ddp, normuon", marks=pytest.mark.slow),
        pytest.param((*NORMUON, "model.rank=3"), FSDP, id="fsdp, normuon, low rank", marks=pytest.mark.slow),
        pytest.param(("model.rank=3",), FSDP, id="fsdp, low rank", marks=pytest.mark.slow),
        pytest.param(("model.first_layer=1",), FSDP, id="fsdp, upper layers", marks=pytest.mark.slow),
        pytest.param(START, FSDP, id="fsdp, from an expert", marks=pytest.mark.slow),
    ],
)
def test_the_loss_curve_and_the_expert_are_those_of_one_process(
    alone: Alone, small_anchor: Path, shards: Path, tmp_path: Path, model: tuple[str, ...], devices: tuple[str, ...]
) -> None:
    model = tuple(setting.format(start=alone()[1].path) if "{" in setting else setting for setting in model)
    losses, expert = trained(small_anchor, shards, tmp_path / "math.pt", *model, *devices)
    expected, reference = alone(*model)
    assert len(expected) == 6
    if "run.accumulate=2" not in devices:  # there, what is logged is one part of a step
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    for name in reference.header.tensors:
        if model[:1] == NORMUON and "_proj." in name:  # rounding is as large there as what is rounded
            apart = (expert.tensor(name) - reference.tensor(name)).norm()
            moved = (reference.tensor(name) - public_weight(small_anchor, name)).norm()
            assert apart < 0.1 * moved, f"{name}: {apart / moved:.3f} of the way apart"
            continue
        torch.testing.assert_close(
            expert.tensor(name), reference.tensor(name), rtol=1e-3, atol=1e-4, msg=lambda m, n=name: f"{n}: {m}"
        )
    ours, theirs = expert.header.training, reference.header.training
    assert ours.losses.own_after == pytest.approx(theirs.losses.own_after, abs=1e-3)
    assert ours.tokens == theirs.tokens


def test_a_batch_that_cannot_be_dealt_out_is_refused(train: Callable[..., Result], tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"data\.batch_size=4 on 1 devices in 3 parts.*multiple of 3"):
        train("math", output=tmp_path / "new/math.pt", trainer=replace(TRAINER, accumulate=3))
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        pytest.param((*TWO, "run.strategy=ddp"), id="ddp"),
        pytest.param(FSDP, id="fsdp"),
        pytest.param((*FSDP, *ADAFACTOR), id="fsdp, adafactor"),
        pytest.param((*FSDP, *NORMUON), id="fsdp, normuon"),
    ],
)
def test_a_run_stopped_on_two_devices_goes_on_bit_for_bit(
    small_anchor: Path, shards: Path, tmp_path: Path, settings: tuple[str, ...]
) -> None:
    settings = (*settings, "run.checkpoint_seconds=0")
    whole = trained(small_anchor, shards, tmp_path / "whole.pt", *settings)[1].header
    checkpoint = tmp_path / "cut.run/last.ckpt"
    with subprocess.Popen(arguments(small_anchor, shards, tmp_path / "cut.pt", *settings)) as process:
        deadline = time.monotonic() + 1200
        while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        process.wait(1200)
    assert checkpoint.exists() and not (tmp_path / "cut.pt").exists()
    done = command(small_anchor, shards, tmp_path / "cut.pt", *settings)
    assert done.returncode == 0 and "resuming from" in done.stderr
    again = open_expert(tmp_path / "cut.pt").header
    assert (again.tensors, again.training.losses.own_after) == (whole.tensors, whole.training.losses.own_after)


def test_moments_are_measured_on_a_gpu_if_the_run_is_to_use_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert measuring_device("auto") == torch.device("cuda", 3)
    assert measuring_device("cpu") is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert measuring_device("gpu") is None
