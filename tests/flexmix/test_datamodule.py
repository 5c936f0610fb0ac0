from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812
import pytest
import torch

from flexmix.datamodule import TextModule
from flexmix.packing import Batch
from tests.flexmix.test_packing import rows, same, windows_of


def module_of(**options: Any) -> TextModule:
    defaults: dict[str, Any] = {"batch_size": 4, "steps": 9, "seed": 5, "eval_windows": 3}
    return TextModule(windows_of(6), {"own": windows_of(5), "public": windows_of(2)}, **defaults | options)


def test_held_out_sets_come_by_name_and_in_order() -> None:
    module = module_of()
    assert module.held_out_names == ["own", "public"]
    own, public = module.val_dataloader()
    assert [rows(batch) for batch in own] == [[0, 1, 2]]
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
