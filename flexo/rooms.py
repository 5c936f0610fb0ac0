"""Where the rooms are: at the top level of a checkout, and inside this package in a wheel (`hatch_build.py`)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

PREFIX = "flexo." if Path(__file__).with_name("merge").is_dir() else ""


def module_name(name: str) -> str:
    """The name to import a room's module by, for a name that is known only at run time: `merge.planning.merge_plan`."""
    return PREFIX + name


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions that results state; a checkout can run without being installed, and has none then."""
    from importlib.metadata import PackageNotFoundError, version

    def stated(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return {package: stated(package) for package in packages}
