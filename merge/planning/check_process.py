"""The check that `flexo-merge` makes before a merged folder appears: `flexo-check`, in a process of its own.

No model runs in this room, and nothing here imports `inference`: the check is started by its name, as a shell would. So
a merge needs numpy and Typer alone, and the memory of the check is free again when its process ends.
"""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from flexo.errors import InputError

CHECK = "inference.commands.flexo_check"
SMALL = 2_000_000_000  # bytes of tensors; loading them takes seconds, and about three times the memory in float32


def can_check() -> bool:
    """Whether transformers and the room that runs models are installed."""
    try:
        return find_spec("transformers") is not None and find_spec(CHECK) is not None
    except ModuleNotFoundError:  # a finder may raise rather than find nothing
        return False


def checked_unasked(nbytes: int) -> bool:
    """Whether a merge of `nbytes` of tensors is checked when nobody says."""
    return nbytes <= SMALL and can_check()


def check_by_running(folder: Path, anchor: Path) -> str:
    """Runs `flexo-check` on a merged folder and returns what it says; raises `InputError` if the model is not sound."""
    command = [sys.executable, "-m", CHECK, str(folder), "--anchor", str(anchor)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = done.stderr.strip().rpartition("error: ")[2] if done.returncode == 1 else done.stderr.strip()[-500:]
        raise InputError(
            f"the merged model did not pass its check, and was not kept: {reason or f'exit code {done.returncode}'} "
            "(--no-check merges without it)"
        )
    return done.stdout.rstrip()
