"""The data of one training run as a Lightning data module: own and public text, their mixture, the held-out sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses

from flexmix.packing.loaders import EvalLoader, Stream, TrainLoader
from flexmix.packing.mixture import Source, mix
from flexmix.packing.windows import Packed
from flexo.errors import InputError


class TextModule(L.LightningDataModule):
    """Serves packed batches for training and one loader per held-out set.

    The place in training is in its state, which Lightning keeps in checkpoints: a resumed run sees each batch once,
    also on another number of devices. `batch_size` is that of all devices together, and each reads its rows of the
    same batch; a run on 4 devices sees the batches of a run on 1.

    Args:
        train: the owner's windows (for an anchor, the public ones), or several weighted sources.
        held_out: name -> windows, validated in this order, by every device in full.
        public: public windows to mix in.
        public_share: the share of public windows, from 0 up to but not including 1.
        batch_size: windows per step, over all devices.
        steps: optimiser steps of the whole run.
        seed: fixes the order of windows.
        temperature: of the mixture of sources, see `flexmix.packing.mixture.mixture_shares`.
        eval_windows: at most this many windows of each held-out set.
        parts: in how many pieces a device reads its rows of a batch, for the accumulation of gradients.
    """

    def __init__(
        self,
        train: Packed | Sequence[Source],
        held_out: dict[str, Packed],
        *,
        batch_size: int,
        steps: int,
        seed: int,
        public: Packed | None = None,
        public_share: float = 0.0,
        temperature: float = 1.0,
        eval_windows: int = 256,
        parts: int = 1,
    ) -> None:
        super().__init__()
        self.held_out_names = list(held_out)
        sources = train if isinstance(train, Sequence) else [Source(train)]
        self.own = mix(sources, temperature, seed)
        self.public = Stream(public, seed) if public is not None else None
        self.public_share, self.batch_size, self.steps, self.parts = public_share, batch_size, steps, parts
        self._train = self._loader(0, 1)
        self._held_out = [EvalLoader(windows, batch_size, eval_windows) for windows in held_out.values()]

    def train_dataloader(self) -> TrainLoader:
        """This device's loader, at the place of the module's state.

        Raises `InputError` if the batch cannot be shared out evenly.
        """
        rank, devices = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if (rank, devices) != (self._train.rank, self._train.devices):
            state = self._train.state_dict()
            self._train = self._loader(rank, devices)
            self._train.load_state_dict(state)
        return self._train

    def val_dataloader(self) -> list[EvalLoader]:
        return self._held_out

    def state_dict(self) -> dict[str, Any]:
        """The number of batches that were read, and what decides which those were. Plain values."""
        return self._train.state_dict() | {"plan": self._train.plan()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind the batches that were read.

        Raises `InputError` if they were batches of other text, windows, weights or another seed.
        """
        then, now = state_dict["plan"], self._train.plan()
        if changed := sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)):
            name = changed[0]
            raise InputError(
                f"this checkpoint is of a run over other batches: {name} was {then.get(name)}, now {now.get(name)}. "
                "Resume with the text and settings of then, or start over with resume=false."
            )
        self._train.load_state_dict(state_dict)

    def _loader(self, rank: int, devices: int) -> TrainLoader:
        share, size, steps = self.public_share, self.batch_size, self.steps
        if size % (devices * self.parts):
            raise InputError(
                f"data.batch_size={size} on {devices} devices in {self.parts} parts: every part needs the same number "
                f"of windows. Choose a multiple of {devices * self.parts}."
            )
        return TrainLoader(self.own, self.public, share, size, steps, rank, devices, self.parts)
