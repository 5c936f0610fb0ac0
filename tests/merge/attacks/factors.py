"""Attacks with a weight in factors: another shape or kind, beside the whole weight, or not what the header states."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from merge.planning.compress import RankBudget, compress
from merge.tensor_io.torch_tensors import dtype_name, tensor_digest
from tests.merge.attacks.attack import Attack, Forge

UP = "layers.1.up_proj."
Tensors = dict[str, torch.Tensor]


def _attack(name: str, says: str, change: Callable[[Tensors], object], stated: str = "") -> Attack:
    """A good file with factors whose tensors `change` has changed, all under their right sha256.

    `stated` is what the header says of the weight's dtype, where it is another one.
    """

    def make(f: Forge, path: Path) -> None:
        compress(f.good, path, RankBudget(rank=3))
        content: dict[str, Any] = torch.load(path, weights_only=True)
        header, tensors = json.loads(content["header"]), dict(content["tensors"])
        change(tensors)
        for tensor_name, tensor in tensors.items():
            info = {"dtype": dtype_name(tensor), "shape": list(tensor.shape), "sha256": tensor_digest(tensor)}
            header["tensors"][tensor_name] = info
        for gone in content["tensors"].keys() - tensors.keys():
            del header["tensors"][gone]
        if stated:
            header["tensors"][UP + "weight"]["dtype"] = stated
        f.save(path, content | {"header": json.dumps(header), "tensors": tensors})

    return Attack(name, says, make)


def _version_1(f: Forge, path: Path) -> None:
    compress(f.good, path, RankBudget(rank=3))
    f.save(path, torch.load(path, weights_only=True) | {"version": 1})


ATTACKS = [
    _attack(
        "a factor that gives another weight",
        "layers.1.up_proj.weight does not match the sha256 that was stated",
        lambda t: t[UP + "left"].view(-1)[:1].add_(1),
    ),
    _attack(
        "a scale that is no power of two",
        "layers.1.up_proj.scale is 0.3, expected a power of two",
        lambda t: t.update({UP + "scale": torch.tensor([0.3])}),
    ),
    _attack(
        "a scale that is no number",
        "layers.1.up_proj.scale holds NaN",
        lambda t: t.update({UP + "scale": torch.tensor([torch.nan])}),
    ),
    _attack(
        "a scale that makes weights infinite",
        "layers.1.up_proj.weight does not match",
        lambda t: t.update({UP + "scale": torch.tensor([2.0**127])}),
    ),
    _attack(
        "a rank above that of any matrix",
        r"layers.1.up_proj.left is \(48, 33\), its header asks for \(48, 32\)",
        lambda t: t.update({UP + "left": torch.ones(48, 33, dtype=torch.int16)}),
    ),
    _attack(
        "factors that do not go together",
        r"layers.1.up_proj.right is \(2, 32\), its header asks for \(3, 32\)",
        lambda t: t.update({UP + "right": torch.ones(2, 32, dtype=torch.int16)}),
    ),
    _attack(
        "factors of another kind",
        "layers.1.up_proj.left has dtype F32.*allowed are I16",
        lambda t: t.update({UP + "left": t[UP + "left"].float()}),
    ),
    _attack(
        "one factor alone",
        r"Missing: \['layers.1.up_proj.right'\]",
        lambda t: t.pop(UP + "right"),
    ),
    _attack(
        "a weight and its factors",
        r"Not expected: \['layers.1.up_proj.weight'\]",
        lambda t: t.update({UP + "weight": torch.zeros(48, 32)}),
    ),
    _attack(
        "factors of a router row",
        r"Not expected: \['layers.1.router.left'\]",
        lambda t: t.update({"layers.1.router.left": torch.ones(1, 1, dtype=torch.int16)}),
    ),
    _attack(
        "factors of a weight of whole numbers",
        "layers.1.up_proj.weight has dtype I16",
        lambda t: None,
        stated="I16",
    ),
    Attack("factors in a file of version 1", "a file of version 1 whose header is one of version 2", _version_1),
]
