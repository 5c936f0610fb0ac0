"""Attacks with the pickle in a torch zip: code, other classes, endless nesting, views, shared and foreign storages."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from merge.formats.architecture import expert_tensors
from merge.formats.expert_header import TensorInfo
from tests.merge.attacks.attack import Attack, Forge

ROW, WEIGHT = "layers.1.router.weight", "layers.1.up_proj.weight"
CODE = "asks for '(posix|nt|os) system' to be loaded, which no expert file needs. Nothing was run"
FOREIGN = "not laid out like an expert file"


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.mark}",)


def _code(name: str, place: Callable[[dict[str, Any], Bomb], Any]) -> Attack:
    return Attack(f"code {name}", CODE, lambda f, path: f.save(path, place(dict(f.content), Bomb(f.mark))))


def _program(name: str, program: bytes, says: str = FOREIGN) -> Attack:
    return Attack(name, says, lambda f, path: f.with_program(path, program))


def _tensor(name: str, says: str, change: Callable[[torch.Tensor], object], which: str = WEIGHT) -> Attack:
    def make(f: Forge, path: Path) -> None:
        f.save(path, f.content | {"tensors": f.content["tensors"] | {which: change(f.content["tensors"][which])}})

    return Attack(f"tensor {name}", says, make)


def _shared_storage(f: Forge, path: Path) -> None:
    """Otherwise a small file could announce, and a merge would write, a large model."""
    arch = replace(f.header.anchor.architecture, num_hidden_layers=500)
    shared = {shape: torch.zeros(shape) for shape in set(expert_tensors(arch).values())}
    tensors = {name: shared[shape].view(shape) for name, shape in expert_tensors(arch).items()}
    table = {name: TensorInfo("F32", tuple(tensor.shape), "a" * 64) for name, tensor in tensors.items()}
    header = replace(f.header, anchor=replace(f.header.anchor, architecture=arch)).with_tensors(table)
    f.save(path, f.content | {"header": header.to_json(), "tensors": tensors})


ATTACKS = [
    _code("as the whole file", lambda content, bomb: bomb),
    _code("in an entry of its own", lambda content, bomb: content | {"note": bomb}),
    _code("as the header", lambda content, bomb: content | {"header": bomb}),
    _code("as the tensors", lambda content, bomb: content | {"tensors": bomb}),
    _code("as a tensor", lambda content, bomb: content | {"tensors": content["tensors"] | {ROW: bomb}}),
    _code("as a tensor's name", lambda content, bomb: content | {"tensors": content["tensors"] | {bomb: 1}}),
    _code("as a name", lambda content, bomb: content | {bomb: 1}),
    Attack("code in a bare pickle", "neither", lambda f, path: path.write_bytes(pickle.dumps(Bomb(f.mark)))),
    Attack(
        "code in the old container",
        "neither",
        lambda f, path: f.save(path, Bomb(f.mark), _use_new_zipfile_serialization=False),
    ),
    Attack(
        "a module", "asks for 'torch.nn.modules.linear Linear'", lambda f, path: f.save(path, torch.nn.Linear(2, 2))
    ),
    Attack("a state_dict", FOREIGN, lambda f, path: f.save(path, torch.nn.Linear(2, 2).state_dict())),
    Attack("a tensor alone", FOREIGN, lambda f, path: f.save(path, torch.zeros(3))),
    Attack("an empty dictionary", "not an expert file", lambda f, path: f.save(path, {})),
    Attack("a later protocol", FOREIGN, lambda f, path: f.save(path, f.content, pickle_protocol=4)),
    _program(
        "a key whose hash overflows the unpickler's stack", b"\x80\x02}" + b")" + b"\x85" * 1_000_000 + b"K\x01s."
    ),
    _program("lists in lists", b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."),
    _program("dictionaries in dictionaries", b"\x80\x02" + b"}" * 300_000 + b"."),
    _program("marks without end", b"\x80\x02" + b"(" * 600_000),
    _program("texts without end", b"\x80\x02}(" + b"X\x00\x00\x00\x00" * 499_990),
    _program("a global of builtins", b"\x80\x02cbuiltins\neval\n.", "asks for 'builtins eval'"),
    _program("a global assembled on the stack", b"\x80\x04\x8c\x02os\x8c\x06system\x93."),
    _program("a number without end", b"\x80\x02I999999999999999999999\n."),
    _program("nothing", b""),
    _program("noise", b"\xff\xff"),
    _program("a text longer than the file", b"\x80\x02}X\xff\xff\xff\xff"),
    _tensor("that is a parameter", "asks for 'torch._utils _rebuild_parameter'", torch.nn.Parameter),
    _tensor("that is sparse", "asks for 'torch._utils _rebuild_sparse_tensor'", lambda t: t.to_sparse()),
    _tensor("that wants gradients", FOREIGN, lambda t: t.clone().requires_grad_()),
    _tensor("without values", "asks for 'torch._utils _rebuild_meta", lambda t: t.to("meta")),
    _tensor("that is a part of a storage", "should own", lambda t: t.new_zeros(2000)[: t.numel()].view(t.shape)),
    _tensor("with gaps", "should own", lambda t: torch.stack([t, t], -1)[..., 0]),
    _tensor("of one value repeated", "should own", lambda t: torch.zeros(1).expand(t.shape)),
    _tensor("negated when it is read", "asks for|should own|" + FOREIGN, lambda t: (t + 0j).conj().imag),
    _tensor("of float64", "has dtype F64, its header says F32", lambda t: t.double()),
    _tensor("of integers", "has dtype I64", lambda t: t.long()),
    _tensor("that is too short", "its header asks for", lambda t: t[:-1].clone()),
    _tensor("of three dimensions", FOREIGN, lambda t: t[None].clone()),
    _tensor("with other values", "does not match the sha256", lambda t: t + 1),
    _tensor("that is a list", FOREIGN, lambda t: t.tolist()),
    _tensor("that is nothing", FOREIGN, lambda t: None),
    Attack("tensors that share their bytes", "tensors that share their bytes", _shared_storage),
]
