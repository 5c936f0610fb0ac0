"""The data of one training run as a Lightning data module: own and public text, their mixture, the held-out sets."""

from __future__ import annotations

import lightning as L  # noqa: N812 - the name everyone uses

from flexmix.packing import EvalLoader, Stream, TrainLoader, Windows


class TextModule(L.LightningDataModule):
    """Serves packed batches for training and one loader per held-out set.

    Lightning keeps the training loader's place in its checkpoints, so a resumed run sees each batch once.

    Args:
        train: the owner's windows (for an anchor, the public ones).
        held_out: name -> windows, validated in this order.
        public: public windows to mix in.
        public_share: the share of public windows, from 0 up to but not including 1.
        batch_size: windows per step.
        steps: optimiser steps of the whole run.
        seed: fixes the order of windows.
        eval_windows: at most this many windows of each held-out set.
    """

    def __init__(
        self,
        train: Windows,
        held_out: dict[str, Windows],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        public: Windows | None = None,
        public_share: float = 0.0,
        eval_windows: int = 256,
    ) -> None:
        super().__init__()
        self.held_out_names = list(held_out)
        own = Stream(train, seed)
        self._train = TrainLoader(own, Stream(public, seed) if public else None, public_share, batch_size, steps)
        self._held_out = [EvalLoader(windows, batch_size, eval_windows) for windows in held_out.values()]

    def train_dataloader(self) -> TrainLoader:
        return self._train

    def val_dataloader(self) -> list[EvalLoader]:
        return self._held_out
