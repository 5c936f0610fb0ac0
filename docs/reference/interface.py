"""Reference page of the Python interface: what `flexo.__all__` names, for mkdocstrings to read without running it."""

from __future__ import annotations

from pathlib import Path

import griffe

ROOT = Path(__file__).resolve().parents[2]
PAGE = "reference/python.md"
# what other pages document, for as long as `flexo` itself names nothing
MODULES = ("inference.load", "inference.select", "inference.attribution", "merge.formats.expert_file")


def pages() -> dict[str, str]:
    """Markdown by the path of its page."""
    face = griffe.load("flexo", search_paths=[ROOT])
    names = face.exports or []
    parts = ["# Python", "Read from the source: signatures, and what the docstrings say of shapes, units and errors."]
    if names:
        for name in sorted(map(str, names), key=str.lower):
            member = face[name]
            place = member.final_target.path if member.is_alias else member.path
            parts.append(f"::: {place}\n    options:\n      heading: flexo.{name}\n      toc_label: {name}")
    else:
        parts += [f"::: {module}" for module in MODULES]
    return {PAGE: "\n\n".join(parts) + "\n"}
