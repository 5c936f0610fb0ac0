"""Where the Hydra configs are: `configs/` in a checkout or an editable install, `flexo/_configs` in a wheel."""

from __future__ import annotations

from pathlib import Path


def config_dir() -> Path:
    """The folder that holds `train_anchor.yaml` and the config groups."""
    room = Path(__file__).resolve().parent
    for candidate in (room / "_configs", room.parent / "configs"):
        if (candidate / "train_expert.yaml").exists():
            return candidate
    raise AssertionError(f"no configs beside {room}: the installation is incomplete")
