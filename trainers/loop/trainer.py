"""One training run with Lightning: validated before and after, checkpointed, resumed when it was cut short.

Everything about an unfinished run is in a work folder beside its output (`experts/math.run/` for `experts/math.pt`):
`last.ckpt`, `settings.json`, metrics. The same command finds it and goes on; other settings are refused.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L  # noqa: N812 - the name everyone uses
import torch

from flexmix.packing.datamodule import TextModule
from flexo.cpu_threads import keep_freed_memory, return_freed_memory
from flexo.errors import InputError
from trainers.distributed import StrategyName, computes_in_bf16, is_first, make_strategy
from trainers.loop.callbacks import Checkpoints, Stopped, TokenProgress, WholeFiles
from trainers.loop.finite import NotFiniteError
from trainers.loop.module import LitAnchor
from trainers.loop.run_folder import CHECKPOINT
from trainers.slurm.jobs import slurm_environment

Metrics = dict[str, float]
PRECISIONS = ("auto", "bf16-mixed", "bf16-true", "32-true", "32", "64-true")  # as lightning.Trainer names them


@dataclass(frozen=True)
class TrainerOptions:
    """Settings of Lightning's trainer, and how often a checkpoint is written."""

    precision: str = "auto"  # one of PRECISIONS
    accelerator: str = "auto"
    strategy: StrategyName = "auto"  # ddp: the whole model on every device; fsdp: spread over the devices
    devices: int = 1  # on each node
    nodes: int = 1
    accumulate: int = 1  # parts into which a device divides its windows of a step
    activation_checkpointing: bool = False  # a third more work, a fraction of the memory for activations
    compile: bool = False  # torch.compile of every decoder layer
    clip: float = 1.0  # gradient norm
    checkpoint_seconds: float = 120.0
    log_every: int = 10  # steps
    extra: dict[str, Any] = field(default_factory=dict)  # further arguments of lightning.Trainer

    def __post_init__(self) -> None:
        if min(self.devices, self.nodes, self.accumulate) < 1:
            raise InputError(
                f"run: devices {self.devices}, nodes {self.nodes} and accumulate {self.accumulate} must be positive."
            )
        if self.precision.startswith("16"):
            raise InputError(
                f"run.precision={self.precision}: fp16 needs loss scaling, which flexo leaves out; use bf16-mixed."
            )
        if self.precision not in PRECISIONS:
            raise InputError(f"run.precision={self.precision}: expected one of {', '.join(PRECISIONS)}.")

    def prepare(self, model: Any) -> None:
        """Applies to a model what these options change about it before training."""
        if self.activation_checkpointing:
            recompute_activations(model)
        if self.compile:
            for layer in model.model.layers:
                layer.compile()


def make_trainer(options: TrainerOptions, work: Path, logger: Any, progress: TokenProgress) -> L.Trainer:
    """Lightning's trainer for one run, whose checkpoints go to `work`.

    Args:
        options: what it is told; its precision has been resolved.
        work: the run's work folder.
        logger: makes a logger of Lightning's from `save_dir`, or None.
        progress: the bar on a terminal, and the rates in the log.
    """
    return L.Trainer(
        accelerator=options.accelerator,
        devices=options.devices,
        num_nodes=options.nodes,
        strategy=make_strategy(options.strategy, options.devices * options.nodes),
        accumulate_grad_batches=options.accumulate,
        precision=cast(Any, options.precision),  # Lightning names them one by one
        max_epochs=1,
        check_val_every_n_epoch=2,  # held-out text is read before and after, by us
        gradient_clip_val=options.clip or None,
        log_every_n_steps=options.log_every,
        logger=logger(save_dir=work) if logger else False,
        callbacks=[progress, Checkpoints(work / CHECKPOINT, options.checkpoint_seconds)],
        plugins=[WholeFiles(), *slurm_environment(options.devices, options.nodes)],
        default_root_dir=work,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **options.extra,
    )


def fit(trainer: L.Trainer, lit: LitAnchor, texts: TextModule, checkpoint: Path) -> tuple[Metrics, Metrics]:
    """Trains to the end of the steps, from `checkpoint` on if it is there.

    Returns:
        Held-out metrics before the first step and after the last.

    Raises:
        InputError: a loss, a gradient or a weight is not finite; the checkpoint is that of before.
    """
    keep_freed_memory()
    try:
        before = _validate(trainer, lit, texts)
        for name, value in before.items():
            if not math.isfinite(value):
                raise InputError(f"{name} is {value} before training. Is the model damaged, or run.precision wrong?")
        begun = str(checkpoint) if checkpoint.exists() else None
        trainer.fit(lit, datamodule=texts, ckpt_path=begun, weights_only=True)
        after = _validate(trainer, lit, texts)
    except NotFiniteError as error:
        kept = f"The checkpoint of before is kept: {checkpoint}." if checkpoint.exists() else "No checkpoint was made."
        raise InputError(
            f"{error} {kept} The same command comes to the same step. Look at what it read there, or start over with "
            "resume=false and a smaller optimizer.lr, a smaller run.clip or run.precision=32-true."
        ) from None
    except Stopped as stopped:
        if is_first():
            sys.stderr.write(stopped.said + "\n")
        raise
    except SystemExit as stop:  # Lightning makes an exit code of its own from Ctrl-C
        if isinstance(stop.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise
    finally:
        return_freed_memory()
    assert trainer.global_step == lit.steps, f"ended at step {trainer.global_step} of {lit.steps}"
    return before, after


def resolve_precision(precision: str, accelerator: str) -> str:
    """`auto` is bf16 where the hardware computes in it, else fp32; anything else is Lightning's own name."""
    if precision != "auto":
        return precision
    cuda = accelerator != "cpu" and torch.cuda.is_available()
    return "bf16-mixed" if computes_in_bf16(cuda) else "32-true"


def _validate(trainer: L.Trainer, lit: LitAnchor, texts: TextModule) -> Metrics:
    if not texts.held_out_names:
        return {}
    trainer.validate(lit, datamodule=texts, verbose=False, weights_only=True)
    return {name: float(value) for name, value in trainer.callback_metrics.items() if not name.startswith("train/")}


def recompute_activations(model: Any) -> None:
    """Makes a transformers model keep one hidden state per layer for backward, and compute the rest twice.

    transformers then also asks for a gradient of the embeddings, as the reentrant kind would need. Where embeddings are
    frozen nothing uses it, and it costs the backward of the whole first layer.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
