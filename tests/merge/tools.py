"""What the tests of this room do with files: look, rewrite a torch zip, and run a command as a shell would."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import Plan, plan


def listing(folder: Path) -> set[str]:
    """Names of everything in a folder, hidden ones included."""
    return {path.name for path in folder.iterdir()}


def even_plan(paths: Sequence[Path], anchor: Path | None = None, **options: Any) -> Plan:
    """A merge in which public text counts like one domain, so that router rows are those of the files."""
    return plan(paths, anchor, MergeOptions(**{"public_weight": 1.0} | options))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON or safetensors file by what `change` does to its content."""
    if path.suffix == ".json":
        value = json.loads(path.read_text())
        change(value)
        path.write_text(json.dumps(value))
    else:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path, {"format": "pt"})


def rewrite_zip(
    source: Path,
    target: Path,
    change: Callable[[str, bytes], bytes] = lambda _name, data: data,
    compression: int = zipfile.ZIP_STORED,
    extra: dict[str, bytes] | None = None,
) -> Path:
    """Copies a zip, passing every entry through `change(name without its folder, bytes)` and adding `extra` ones."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename.partition("/")[2], old.read(entry)))
        for name, data in (extra or {}).items():
            new.writestr(name, data)
    return target


def call(command: Callable[[], object], *arguments: object) -> int:
    """Runs a console entry point with arguments and returns its exit code."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["command", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            command()
    code = stop.value.code
    return code if isinstance(code, int) else 0
