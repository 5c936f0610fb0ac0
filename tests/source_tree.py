"""The source as a tree: what imports what, lazy imports counted, and what the functions look like."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Set
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NO_NAMES = {"__init__.py", "__init__.pyi", "py.typed", "__pycache__"}  # in every folder, or none of ours


@cache
def sources() -> Mapping[str, Path]:
    """Dotted name -> file: of every room, of Hydra's plugins, and of the scripts at the top level."""
    rooms = [*(path.parent for path in ROOT.glob("*/__init__.py")), ROOT / "hydra_plugins"]
    files = [*ROOT.glob("*.py"), *(path for room in rooms for path in room.rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in files}


def imported(path: Path) -> set[str]:
    """The modules that a file imports, at the top or later: `from a import b` is of `a.b` if that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            modules = names & sources().keys()
            found |= modules
            if names - modules:
                found.add(node.module or "")
    return found


@cache
def module_imports() -> Mapping[str, Set[str]]:
    """Module -> those of ours that it imports."""
    return {name: (imported(path) & sources().keys()) - {name} for name, path in sources().items()}


def folder_imports() -> dict[str, set[str]]:
    """Folder -> those that its files import from; a file that lies in a room itself counts as a folder of its own."""
    places = {name: path.parent.relative_to(ROOT).parts for name, path in sources().items()}
    folders = {name: ".".join(parts) if len(parts) > 1 else name for name, parts in places.items()}
    found: dict[str, set[str]] = {folder: set() for folder in folders.values()}
    for name, others in module_imports().items():
        found[folders[name]] |= {folders[other] for other in others} - {folders[name]}
    return found


def circles(arrows: Mapping[str, Set[str]]) -> set[frozenset[str]]:
    """The groups in which each reaches each, of more than one (strongly connected components)."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = arrows[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    far = {name: reached(name) for name in arrows}
    groups = {frozenset(other for other in far[name] if name in far[other]) for name in arrows}
    return {group for group in groups if len(group) > 1}


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef, list[str]]]:
    """Every function: `file.py:name`, its node, and the lines of its file."""
    for path in sources().values():
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield f"{path.relative_to(ROOT).as_posix()}:{node.name}", node, text.splitlines()


def lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """The lines of a function's body, without its docstring, comments and empty lines."""
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    if not body:
        return 0
    inside = (line.strip() for line in lines[body[0].lineno - 1 : node.end_lineno])
    return sum(1 for line in inside if line and not line.startswith("#"))


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.arg]:
    """What a function takes, apart from the object or class that it belongs to."""
    found = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
    return [part for part in found if part is not None and part.arg not in ("self", "cls")]


def is_command(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether Typer reads the function's parameters as those of a command."""
    return any("typer." in ast.unparse(part.annotation) for part in parameters(node) if part.annotation is not None)
