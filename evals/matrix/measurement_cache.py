"""Measurements kept on disk, a small file each, so that nothing is measured twice and a stopped command goes on.

A file's name is the sha256 of its key, that is of all that its figures depend on: the models' weights, configuration
and experts, the tokens of the text, and how they were scored. Names, folders and the order of models and domains are
not in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Generic, Protocol, Self, TypeVar

from flexo.atomic_files import new_file
from flexo.errors import ModelFolderError
from merge.tensor_io.json_file import read_json, write_json

FORMAT = "flexo.cell"
VERSION = 2  # of the figures: raise it when the same text on the same model gives others

Key = Mapping[str, Any]


class Kept(Protocol):
    """What is measured, such as `evals.scoring.measure.Measurement`: it becomes JSON and comes back."""

    def to_dict(self) -> dict[str, Any]: ...

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Self: ...


Value = TypeVar("Value", bound=Kept)


class Store(Generic[Value]):
    """Measurements by their keys: a key holds all that the figures depend on."""

    def __init__(self, folder: Path | None, kind: type[Value]) -> None:
        """`folder` may not exist yet; None keeps measurements in memory alone. All are of one `kind`.

        Raises:
            InputError: the folder cannot be written, which is better known before the first measurement than after it.
        """
        self.folder = folder
        self.kind = kind
        self._seen: dict[str, Value] = {}
        if folder is not None:
            with new_file(folder / "README", replace=True) as path:
                path.write_text(
                    "Measurements of flexo-eval and flexo-leak. Any of them may be deleted.\n", encoding="utf-8"
                )

    def find(self, key: Key) -> Value | None:
        """The measurement kept under a key; None if there is none or its file is damaged."""
        name = _name(key)
        if name not in self._seen and self.folder is not None and (path := self._path(name)).exists():
            try:
                value = read_json(path)
                if value["key"] == _plain(key):
                    self._seen[name] = self.kind.from_dict(value["measurement"])
            except (ModelFolderError, KeyError, TypeError):
                return None
        return self._seen.get(name)

    def keep(self, key: Key, found: Value) -> None:
        name = _name(key)
        self._seen[name] = found
        if self.folder is not None:
            with new_file(self._path(name), replace=True) as path:
                write_json(path, {"format": FORMAT, "key": _plain(key), "measurement": found.to_dict()})

    def _path(self, name: str) -> Path:
        assert self.folder is not None
        return self.folder / name[:2] / f"{name}.json"


def _name(key: Key) -> str:
    return hashlib.sha256(json.dumps(_plain(key), sort_keys=True).encode()).hexdigest()


def _plain(key: Key) -> dict[str, Any]:
    plain: dict[str, Any] = json.loads(json.dumps({"version": VERSION, **key}))
    return plain
