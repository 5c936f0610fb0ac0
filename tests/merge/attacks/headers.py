"""Attacks with the header: JSON that takes memory, paths for names, sizes beyond reason, and what does not fit."""

from __future__ import annotations

from typing import Any

import torch

from tests.merge.attacks.attack import Attack

NAME = "layers.1.up_proj.weight"


def _header(name: str, says: str, change: Any) -> Attack:
    return Attack(f"header {name}", says, lambda f, path: f.with_header(path, change))


def _text(name: str, says: str, make: Any) -> Attack:
    return Attack(f"header {name}", says, lambda f, path: f.with_text(path, make(f.content["header"])))


def _content(name: str, says: str, **change: Any) -> Attack:
    return Attack(f"entry {name}", says, lambda f, path: f.save(path, f.content | change))


def _put(*path: str, to: Any) -> Any:
    def change(header: Any) -> None:
        for name in path[:-1]:
            header = header[name]
        header[path[-1]] = to

    return change


ATTACKS = [
    _text("of 10,000 levels", "not readable as JSON .JSON nested without end", lambda t: "[" * 10_000),
    _text("of 9 MB", "a header of 9 MB, expected at most", lambda t: t + " " * 9_000_000),
    _text("of 7 MB that would take 250", "more than 1000000 values", lambda t: "[" + "[]," * 2_400_000 + "[]]"),
    _text(
        "with a number of a million digits",
        "not readable as JSON",
        lambda t: t.replace('"seed":0', '"seed":' + "9" * 1_000_000),
    ),
    _text("with padding", "bytes, expected", lambda t: t + " " * 200_000),
    _text("with a name twice", "the same name twice", lambda t: t.replace("{", '{"domain":"news",', 1)),
    _text("with NaN", "not readable|expected a finite number", lambda t: t.replace("0.001", "NaN")),
    _text("that is empty", "not readable as JSON", lambda t: ""),
    _header("with a path for a domain", "'../../etc' is no domain name", _put("domain", to="../../etc")),
    _header("with an absolute path for a domain", "'/etc/passwd' is no domain name", _put("domain", to="/etc/passwd")),
    _header("with a hidden domain", "'.ssh' is no domain name", _put("domain", to=".ssh")),
    _header("with a domain of two lines", r"header.domain is 'a\\nb'", _put("domain", to="a\nb")),
    _header("with a domain that ends in a line feed", "header.domain is", _put("domain", to="math\n")),
    _header("that calls itself public", "'public' is taken", _put("domain", to="public")),
    _header("that steers a terminal", r"header.title is '\\x1b", _put("title", to="\x1b[2J\x1b]0;x\x07")),
    _header("with a title without end", "header.title is", _put("title", to="x" * 1_000_000)),
    _header("with private text", "'notes', which is not part of it", _put("notes", to="private")),
    _header("of a billion layers", "1000000000 layers", _put("anchor", "architecture", "num_hidden_layers", to=10**9)),
    _header(
        "of an endless width",
        r"its header asks for \(48, 9223372036854775807\)",
        _put("anchor", "architecture", "hidden_size", to=2**63 - 1),
    ),
    _header("with a negative size", "expected a whole number", _put("anchor", "architecture", "hidden_size", to=-1)),
    _header(
        "with an absurd shape",
        "expected a dtype like F32 and a shape",
        _put("tensors", NAME, "shape", to=[1 << 40, 1 << 40]),
    ),
    _header("with another shape", "list of tensors does not fit", _put("tensors", NAME, "shape", to=[32, 48])),
    _header("with another dtype", "has dtype F32, its header says BF16", _put("tensors", NAME, "dtype", to="BF16")),
    _header("with another sha256", f"{NAME} does not match the sha256", _put("tensors", NAME, "sha256", to="0" * 64)),
    _header("with a tensor less", "list of tensors does not fit", lambda h: h["tensors"].pop(NAME)),
    _header(
        "with a tensor more",
        "list of tensors does not fit",
        lambda h: _put("tensors", "../x", to=h["tensors"][NAME])(h),
    ),
    _header(
        "of another width", r"is \(48, 32\), .* \(64, 32\)", _put("anchor", "architecture", "intermediate_size", to=64)
    ),
    _header(
        "with a path for an anchor",
        "trained against the public router",
        lambda h: h["anchor"].update(name="../../etc", router_digest="0" * 64),
    ),
    _header("of another tokenizer", "trained against the tokenizer", _put("anchor", "tokenizer_digest", to="0" * 64)),
    _content("of another format", "not an expert file", format="other"),
    _content("of a later version", "expert file version '3', this flexo reads versions 1 and 2", version=3),
    _content("that is text for a version", "expert file version '1'", version="1"),
    _content("of an endless version", "expert file version '1000000000000", version=10**12),
    _content("that is no header", "header is a int, expected JSON text", header=5),
    _content("that is no dictionary of tensors", "tensors is a int, expected a dictionary", tensors=5),
    _content("of whole numbers for tensors", "not laid out", tensors={"layers.0.router.weight": 5}),
    Attack(
        "entry missing",
        "missing or not part of version 1: .'tensors'",
        lambda f, path: f.save(path, {name: value for name, value in f.content.items() if name != "tensors"}),
    ),
    _content("with a note", "not part of version 1: .'note'", note="private text"),
    _content("with a tensor beside", "not laid out", extra=torch.zeros(3)),
]
