"""Attacks with the table of a safetensors file: its length, its JSON, and tensors that overlap or are not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.merge.attacks.attack import Attack, Forge

ROW = "layers.0.router.weight"
GB = 1 << 30


def _table(name: str, says: str, change: Any, **rest: Any) -> Attack:
    return Attack(f"table {name}", says, lambda f, path: f.with_table(path, change, **rest), ".safetensors")


def _raw(name: str, says: str, make: Any) -> Attack:
    return Attack(f"table {name}", says, make, ".safetensors")


def _length(path: Path, length: int, size: int, text: bytes = b"{}") -> None:
    """A sparse file of `size` bytes, a table of `length` announced in it."""
    with path.open("wb") as file:
        file.write(length.to_bytes(8, "little") + text)
        file.truncate(size)


def _json(path: Path, text: str) -> None:
    path.write_bytes(len(text.encode()).to_bytes(8, "little") + text.encode())


def _entry(**change: Any) -> Any:
    return lambda table: table[ROW].update(change)


def _overlap(table: dict[str, Any]) -> None:
    table["layers.2.router.weight"]["data_offsets"] = table["layers.1.router.weight"]["data_offsets"]


def _twice(f: Forge, path: Path) -> None:
    table, values = f.table()
    text = json.dumps(table).replace("{", '{"' + ROW + '":' + json.dumps(table[ROW]) + ",", 1).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + values)


def _meta(**change: str) -> Any:
    return lambda table: table["__metadata__"].update(change)


NEITHER = "neither a PyTorch zip nor a safetensors file, or cut short"
ATTACKS = [
    _raw("of 1 GB", f"{NEITHER}.*a header of 1074 MB, expected at most", lambda f, p: _length(p, GB, GB + 9)),
    _raw("of 4 EB", f"{NEITHER}.*too few for the header", lambda f, p: _length(p, 1 << 62, 100)),
    _raw("of 10,000 levels", f"{NEITHER}.*nested without end", lambda f, p: _json(p, "[" * 10_000 + "]" * 10_000)),
    _raw("of 10,000 objects", f"{NEITHER}.*nested without end", lambda f, p: _json(p, '{"a":' * 10_000)),
    _raw(
        "of 30 MB that would take 1 GB",
        f"{NEITHER}.*more than 1000000 values",
        lambda f, p: _json(p, "[]," * 10_000_000),
    ),
    _raw("that is no object", f"{NEITHER}.*no JSON object", lambda f, p: _json(p, "[]")),
    _raw("that is no text", NEITHER, lambda f, p: p.write_bytes((4).to_bytes(8, "little") + b"\xff" * 4)),
    _raw("with a name twice", f"{NEITHER}.*the same name twice", _twice),
    _table("with tensors that overlap", f"{NEITHER}.*begins at byte", _overlap),
    _table("with an end before the beginning", NEITHER, _entry(data_offsets=[128, 0])),
    _table("with a place behind the file", NEITHER, _entry(data_offsets=[1 << 62, (1 << 62) + 128])),
    _table("with negative places", NEITHER, _entry(data_offsets=[-128, 0])),
    _table("with an absurd shape", NEITHER, _entry(shape=[1 << 40, 1 << 40])),
    _table("with a shape whose product overflows", NEITHER, _entry(shape=[1 << 32, 1 << 32, 1 << 32])),
    _table("with a shape of a million sizes", NEITHER, _entry(shape=[1] * 1_000_000)),
    _table("with another shape", r"is \(8, 4\)", _entry(shape=[8, 4])),
    _table("with another dtype", "has dtype I32", _entry(dtype="I32")),
    _table("with a dtype of its own", "has dtype F8_E4M3", _entry(dtype="F8_E4M3")),
    _table("with a field more", NEITHER, _entry(note="private")),
    _table(
        "with another name", "Missing: .'layers.0.router.weight'.. Not expected: .'x'", lambda t: t.update(x=t.pop(ROW))
    ),
    _table("with a path for a name", "Not expected: .'../../x'", lambda t: t.update({"../../x": t.pop(ROW)})),
    _table("that ends early", NEITHER, lambda t: None, cut=1),
    _table("and bytes after it", NEITHER, lambda t: None, values=b"x"),
    _table("of another format", "not an expert file", _meta(format="pt")),
    _table("without metadata", "not an expert file", lambda t: t.pop("__metadata__")),
    _table("with a note", "not part of version 1: .'note'", _meta(note="private")),
    _table("of an endless version", "file version '9999", _meta(version="9" * 5000)),
    _table(
        "without a header", "missing or not part of version 1: .'header'", lambda t: t["__metadata__"].pop("header")
    ),
]
