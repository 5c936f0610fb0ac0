from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch

from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.packing.windows import Batch
from flexo.errors import InputError
from tests.flexmix.packing.test_loaders import rows, same, windows_of


def module_of(**options: Any) -> TextModule:
    defaults: dict[str, Any] = {"batch_size": 4, "steps": 9, "seed": 5, "eval_windows": 3}
    public = options.pop("public", None)
    held_out = {"own": windows_of(5), "public": windows_of(2)}
    return TextModule(windows_of(6), held_out, BatchOptions(**defaults | options), public)


def test_the_place_is_in_the_state_of_the_module() -> None:
    public = {"public": windows_of(3, first=1001), "public_share": 0.25}
    whole = list(module_of(**public).train_dataloader())
    module = module_of(**public)
    batches = iter(module.train_dataloader())
    read = [next(batches) for _ in range(4)]
    second = module_of(**public)
    second.load_state_dict(json.loads(json.dumps(module.state_dict())))
    rest = list(second.train_dataloader())
    assert all(map(same, [*read, *rest], whole)) and len(rest) == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 8}, "batch_size was 4, now 8"),
        ({"seed": 6}, "own was .*'seed': 5.*'seed': 6"),
        ({"public": windows_of(3), "public_share": 0.5}, "public was None"),
    ],
)
def test_a_place_in_other_batches_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message + ".*resume=false"):
        module_of(**change).load_state_dict(module_of().state_dict())


def test_devices_read_their_rows_and_go_on_where_others_stopped() -> None:
    whole = list(module_of().train_dataloader())
    first = module_of()
    batches = iter(first.train_dataloader())
    for _ in range(5):
        next(batches)
    parts = []
    for rank in (0, 1):
        module = module_of()
        module.trainer = SimpleNamespace(global_rank=rank, world_size=2)  # type: ignore[assignment]
        module.load_state_dict(first.state_dict())
        parts.append(list(module.train_dataloader()))
    for batch, one, two in zip(whole[5:], *parts, strict=True):
        assert torch.equal(torch.stack([one["labels"], two["labels"]], 1).flatten(0, 1), batch["labels"])


def test_a_batch_that_devices_cannot_share_is_refused() -> None:
    module = module_of()
    module.trainer = SimpleNamespace(global_rank=0, world_size=3)  # type: ignore[assignment]
    with pytest.raises(InputError, match=r"data\.batch_size=4 on 3 devices.*multiple of 3"):
        module.train_dataloader()


def test_held_out_sets_come_by_name_and_in_order() -> None:
    module = module_of()
    assert module.held_out_names == ["own", "public"]
    own, public = module.val_dataloader()
    assert [rows(batch) for batch in own] == [[0, 1, 3]]
    assert [rows(batch) for batch in public] == [[0, 1]]


def test_seed_and_share_decide_about_training_batches() -> None:
    public = {"public": windows_of(3, first=1001), "public_share": 0.25}
    first, second, other = (list(module_of(seed=seed, **public).train_dataloader()) for seed in (5, 5, 6))
    assert len(first) == 9 and all(map(same, first, second)) and not all(map(same, first, other))
    assert sum(int((~batch["own"]).sum()) for batch in first) == 9
    assert all(batch["own"].all() for batch in module_of().train_dataloader())


class Stop(Exception):  # noqa: N818
    """Ends a run in the middle."""


class Recorder(L.LightningModule):
    """Remembers the batches it is given, and stops being trained after `stop` of them."""

    def __init__(self, stop: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.stop, self.seen = stop, list[Batch]()

    def training_step(self, batch: Batch, _index: int) -> torch.Tensor:
        self.seen.append({name: part.clone() for name, part in batch.items()})
        return self.weight.sum()

    def on_train_batch_end(self, *_: Any) -> None:
        if self.stop == len(self.seen):
            self.trainer.save_checkpoint(Path(self.trainer.default_root_dir) / "middle.ckpt")
            raise Stop

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore")
def test_a_run_resumed_by_lightning_sees_each_batch_once(tmp_path: Path) -> None:
    def fit(recorder: Recorder, checkpoint: Path | None) -> list[Batch]:
        trainer = L.Trainer(
            max_steps=9, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, limit_val_batches=0,
        )  # fmt: skip
        module = module_of(public=windows_of(3, first=1001), public_share=0.3)
        trainer.fit(recorder, datamodule=module, ckpt_path=checkpoint, weights_only=True)
        return recorder.seen

    whole = fit(Recorder(), None)
    stopped = Recorder(stop=4)
    with pytest.raises(Stop):
        fit(stopped, None)
    resumed = fit(Recorder(), tmp_path / "middle.ckpt")
    assert len(whole) == 9 and len(resumed) == 5
    assert all(map(same, [*stopped.seen, *resumed], whole))


class Labels(Recorder):
    """Keeps each device's labels in a file of its own, and a checkpoint after three batches."""

    def on_train_batch_end(self, *_: Any) -> None:
        folder = Path(self.trainer.default_root_dir)
        torch.save([batch["labels"] for batch in self.seen], folder / f"{self.trainer.global_rank}.pt")
        if len(self.seen) == 3:
            self.trainer.save_checkpoint(folder / "middle.ckpt")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_processes_and_one_share_a_run(tmp_path: Path) -> None:
    """Slow, for Lightning starts processes: 2 devices read what 1 reads, and 1 goes on where 2 stopped."""

    def fit(devices: int, folder: Path, checkpoint: Path | None = None) -> list[torch.Tensor]:
        trainer = L.Trainer(
            max_steps=9, accelerator="cpu", devices=devices, strategy="ddp_fork" if devices > 1 else "auto",
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            default_root_dir=folder, limit_val_batches=0,
        )  # fmt: skip
        folder.mkdir()
        module = module_of(public=windows_of(3, first=1001), public_share=0.3)
        trainer.fit(Labels(), datamodule=module, ckpt_path=checkpoint, weights_only=True)
        parts = [torch.load(folder / f"{rank}.pt") for rank in range(devices)]
        return [torch.stack(rows, 1).flatten(0, 1) for rows in zip(*parts, strict=True)]

    two, one = fit(2, tmp_path / "two"), fit(1, tmp_path / "one")
    assert len(two) == len(one) == 9 and all(map(torch.equal, two, one))
    rest = fit(1, tmp_path / "rest", tmp_path / "two/middle.ckpt")
    assert len(rest) == 6 and all(map(torch.equal, rest, one[3:]))
