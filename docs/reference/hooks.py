"""What MkDocs does beyond its configuration: pages made from code, README and the other files of the root as pages.

make docs
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.reference import commands, interface, notebook, settings
from docs.reference.offline import loaded_from_elsewhere

ROOT = Path(__file__).resolve().parents[2]
TUTORIAL = "docs/tutorial.ipynb"
AT_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
    "SECURITY.md": "project/reporting.md",
}
# of a page in the search: a name is looked up in the reference more often than in old experiments
BOOSTS = {"reference/": 4, "glossary.md": 2, "log.md": 0.2, "benchmarks/": 0.5, "project/changelog.md": 0.2}
LINK = re.compile(r"(!?)\[([^][]*)\]\(([^)\s]+)\)")
MENTION = re.compile(r"(?<![\w/`(\[])docs/([\w-]+\.md)")
BLOCK = re.compile(r"(^```.*?^```|^(?: {4}|\t).*?$)", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"(^```.*?^```|^(?: {4}|\t).*?$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Puts the generated pages where the navigation names their folder: `reference/commands/`."""
    made = [*commands.pages(), *settings.pages(), *(f"benchmarks/{path.name}" for path in _benchmarks())]
    config.nav = _expanded(config.nav, made)


def _expanded(nav: Any, made: list[str]) -> Any:
    if isinstance(nav, list):
        return [_expanded(part, made) for part in nav]
    if isinstance(nav, dict):
        return {title: _expanded(part, made) for title, part in nav.items()}
    if nav.endswith("/"):
        return [page for page in made if page.startswith(nav)]
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages that are not files of docs/."""
    texts = commands.pages() | settings.pages() | interface.pages()
    texts |= {page: (ROOT / place).read_text() for place, page in _copied().items()}
    texts["tutorial.md"], pictures = notebook.page(ROOT / TUTORIAL)
    made: dict[str, str | bytes] = {**texts, **pictures}
    for place, content in made.items():
        files.append(File.generated(config, place, content=content))
    return files


def _benchmarks() -> list[Path]:
    return sorted((ROOT / "benchmarks").glob("*.md"))


def _copied() -> dict[str, str]:
    """Files outside of docs/ that are pages: where they lie in the repository, and in the site."""
    return AT_THE_ROOT | {f"benchmarks/{path.name}": f"benchmarks/{path.name}" for path in _benchmarks()}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages."""
    here = page.file.src_uri
    page.meta["search"] = {"boost": next((boost for start, boost in BOOSTS.items() if here.startswith(start)), 1)}
    moved = _copied() | {TUTORIAL: "tutorial.md"}
    source = {page: place for place, page in moved.items()}.get(here, f"docs/{here}")

    def relative(place: str) -> str:
        return posixpath.relpath(moved.get(place) or place.removeprefix("docs/"), posixpath.dirname(here) or ".")

    def link(found: re.Match[str]) -> str:
        target, hash, anchor = found[3].partition("#")
        if not target or ":" in target:
            return found[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        shown = place in moved or files.get_file_from_path(place.removeprefix("docs/")) is not None
        if not shown and (ROOT / place).exists():
            return found[2]  # a file or folder that the site does not show
        return f"{found[1]}[{found[2]}]({relative(place)}{hash}{anchor})"

    def mention(found: re.Match[str]) -> str:
        return f"[{found[1]}]({relative(found[0])})"

    if here.startswith("reference/"):
        return _outside(CODE, markdown, lambda text: MENTION.sub(mention, text))
    markdown = _outside(BLOCK, markdown, lambda text: LINK.sub(link, text))
    # shapes such as [L][E] are not references to a heading called E
    return _outside(CODE, markdown, lambda text: text.replace("][", "]\\["))


def _outside(code: re.Pattern[str], markdown: str, change: Callable[[str], str]) -> str:
    parts = code.split(markdown)
    parts[::2] = map(change, parts[::2])
    return "".join(parts)


def on_post_build(config: MkDocsConfig) -> None:
    if found := loaded_from_elsewhere(Path(config.site_dir)):
        raise PluginError(f"the site loads from elsewhere:{os.linesep}" + os.linesep.join(found))
