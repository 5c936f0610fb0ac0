"""How the wheel is built: every room and root script goes under `flexo/`, so that an installed flexo owns one name.

In the checkout the rooms lie at the top level. In site-packages, `inference` or `evals` may belong to somebody else. So
the wheel holds `flexo/merge`, `flexo/train_expert.py`, ..., the settings as `flexo/_configs`, and beside them only
`hydra_plugins`, where Hydra looks for launchers. What names a module of a room is rewritten on the way:

    from merge.planning.merge_plan import plan     from flexo.merge.planning.merge_plan import plan
    "inference.commands.flexo_check"               "flexo.inference.commands.flexo_check"
    _target_: trainers.data.DataOptions            _target_: flexo.trainers.data.DataOptions
    python train_expert.py +domain=math            flexo train-expert +domain=math

Imports are found in the syntax tree, the rest in the tokens that are strings, docstrings and comments, and in YAML. A
form that is not known here (`import merge.x`, a module's name put together from parts) ends the build with its file and
line. An editable install changes nothing: it points at the checkout.
"""

from __future__ import annotations

import ast
import io
import re
import tempfile
import tokenize
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE, PLUGINS = "flexo", "hydra_plugins"
CONFIGS, CONFIGS_IN_WHEEL = "configs", "flexo/_configs"
PROJECT = "pyproject.toml"
OURSELVES = Path(__file__).name
TEXTS = {tokenize.STRING, tokenize.COMMENT, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
BY_NAME = {"import_module", "__import__", "find_spec", "run_module", "resolve_name"}  # functions that take a module


class WheelHook(BuildHookInterface[BuilderConfig]):
    """Called by hatchling around each build of a wheel."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Lays the wheel out in a temporary folder, and has hatchling include what is there."""
        if version == "editable":
            return
        self.folder = tempfile.TemporaryDirectory()
        lay_out(Path(self.root), Path(self.folder.name))
        build_data["force_include"] |= {str(path): path.name for path in Path(self.folder.name).iterdir()}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.folder.cleanup()


def lay_out(root: Path, target: Path) -> None:
    """Writes what the wheel of the checkout `root` holds, apart from its metadata, into the folder `target`.

    Raises:
        SystemExit: a file of an unknown kind, or one that names a room's module in a form that is not known here.
    """
    rewriter = Rewriter(root)
    for source, place in placed(root):
        text = rewriter.rewritten(source.read_text(encoding="utf-8"), source.relative_to(root).as_posix())
        path = target / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def placed(root: Path) -> Iterator[tuple[Path, str]]:
    """Every file that the wheel is made of, and where in the wheel it goes."""
    for script in sorted(root.glob("*.py")):
        if script.name != OURSELVES:
            yield script, f"{PACKAGE}/{script.name}"
    for room in sorted(path.parent for path in root.glob("*/__init__.py")):
        place = PACKAGE if room.name == PACKAGE else f"{PACKAGE}/{room.name}"
        yield from _files(room, place, (".py", ".pyi", ".typed"))
    yield from _files(root / PLUGINS, PLUGINS, (".py",))
    yield from _files(root / CONFIGS, CONFIGS_IN_WHEEL, (".yaml",))


def _files(folder: Path, place: str, kinds: tuple[str, ...]) -> Iterator[tuple[Path, str]]:
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if path.is_dir() or "__pycache__" in inside.parts or any(part.startswith(".") for part in inside.parts):
            continue
        if any((folder / part / PROJECT).exists() for part in inside.parents):
            continue  # a package of its own, with a wheel of its own
        if path.suffix not in kinds:
            raise SystemExit(f"{path}: expected {', '.join(kinds)}; {OURSELVES} does not know what to do with others.")
        yield path, f"{place}/{inside.as_posix()}"


class Rewriter:
    """Rewrites the names of what is at the top level of the checkout `root` and under `flexo` in its wheel."""

    def __init__(self, root: Path) -> None:
        paths = [source.relative_to(root) for source, _ in placed(root) if source.suffix == ".py"]
        self.scripts = {path.stem for path in paths if len(path.parts) == 1}
        dotted = {".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in paths}
        self.modules = {name for name in dotted if name.partition(".")[0] not in (PACKAGE, PLUGINS)}
        self.moved = {name.partition(".")[0] for name in self.modules}
        rooms, scripts = ("|".join(sorted(names)) for names in (self.moved - self.scripts, self.scripts))
        self.dotted = re.compile(rf"(?<![\w./\-])(?:{rooms})(?:\.\w+)+")
        self.called = re.compile(rf"(?:python )?(?<![\w./\-])({scripts})\.py\b")
        self.run_by_name = re.compile(rf"(?<=-m )({scripts})\b")
        self.unfinished = re.compile(rf"(?:{rooms}|{scripts})(?:\.\w+)*\.")

    def rewritten(self, text: str, where: str) -> str:
        """A file as it is in the wheel. Ends the build for a form that is not known."""
        if not where.endswith((".py", ".pyi")):
            return self._mentions(text, where, 1)
        for node in ast.walk(ast.parse(text)):
            if found := self._unknown_form(node):
                self._refuse(where, getattr(node, "lineno", 1), *found)
        for begin, end, new in sorted([*self._imports(text, where), *self._texts(text, where)], reverse=True):
            text = text[:begin] + new + text[end:]
        left = [name for node in ast.walk(ast.parse(text)) for name in _imported(node) if self._is_moved(name)]
        assert not left, f"{where}: {left} is still imported from the top level"
        return text

    def _unknown_form(self, node: ast.AST) -> tuple[str, str] | None:
        """What names a module in a way that `_imports` and `_texts` do not see, and what would do instead."""
        match node:
            case ast.ImportFrom(level=level) if level:
                return "a relative import", "from room.module import name"
            case ast.Import(names=names) if moved := [alias.name for alias in names if self._is_moved(alias.name)]:
                return f"import {moved[0]}", "from room.module import name"
            case ast.Call(func=ast.Name(id=called) | ast.Attribute(attr=called), args=[ast.Constant(value=name), *_]):
                if called in BY_NAME and name in self.moved:
                    return f"{called}({name!r})", f"{called}(module_name({name!r})), see flexo.rooms"
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                words = [part.value if isinstance(part, ast.Constant) else None for part in parts]
                for flag, name in pairwise(words):
                    if flag == "-m" and name in self.moved:
                        return f"'-m', {name!r}", f"'-m', module_name({name!r}), see flexo.rooms"
            case ast.JoinedStr(values=parts):
                for part, after in pairwise(parts):
                    text = part.value if isinstance(part, ast.Constant) else ""
                    if isinstance(after, ast.FormattedValue) and re.search(r"python (-m )?$", str(text)):
                        return f"{text!r} before a name that is not known here", "flexo.commands.table: usage"
            case ast.Constant(value=str(text)) if self.unfinished.fullmatch(text):
                return f"{text!r}, the beginning of a name", "the whole name of a module in one string"
            case ast.Constant(value=str(text)) if self.called.fullmatch(text):
                return f"{text!r}, a file of the checkout", "the module without .py, or a sentence about it"
        return None

    def _imports(self, text: str, where: str) -> Iterator[tuple[int, int, str]]:
        """Where to put what: begin, end, and the new text between them."""
        starts = _line_starts(text)
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom) and self._is_moved(node.module or ""):
                start, end = starts[node.lineno - 1 : node.lineno + 1]
                begin = start + len(text[start:end].encode()[: node.col_offset].decode())  # columns are in bytes
                if not text.startswith(old := f"from {node.module} import", begin):
                    self._refuse(where, node.lineno, "an import written in another way", f"{old} name")
                yield begin + len("from "), begin + len("from "), f"{PACKAGE}."

    def _texts(self, text: str, where: str) -> Iterator[tuple[int, int, str]]:
        """The same for strings and comments."""
        starts = _line_starts(text)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type in TEXTS:
                begin, end = (starts[row - 1] + column for row, column in (token.start, token.end))
                yield begin, end, self._mentions(text[begin:end], where, token.start[0])

    def _mentions(self, text: str, where: str, first_line: int) -> str:
        """Rewrites the modules and scripts that a text names."""

        def prefixed(match: re.Match[str]) -> str:
            parts = match[0].split(".")
            if not any(".".join(parts[:length]) in self.modules for length in range(2, len(parts) + 1)):
                line = first_line + text.count("\n", 0, match.start())
                self._refuse(where, line, f"{match[0]}, which is no module", "the name of one that is there")
            return f"{PACKAGE}.{match[0]}"

        def command(match: re.Match[str]) -> str:
            return f"{PACKAGE} {match[1].removeprefix('run_').replace('_', '-')}"

        return self.called.sub(command, self.run_by_name.sub(rf"{PACKAGE}.\1", self.dotted.sub(prefixed, text)))

    def _is_moved(self, module: str) -> bool:
        return module.partition(".")[0] in self.moved

    def _refuse(self, where: str, line: int, found: str, expected: str) -> NoReturn:
        raise SystemExit(
            f"{where}:{line}: {found}. The wheel has the rooms under {PACKAGE}/, and {OURSELVES} does not know how to "
            f"rewrite this. Expected {expected}."
        )


def _imported(node: ast.AST) -> list[str]:
    """The modules that a statement imports."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def _line_starts(text: str) -> list[int]:
    """Where each line begins, as Python counts lines, and where the text ends."""
    return [0, *(found.end() for found in re.finditer("\n", text)), len(text)]
