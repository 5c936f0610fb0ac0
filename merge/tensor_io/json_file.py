"""JSON from strangers, within limits of bytes, values and nesting; and JSON as we write it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flexo.errors import ModelFolderError

MAX_JSON = 64 << 20
MAX_HEADER = 8 << 20
MAX_VALUES = 1_000_000  # of JSON; a thousand layers of an expert have about 80,000


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of at most 64 MB; raises `ModelFolderError` for anything else."""
    try:
        if path.stat().st_size > MAX_JSON:
            raise ModelFolderError(f"{path}: {path.stat().st_size / 1e6:.0f} MB of JSON, expected at most 64 MB.")
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelFolderError(f"{path}: no such file. Is {path.parent} a model folder?") from None
    except OSError as error:
        raise ModelFolderError(f"{path}: cannot be read ({error.strerror}).") from None
    except ValueError as error:
        raise ModelFolderError(f"{path}: not readable as JSON ({error}).") from None
    if not isinstance(value, dict):
        raise ModelFolderError(f"{path}: expected a JSON object, got {type(value).__name__}.")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def parse_json(text: str) -> Any:
    """JSON from strangers; raises `ValueError` for a repeated name, endless nesting, and more values than we write.

    A value may take thirty times its text in memory: `[],[],[]` of 36 MB would take a gigabyte.
    """
    if sum(map(text.count, ",[{")) > MAX_VALUES:
        raise ValueError(f"JSON of more than {MAX_VALUES} values")
    try:
        return json.loads(text, object_pairs_hook=_once)
    except RecursionError:
        raise ValueError("JSON nested without end") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object in which no name comes twice; the second would hide the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same name twice")
    return found
