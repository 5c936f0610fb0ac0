"""The data of one training run as a Lightning data module: own and public text, their mixture, the held-out sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses

from flexmix.packing.loaders import EvalLoader, Seat, Stream, TrainLoader
from flexmix.packing.mixture import WeightedWindows, mix
from flexmix.packing.windows import Packed
from flexo.errors import InputError

ORDER = "plan"  # its name in checkpoints


@dataclass(frozen=True)
class BatchOptions:
    """Which windows are in which batch of a run, and how many are measured on."""

    batch_size: int  # windows per step, over all devices
    steps: int  # optimiser steps of the whole run
    seed: int  # fixes the order of windows
    public_share: float = 0.0  # of the windows, from 0 up to but not including 1
    temperature: float = 1.0  # of the mixture of sources, see `flexmix.packing.mixture.mixture_shares`
    eval_windows: int = 256  # of each held-out set, at most
    parts: int = 1  # in how many parts a device reads its rows of a batch, for the accumulation of gradients


class TextModule(L.LightningDataModule):
    """Serves packed batches for training and one loader per held-out set.

    The place in training is in its state, which Lightning keeps in checkpoints: a resumed run sees each batch once,
    also on another number of devices. `batch_size` is that of all devices together, and each reads its rows of the
    same batch; a run on 4 devices sees the batches of a run on 1.

    Args:
        train: the owner's windows (for an anchor, the public ones), or several weighted sources.
        held_out: name -> windows, validated in this order, by every device in full.
        options: which of them are in which batch.
        public: public windows to mix in, needed for a share above 0.
    """

    def __init__(
        self,
        train: Packed | Sequence[WeightedWindows],
        held_out: dict[str, Packed],
        options: BatchOptions,
        public: Packed | None = None,
    ) -> None:
        super().__init__()
        self.held_out_names, self.options = list(held_out), options
        sources = train if isinstance(train, Sequence) else [WeightedWindows(train)]
        self.own = mix(sources, options.temperature, options.seed)
        self.public = Stream(public, options.seed) if public is not None else None
        self._train = self._loader(0, 1)
        self._held_out = [
            EvalLoader(windows, options.batch_size, options.eval_windows) for windows in held_out.values()
        ]

    def train_dataloader(self) -> TrainLoader:
        """This device's loader, at the place of the module's state.

        Raises `InputError` if the batch cannot be shared out evenly.
        """
        rank, devices = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        if replace(self._train.seat, rank=rank, devices=devices) != self._train.seat:
            state = self._train.state_dict()
            self._train = self._loader(rank, devices)
            self._train.load_state_dict(state)
        return self._train

    def val_dataloader(self) -> list[EvalLoader]:
        return self._held_out

    def state_dict(self) -> dict[str, Any]:
        """The number of batches that were read, and what decides which those were. Plain values."""
        return self._train.state_dict() | {ORDER: self._train.order()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on behind the batches that were read.

        Raises `InputError` if they were batches of other text, windows, weights or another seed.
        """
        then, now = state_dict[ORDER], self._train.order()
        if changed := sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name)):
            name = changed[0]
            raise InputError(
                f"this checkpoint is of a run over other batches: {name} was {then.get(name)}, now {now.get(name)}. "
                "Resume with the text and settings of then, or start over with resume=false."
            )
        self._train.load_state_dict(state_dict)

    def _loader(self, rank: int, devices: int) -> TrainLoader:
        options, parts = self.options, self.options.parts
        if options.batch_size % (devices * parts):
            raise InputError(
                f"data.batch_size={options.batch_size} on {devices} devices in {parts} parts: every part needs the "
                f"same number of windows. Choose a multiple of {devices * parts}."
            )
        seat = Seat(rank, devices, parts)
        return TrainLoader(self.own, self.public, options.public_share, options.batch_size, options.steps, seat)
