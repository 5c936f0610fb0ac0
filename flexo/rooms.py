"""Where the rooms are: at the top level of a checkout, and inside this package in a wheel (`hatch_build.py`)."""

from __future__ import annotations

from pathlib import Path

PREFIX = "flexo." if Path(__file__).with_name("merge").is_dir() else ""


def module_name(name: str) -> str:
    """The name to import a room's module by, for a name that is known only at run time: `merge.planning.merge_plan`."""
    return PREFIX + name
