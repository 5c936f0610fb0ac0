"""Corpus files for the tests of this room."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

TEXTS = [
    "The cat sat on the mat.",
    "Let x be a number; then x + 1 is a number, too.",
    "def add(a, b): return a + b",
    "The dog lay by the door, and the cat sat on it.",
]


def write_jsonl(path: Path, texts: Iterable[str], column: str = "text") -> Path:
    """A corpus file, gzipped if its name says so; parents are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = "".join(json.dumps({column: text}, ensure_ascii=False) + "\n" for text in texts).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
