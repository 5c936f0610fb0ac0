"""Attacks with values, under the right sha256: not finite, slow to compute with, or a row that takes every token."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.merge.attacks.attack import Attack, Forge

ROW, WEIGHT = "layers.1.router.weight", "layers.1.up_proj.weight"


def _value(f: Forge, path: Path, name: str, value: float) -> None:
    """One value of a tensor exchanged."""
    tensor = f.values[name].clone()
    tensor.view(-1)[5] = value
    f.with_tensor(path, name, tensor)


def _value_attack(what: str, name: str, value: float) -> Attack:
    return Attack(f"{what} in {name}", f"{name} holds NaN or infinite values", lambda f, p: _value(f, p, name, value))


ATTACKS = [
    *(_value_attack(str(value), name, value) for name in (ROW, WEIGHT) for value in (torch.nan, torch.inf, -torch.inf)),
    Attack(
        "a row of enormous norm",
        "the router row of layer 1 has norm .*The expert would be chosen for every token or for none",
        lambda f, p: f.with_tensor(p, ROW, f.values[ROW] * 1e9),
    ),
    Attack(
        "a row whose norm overflows float32",
        "the router row of layer 1 has norm",
        lambda f, p: f.with_tensor(p, ROW, torch.full((32,), 3e38)),
    ),
    Attack(
        "a bias that takes every token",
        "the router row of layer 0 has norm",
        lambda f, p: f.with_tensor(p, "layers.0.router.bias", torch.tensor([1e20])),
    ),
    Attack(
        "a flood of subnormal weights",
        "100% of layers.1.up_proj.weight are subnormal",
        lambda f, p: f.with_tensor(p, WEIGHT, torch.full((48, 32), 1e-40)),
    ),
    Attack(
        "a flood of negative subnormal weights in every fiftieth place",
        "2% of layers.1.up_proj.weight are subnormal",
        lambda f, p: f.with_tensor(p, WEIGHT, torch.where(torch.arange(1536) % 50 == 0, -1e-40, 1.0).view(48, 32)),
    ),
]
