"""What MkDocs does beyond its configuration: pages made from code, README and the other files of the root as pages.

make docs
"""

from __future__ import annotations

import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from docs.reference import commands, interface, settings
from docs.reference.offline import loaded_from_elsewhere

ROOT = Path(__file__).resolve().parents[2]
AT_THE_ROOT = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}
WIDE = "---\nhide: [navigation]\n---\n"  # the start has no pages beside it to list
LINK = re.compile(r"(!?)\[([^\]\n]*)\]\(([^)\s]+)\)")
MENTION = re.compile(r"(?<![\w/`(\[])docs/([\w-]+\.md)")
CODE = re.compile(r"(^```.*?^```|^(?: {4}|\t).*?$|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_config(config: MkDocsConfig) -> None:
    """Puts the generated pages where the navigation names their folder: `reference/commands/`."""
    made = [*sorted(commands.pages()), *settings.pages(), *(f"benchmarks/{path.name}" for path in _benchmarks())]
    config.nav = _expanded(config.nav, made)


def _expanded(nav: Any, made: list[str]) -> Any:
    if isinstance(nav, list):
        return [_expanded(part, made) for part in nav]
    if isinstance(nav, dict):
        return {title: _expanded(part, made) for title, part in nav.items()}
    if nav.endswith("/"):
        inside = [page for page in made if page.startswith(nav)]
        return sorted(inside, key=lambda page: not page.endswith("/index.md"))  # a list of pages stands first
    return nav


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for place, text in (commands.pages() | settings.pages() | interface.pages()).items():
        files.append(File.generated(config, place, content=text))
    for place, page in _copied().items():
        head = WIDE if page == "index.md" else ""
        files.append(File.generated(config, page, content=head + (ROOT / place).read_text()))
    return files


def _benchmarks() -> list[Path]:
    return sorted((ROOT / "benchmarks").glob("*.md"))


def _copied() -> dict[str, str]:
    """Files outside of docs/ that are pages: where they lie in the repository, and in the site."""
    return AT_THE_ROOT | {f"benchmarks/{path.name}": f"benchmarks/{path.name}" for path in _benchmarks()}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links between files of the repository into links between pages."""
    here = page.file.src_uri
    copied = _copied()
    source = {page: place for place, page in copied.items()}.get(here, f"docs/{here}")

    def in_the_site(place: str) -> str:
        return copied.get(place) or place.removeprefix("docs/")

    def relative(place: str) -> str:
        return posixpath.relpath(in_the_site(place), posixpath.dirname(here) or ".")

    def link(found: re.Match[str]) -> str:
        target, hash, anchor = found[3].partition("#")
        if not target or ":" in target:
            return found[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
        if files.get_file_from_path(in_the_site(place)) is None and (ROOT / place).exists():
            return found[2]  # a file or folder that the site does not show
        return f"{found[1]}[{found[2]}]({relative(place)}{hash}{anchor})"

    parts = CODE.split(markdown)
    if here.startswith("reference/"):
        parts[::2] = [MENTION.sub(lambda found: f"[{found[1]}]({relative(found[0])})", part) for part in parts[::2]]
    else:
        # shapes, [L][E], are not references to a heading called E
        parts[::2] = [LINK.sub(link, part).replace("][", "]\\[") for part in parts[::2]]
    return "".join(parts)


def on_post_build(config: MkDocsConfig) -> None:
    if found := loaded_from_elsewhere(Path(config.site_dir)):
        raise PluginError(f"the site loads from elsewhere:{os.linesep}" + os.linesep.join(found))
