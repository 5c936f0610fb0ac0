"""Reference page of the Python interface, for mkdocstrings to fill from the source without running it."""

from __future__ import annotations

from pathlib import Path

from flexo.lazy_names import homes_of

STUB = Path(__file__).resolve().parents[2] / "flexo/__init__.pyi"
PAGE = "reference/python.md"
ABOUT = """# `import flexo`

Everything that flexo gives to programs. A name is imported from its module when it is first used. What follows is read
from the source: signatures, and what the docstrings say of shapes, units and errors.
"""
OPTIONS = "heading: {name}\n      toc_label: {name}\n      heading_level: 3\n      show_root_full_path: false"


def pages() -> dict[str, str]:
    """Markdown by the path of its page."""
    homes = homes_of(STUB.read_text())
    parts = [ABOUT]
    for title, are_classes in (("Functions", False), ("Classes and errors", True)):
        parts.append(f"## {title}\n")
        for name, (module, there) in sorted(homes.items()):
            if name[0].isupper() == are_classes:
                parts.append(f"::: {module}.{there}\n    options:\n      {OPTIONS.format(name=name)}\n")
    return {PAGE: "\n".join(parts)}
