"""Weights & Biases as one run across all starts of a training run, as after a requeue."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from flexo.atomic_files import new_file
from trainers.distributed import is_first
from trainers.loop.run_folder import CHECKPOINT

ID = "wandb.id"  # in the work folder


def wandb_logger(save_dir: Path, **settings: Any) -> Any:
    """Lightning's logger for `wandb`, under the id of the start before where this one goes on from its checkpoint."""
    from lightning.pytorch.loggers import WandbLogger

    return WandbLogger(save_dir=save_dir, id=run_id(save_dir) if is_first() else None, **settings)


def run_id(work: Path) -> str:
    """The id of the run in a work folder: kept there, and a new one where a run begins or starts over."""
    path = work / ID
    if not (path.exists() and (work / CHECKPOINT).exists()):
        with new_file(path, replace=True) as partial:
            partial.write_text(secrets.token_hex(4))
    return path.read_text()
