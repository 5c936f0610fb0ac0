"""The runs of a multirun that are done one after the other in this process: one that fails does not stop the others."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig, OmegaConf

from flexo.errors import InputError


class RunsHere:
    """What became of each run so far."""

    def __init__(self) -> None:
        self.ended: list[tuple[str, int, str]] = []  # what sets it apart, its exit code, its output

    @contextmanager
    def run(self, cfg: DictConfig, settings: Any) -> Iterator[None]:
        """One run: what it refuses is said at once, and kept for the end. Ctrl-C and SIGTERM end them all."""
        name = settings.job.override_dirname
        devices = OmegaConf.select(cfg, "run.devices") or 1
        nodes = OmegaConf.select(cfg, "run.nodes") or 1
        if devices != 1 or nodes != 1:  # each of its processes would do the whole multirun
            raise InputError(
                f"run.devices={devices}, run.nodes={nodes}: under -m, runs on several devices need a launcher that "
                "starts each by itself: hydra/launcher=slurm. Or start them one by one, without -m."
            )
        code = 1
        try:
            yield
            code = 0
        except InputError as error:
            sys.stderr.write(f"error: {name}: {error}\n")
        except Exception:
            traceback.print_exc()
        finally:
            self.ended.append((name, code, str(OmegaConf.select(cfg, "output") or "")))

    def end(self) -> None:
        """Says how each run ended, if one failed. Raises `InputError` then."""
        failed = [name for name, code, _ in self.ended if code]
        if not failed:
            return
        width = max(len(name) for name, _, _ in self.ended)
        lines = [f"{name:{width}}  exit code {code}  {output}" for name, code, output in self.ended]
        raise InputError(
            "\n".join([f"{len(failed)} of {len(self.ended)} runs failed. What is done stays done.", *lines])
        )
