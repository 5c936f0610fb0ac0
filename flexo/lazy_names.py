"""The face of the package: `flexo.load_model` is imported from its room when it is first asked for.

`__init__.pyi` says where each name is at home; type checkers read that file, and so does this module. It imports
little, for every command passes here before it does anything.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class Face(ModuleType):
    """A package whose public names are resolved one by one."""

    _homes: dict[str, tuple[str, str]]  # name -> module, and its name there

    def __getattr__(self, name: str) -> Any:
        if name in self._homes:
            module, there = self._homes[name]
            value = getattr(import_module(module), there)
        elif name == "__version__":
            from importlib.metadata import version

            value = version(self.__name__)
        else:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        self.__dict__[name] = value
        return value

    def __dir__(self) -> list[str]:
        return sorted({*self.__dict__, *self._homes, "__version__"})

    def __setattr__(self, name: str, value: object) -> None:
        """Keeps a public name what it is: in a wheel, an import of the room `flexo.merge` would take its place."""
        if not (name in self._homes and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


def show_face(package: str) -> list[str]:
    """Makes a package resolve the names of its `__init__.pyi`, and returns them."""
    module = sys.modules[package]
    with open(f"{module.__path__[0]}/__init__.pyi", encoding="utf-8") as stub:  # noqa: PTH123 - pathlib takes longer
        homes = homes_of(stub.read())
    module.__dict__["_homes"] = homes
    module.__class__ = Face
    return sorted(homes)


def homes_of(stub: str) -> dict[str, tuple[str, str]]:
    """Where each public name of a stub is at home. A stub's lines are imports, and other names for what they import."""
    homes: dict[str, tuple[str, str]] = {}
    for line in stub.splitlines():
        match line.split():
            case ["from", module, "import", *names]:
                homes |= {part.split()[0]: (module, part.split()[0]) for part in " ".join(names).split(",")}
            case [name, "=", there]:
                homes[name] = homes.pop(there)
    return homes
