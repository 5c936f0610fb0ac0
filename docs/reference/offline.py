"""Refuses a built site that would load something from elsewhere: it must work without a network, and tell nobody."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

# where a browser fetches from by itself; an <a href> waits for a click
LOADS = {
    "script": ("src",), "img": ("src", "srcset"), "iframe": ("src",), "source": ("src", "srcset"), "video": ("src",),
    "audio": ("src",), "embed": ("src",), "object": ("data",), "use": ("href", "xlink:href"), "link": ("href",),
    "image": ("href", "xlink:href"), "input": ("src",), "track": ("src",),
}  # fmt: skip
TELLS_ONLY = {"canonical", "alternate", "next", "prev", "license", "author"}  # kinds of <link> that load nothing
ELSEWHERE = re.compile(r"^\s*(https?:)?//", re.IGNORECASE)
IN_STYLE = re.compile(r"""(?:url\(|@import)\s*['"]?\s*((?:https?:)?//[^'")\s]+)""", re.IGNORECASE)


class Loads(HTMLParser):
    """Collects the addresses that a page fetches from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._style = tag == "style"
        values = {name: value or "" for name, value in attrs}
        if tag == "link" and set(values.get("rel", "").lower().split()) & TELLS_ONLY:
            return
        for name in LOADS.get(tag, ()):
            self.found += [part.split()[0] for part in values.get(name, "").split(",") if ELSEWHERE.match(part)]
        self.found += IN_STYLE.findall(values.get("style", ""))

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if self._style:
            self.found += IN_STYLE.findall(data)


def loaded_from_elsewhere(site: Path) -> list[str]:
    """`page: address` for everything that pages and styles of a built site would fetch from another host."""
    found = []
    for path in sorted(site.rglob("*")):
        if path.suffix == ".html":
            page = Loads()
            page.feed(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(site)}: {address}" for address in page.found]
        elif path.suffix in (".css", ".svg"):
            styles = IN_STYLE.findall(path.read_text(encoding="utf-8"))
            found += [f"{path.relative_to(site)}: {address}" for address in styles]
    return found
