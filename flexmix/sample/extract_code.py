"""Readers of source code and of the prose that comes with it: docstrings, manuals, package descriptions.

Source is parsed with `ast` or read as text; nothing is imported, neither from an archive nor from this environment.
"""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sysconfig
import tokenize
import warnings
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from flexmix.sample.packages import members
from flexmix.sample.text_chunks import DEFINITION, LINE, PARAGRAPH, pieces, tidy

SHORTEST_DOCSTRING = 300
_NOT_LIBRARY = {
    "site-packages",
    "dist-packages",
    "test",
    "tests",
    "idle_test",
    "encodings",
    "pydoc_data",
    "__pycache__",
}


def standard_library() -> Iterator[str]:
    """The Python sources of the standard library of this interpreter, without its tests and its tables."""
    root = Path(sysconfig.get_path("stdlib"))
    for path in _mixed(root.rglob("*.py"), root):
        if _NOT_LIBRARY.isdisjoint(path.relative_to(root).parts) and (source := _source(path)):
            yield from pieces(tidy(source), (DEFINITION, PARAGRAPH, LINE))


def python_manual() -> Iterator[str]:
    """The language reference that `help()` shows, a topic a document."""
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield from pieces(tidy(topics[name]))


def package_docstrings(archive: Path) -> Iterator[str]:
    """The docstrings of a wheel's modules, classes and functions, those of one module together."""
    found = [(name, data) for name, data in members(archive, "*.py") if "/tests/" not in name]
    for _, data in sorted(found, key=lambda item: (zlib.crc32(item[0].encode()), item[0])):
        yield from _docstrings(data.decode("utf-8", "replace"))


def installed_docstrings(packages: Sequence[str]) -> Iterator[str]:
    """Like `package_docstrings`, of packages installed beside us; one that is absent gives nothing."""
    for package in packages:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for path in _mixed(Path(folder).rglob("*.py"), Path(folder)):
                if "tests" not in path.parts and (source := _source(path)):
                    yield from _docstrings(source)


def installed_descriptions() -> Iterator[str]:
    """What the packages installed beside us say about themselves: their long descriptions, without badges."""
    descriptions: dict[str, str] = {}
    for distribution in importlib.metadata.distributions():
        metadata = distribution.metadata
        body = metadata.get_payload()  # type: ignore[attr-defined]
        told = metadata["Description"] or body
        descriptions[metadata["Name"] or ""] = told if isinstance(told, str) else ""
    for name in sorted(descriptions):
        text = re.sub(r"<[^>\n]{1,300}>", "", descriptions[name])
        lines = [line for line in text.splitlines() if not re.match(r"\s*(?:\[?!\[|\.\. (?:image|_|\|))", line)]
        yield from pieces(tidy("\n".join(lines)))


def django_manual(archive: Path) -> Iterator[str]:
    """Django's tutorials, guides and reference as plain text; release notes are left out."""
    for name, data in members(archive, "docs/*.txt"):
        if not name.startswith(("docs/releases/", "docs/man/", "docs/_")):
            yield from pieces(tidy(_plain(data.decode("utf-8", "replace"))))


def _plain(text: str) -> str:
    """reStructuredText without targets, index entries and roles; headings, lists and examples stay as they are."""
    text = re.sub(r"(?m)^\.\. _[^\n]*\n", "", text)
    text = re.sub(
        r"(?m)^[ ]*\.\. (?:index|module|currentmodule|highlight|toctree|image|figure)::.*\n(?:[ ]+.*\n|\n(?=[ ]))*",
        "",
        text,
    )
    text = re.sub(r"(?m)^([ ]*)\.\. (?:code-block|console)::[^\n]*\n(?:[ ]*:[\w-]+:[^\n]*\n)*", r"\1\n", text)
    text = re.sub(r":[\w:+-]+:`!?~?([^`<]+?)(?:\s*<[^`>]+>)?`", r"\1", text)
    return re.sub(r"(?<!`)`([^`<]+?)(?:\s*<[^`>]+>)?`_+", r"\1", text)


def _docstrings(source: str) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SyntaxWarning)
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            text = tidy(_plain(ast.get_docstring(node) or ""))
            if len(text) >= SHORTEST_DOCSTRING:
                title = "" if isinstance(node, ast.Module) else node.name + "\n\n"
                yield from pieces(title + text)


def _source(path: Path) -> str | None:
    try:
        with tokenize.open(path) as file:
            return file.read()
    except (SyntaxError, UnicodeDecodeError, OSError):
        return None


def _mixed(paths: Iterator[Path], root: Path) -> list[Path]:
    """The paths in an order that is always the same and favours no folder, so that a reader may stop anywhere."""

    def key(path: Path) -> tuple[int, str]:
        name = path.relative_to(root).as_posix()
        return zlib.crc32(name.encode()), name

    return sorted(paths, key=key)
