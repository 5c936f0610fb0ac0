"""The tutorial as a page of the site: a notebook's text, code and outputs as Markdown, its pictures beside it."""

from __future__ import annotations

import base64
import json
import re
from itertools import groupby
from pathlib import Path
from typing import Any

TERMINAL = re.compile(r"\x1b\[[0-9;]*m")
PICTURES = {"image/svg+xml": "svg", "image/png": "png"}


def page(notebook: Path) -> tuple[str, dict[str, bytes]]:
    """Markdown, and the pictures that it shows by file name."""
    pictures: dict[str, bytes] = {}
    title, *cells = json.loads(notebook.read_text())["cells"]
    heading, _, rest = _text(title["source"]).partition("\n")
    parts = [heading, f"This page is a notebook that can be run: `docs/{notebook.name}`.", rest.strip()]
    for cell in cells:
        source = _text(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
            continue
        shell = source.startswith("%%bash")
        code = source.partition("\n")[2] if shell else source
        parts.append(f"```{'bash' if shell else 'python'}\n{code}\n```")
        for kind, outputs in groupby(cell["outputs"], lambda output: output["output_type"]):
            if kind == "stream":  # what was printed comes in pieces
                parts.append(_block("".join(_text(output["text"]) for output in outputs)))
            else:
                parts += [_shown(output["data"], notebook.stem, pictures) for output in outputs]
    return "\n\n".join(part for part in parts if part) + "\n", pictures


def _shown(data: dict[str, Any], stem: str, pictures: dict[str, bytes]) -> str:
    for kind, suffix in PICTURES.items():
        if kind in data:
            name = f"{stem}-{len(pictures) + 1}.{suffix}"
            text = _text(data[kind])
            pictures[name] = text.encode() if suffix == "svg" else base64.b64decode(text)
            return f"![{_text(data['text/plain'])}]({name})"
    return _block(_text(data["text/plain"]))


def _block(text: str) -> str:
    plain = TERMINAL.sub("", text).strip("\n")
    return f"```{{.text .output}}\n{plain}\n```"


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
