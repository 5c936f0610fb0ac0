"""Callbacks for Lightning: progress with rate and time left; checkpoints at intervals and on signals, written whole."""

from __future__ import annotations

import signal
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from flexo.atomic_files import new_file
from flexo.console import Advance, progress
from trainers.loop.finite import NotFiniteError, finite_weights


class TokenProgress(L.Callback):
    """Shows how much is trained and measured, with rate and time left, on the first device of a run.

    Logs the tokens per second of each step and, if the FLOPs of a token are known, FLOP/s and their share of the peak.

    Args:
        label: of the bar.
        tokens_per_step, steps: of the run, over all devices.
        flops_per_token: of a training step; None: FLOP/s are not logged.
        peak_flops: of all devices together; None: the share of the peak is not logged.
    """

    def __init__(
        self,
        label: str,
        tokens_per_step: int,
        steps: int,
        flops_per_token: float | None = None,
        peak_flops: float | None = None,
    ) -> None:
        self.label, self.tokens_per_step, self.steps = label, tokens_per_step, steps
        self.flops_per_token, self.peak_flops = flops_per_token, peak_flops
        self._stack = ExitStack()
        self._advance: Advance = lambda _amount: None

    def on_train_start(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._advance = self._stack.enter_context(progress(self.label, self.steps * self.tokens_per_step, "tokens"))
        self._advance(trainer.global_step * self.tokens_per_step)
        self._began = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        self._advance(self.tokens_per_step / trainer.accumulate_grad_batches)
        if (args[2] + 1) % trainer.accumulate_grad_batches:
            return
        now = time.perf_counter()
        rate, self._began = self.tokens_per_step / (now - self._began), now
        module.log("train/tokens_per_second", rate)
        if self.flops_per_token is not None:
            module.log("train/tflops", rate * self.flops_per_token / 1e12)
            if self.peak_flops is not None:
                module.log("train/utilisation", rate * self.flops_per_token / self.peak_flops)

    def on_validation_start(self, trainer: L.Trainer, _module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            windows = sum(loader.count for loader in trainer.datamodule.val_dataloader())  # type: ignore[attr-defined]
            self._advance = self._stack.enter_context(progress("measuring held-out text", windows, "windows"))

    def on_validation_batch_end(
        self, _trainer: L.Trainer, _module: Any, _outputs: Any, batch: Any, *_args: Any
    ) -> None:
        self._advance(len(batch["labels"]))

    def on_validation_end(self, *_args: Any) -> None:
        self._stack.close()

    def on_train_end(self, *_args: Any) -> None:
        self._stack.close()

    def on_exception(self, *_args: Any) -> None:
        self._stack.close()


class Checkpoints(L.Callback):
    """Saves to one file every `seconds`, and before stopping on Ctrl-C or SIGTERM, always between two steps.

    A checkpoint taken in the middle of a step would not resume bit for bit, so a signal only asks for one. A second
    Ctrl-C stops at once and keeps the last checkpoint. A second SIGTERM changes nothing: SLURM sends several.
    """

    def __init__(self, path: Path, seconds: float) -> None:
        self.path, self.seconds = path, seconds
        self._stopped_by = 0
        self._previous: dict[int, Any] = {}

    def on_train_start(self, *_args: Any) -> None:
        self._saved = time.monotonic()
        for signum in (signal.SIGINT, signal.SIGTERM):
            self._previous[signum] = signal.signal(signum, self._ask)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, _outputs: Any, _batch: Any, index: int) -> None:
        if (index + 1) % trainer.accumulate_grad_batches:
            return
        # what one device has decided, all do: they save together, and none goes on alone
        asked = trainer.strategy.reduce_boolean_decision(bool(self._stopped_by), all=False)
        due = time.monotonic() - self._saved >= self.seconds
        if asked or trainer.strategy.reduce_boolean_decision(due, all=False):
            self._save(trainer, module)
            self._saved = time.monotonic()
        if asked:
            raise Stopped(self._stopped_by or signal.SIGTERM, self.path, trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, module: Any) -> None:
        self._restore()
        self._save(trainer, module)  # what comes after training can fail, and should not cost the training

    def on_exception(self, *_args: Any) -> None:
        self._restore()

    def _save(self, trainer: L.Trainer, module: Any) -> None:
        """Replaces the checkpoint; raises `NotFiniteError` if there are weights that are not finite."""
        if not trainer.strategy.reduce_boolean_decision(finite_weights(module.trained())):
            raise NotFiniteError(f"step {trainer.global_step}: weights that are not finite after it.")
        trainer.save_checkpoint(self.path, weights_only=False)

    def _ask(self, signum: int, _frame: Any) -> None:
        if self._stopped_by and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self._stopped_by = signum

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}


class WholeFiles(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it, so that the last good one is there at any moment.

    Lightning itself writes into the system's temporary folder and moves the file from there. To another disk a move is
    a copy, and an interruption can cut it short.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with new_file(Path(path), replace=True) as partial, partial.open("wb") as file:
            torch.save(checkpoint, file)


class Stopped(SystemExit):
    """Training was asked to stop and has saved its state; the exit code is that of the signal."""

    def __init__(self, signum: int, path: Path, step: int) -> None:
        super().__init__(128 + signum)
        self.said = f"stopped at step {step}, saved in {path}. The same command goes on from there."
