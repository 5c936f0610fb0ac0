"""How commands are found and started. The console scripts are functions of this module: `flexo.commands:flexo_merge`.

A function is found when it is asked for, so that a command imports its own room alone, wherever the rooms are.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import cast

from flexo.commands.table import COMMANDS, Command


def __getattr__(name: str) -> Callable[[], None]:
    for command in COMMANDS:
        if command.function == name and not command.script:
            return main_of(command)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def main_of(command: Command) -> Callable[[], None]:
    """The function behind a command's console script."""
    return cast(Callable[[], None], import_module(command.module).main)


def start(command: Command, shown: str, arguments: Sequence[str]) -> None:
    """Runs a command in this process, as a shell would; `shown` is what it calls itself in its help."""
    sys.argv = [shown, *arguments]
    if command.script:
        import runpy

        # as `python -m` does it: what trains on several devices starts itself again by the name of its main module
        runpy.run_module(command.module, run_name="__main__", alter_sys=True)
    else:
        main_of(command)()
