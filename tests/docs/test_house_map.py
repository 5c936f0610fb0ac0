"""The map in CONTRIBUTING.md names every module that there is, and none that there is not."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROOMS = [*sorted(path.parent.name for path in ROOT.glob("*/__init__.py")), "hydra_plugins", "docs"]


def mapped() -> dict[str, str]:
    """Path -> what the map says of it. Folders end in a slash; the depth of a line is two blanks a level."""
    (block,) = re.findall(r"^```text\n(.*?)^```", (ROOT / "CONTRIBUTING.md").read_text(), re.S | re.M)
    folders: list[str] = []
    found: dict[str, str] = {}
    for line in filter(None, block.splitlines()):
        name, _, about = line.strip().partition(" ")
        depth = (len(line) - len(line.lstrip())) // 2
        path = "".join(folders[:depth]) + name
        folders[depth:] = [name] if name.endswith("/") else []
        assert path not in found, f"CONTRIBUTING.md names {path} twice"
        found[path] = about.strip()
    return found


def modules() -> dict[str, Path]:
    """All modules outside tests and benchmarks, by their path in the checkout. `__init__.py` is its folder's."""
    paths = [*ROOT.glob("*.py"), *(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path for path in paths if path.name != "__init__.py"}


def about(path: Path) -> str:
    """The first line of a module's docstring, to be shortened into its line of the map."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def test_every_module_is_on_the_map_and_nothing_else() -> None:
    there, said = modules(), {path for path in mapped() if path.endswith(".py") and "__init__" not in path}
    missing = [f"{name}  ({about(path)})" for name, path in there.items() if name not in said]
    assert not missing, "add a line to the map in CONTRIBUTING.md for:\n" + "\n".join(missing)
    assert said <= set(there), f"CONTRIBUTING.md names what is not there: {sorted(said - set(there))}"


def test_each_line_says_something() -> None:
    silent = [path for path, about in mapped().items() if path.endswith(".py") and not about]
    assert not silent, f"CONTRIBUTING.md says nothing of {silent}"


def test_folders_of_the_map_are_those_of_the_checkout() -> None:
    said = {path for path in mapped() if path.endswith("/")}
    assert said == {f"{folder}/" for name in modules() for folder in Path(name).parents if folder != Path()}
