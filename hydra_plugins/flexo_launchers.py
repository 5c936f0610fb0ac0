"""How Hydra finds `hydra/launcher=slurm`: it takes launchers from packages of this name alone.

The work is in `trainers.slurm.multirun`. No `__init__.py` here: the package is shared by all that extend Hydra.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher


class SlurmLauncher(Launcher):
    """Runs a multirun as a SLURM array. Keywords: `trainers.slurm.jobs.SlurmOptions`, read anew for each run."""

    def __init__(self, **_options: Any) -> None:
        pass

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.loader, self.config = hydra_context.config_loader, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        from trainers.slurm.multirun import (
            launch,  # every program that uses Hydra in this environment imports this file
        )

        sweeps = [self.loader.load_sweep_config(self.config, list(overrides)) for overrides in job_overrides]
        launch(sweeps, job_overrides, self.config.hydra)
        return [JobReturn(overrides, status=JobStatus.COMPLETED) for overrides in job_overrides]
