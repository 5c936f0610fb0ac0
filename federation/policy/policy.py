"""The policy of a federation: one YAML, versioned, and signed with the rest of what the coordinator signs.

version: 2                        # goes up with every change
signatures: true                  # the owner's flexo-sign signature goes into the model's manifest
licences: [CC-BY-4.0, CC0-1.0]    # of experts; an empty list allows any
largest_epsilon: 8.0              # of differential privacy; null asks for none
smallest_tokens: 100000           # of private text behind an expert
quorum: 3                         # owners in force, fewer make no model
public_weight: 4.0                # prior of public text, in units of one owner
priors: {math: 2.0}               # of owners, 1 where it does not say
top_k: null                       # active experts; null is all, at most 4
audit: {share: [0.6, 0.9], loss: [0.05, 0.15], outlier: 10.0}    # limits of flexo-audit; null runs none
days: {root: 365, targets: 180, snapshot: 30, timestamp: 7, owner: 365}    # how long signatures hold
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from flexo.errors import InputError
from merge.formats.expert_header import DOMAIN

MOST = 100_000  # bytes
DAYS: Mapping[str, float] = {"root": 365, "targets": 180, "snapshot": 30, "timestamp": 7, "owner": 365}
AUDIT = {"share": 2, "loss": 2, "outlier": 1}  # numbers that each limit of flexo-audit takes


@dataclass(frozen=True)
class Policy:
    """What the YAML says; the module's docstring explains each name."""

    version: int = 1
    signatures: bool = True
    licences: tuple[str, ...] = ()
    largest_epsilon: float | None = None
    smallest_tokens: int = 0
    quorum: int = 1
    public_weight: float = 4.0
    priors: Mapping[str, float] = field(default_factory=dict)
    top_k: int | None = None
    audit: Mapping[str, Any] | None = None
    days: Mapping[str, float] = field(default_factory=lambda: dict(DAYS))

    def to_yaml(self) -> str:
        text: str = yaml.safe_dump(asdict(self), sort_keys=False, default_flow_style=None, width=100)
        return text


def read_policy(path: Path) -> Policy:
    """A policy from a file; raises `InputError` for anything else, naming what is wrong."""
    try:
        if path.stat().st_size > MOST:
            raise InputError(f"{path}: {path.stat().st_size} bytes, expected a policy of at most {MOST}.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as a policy ({error}).") from None
    return parse_policy(text, str(path))


def parse_policy(text: str, where: str) -> Policy:
    """A policy from its YAML; raises `InputError` naming the setting for anything that is not as described."""
    try:
        found = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise InputError(f"{where}: not readable as YAML ({str(error)[:200]}).") from None
    if not isinstance(found, dict):
        raise InputError(f"{where}: expected settings like 'quorum: 3', got {type(found).__name__}.")
    for name, value in found.items():
        if name not in SETTINGS:
            expected = ", ".join(sorted(SETTINGS))
            raise InputError(f"{where}: {str(name)[:80]!r} is no setting of a policy. Expected: {expected}.")
        fits, expected = SETTINGS[name]
        if not fits(value):
            raise InputError(f"{where}: {name} is {str(value)[:80]!r}, expected {expected}.")
    settings = found | {
        "licences": tuple(found.get("licences") or ()),
        "days": dict(DAYS) | (found.get("days") or {}),
        "priors": dict(found.get("priors") or {}),
    }
    return Policy(**settings)


def _whole(value: Any, least: int = 1) -> bool:
    return type(value) is int and value >= least


def _positive(value: Any, most: float = math.inf) -> bool:
    return type(value) in (int, float) and 0 < value <= most and value < math.inf


def _limit(name: str, value: Any) -> bool:
    numbers = value if isinstance(value, list) else [value]
    return AUDIT.get(name) == len(numbers) and all(map(_positive, numbers)) and numbers == sorted(numbers)


def _each(value: Any, fits: Callable[[Any, Any], bool]) -> bool:
    return isinstance(value, dict) and all(fits(name, one) for name, one in value.items())


SETTINGS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "version": (_whole, "a whole number from 1 on"),
    "signatures": (lambda value: isinstance(value, bool), "true or false"),
    "licences": (
        lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value),
        "a list of licences, as in [CC-BY-4.0]",
    ),
    "largest_epsilon": (lambda value: value is None or _positive(value), "a positive number, or null"),
    "smallest_tokens": (lambda value: _whole(value, 0), "a whole number from 0 on"),
    "quorum": (_whole, "a whole number from 1 on"),
    "public_weight": (lambda value: _positive(value, 1000), "a positive number up to 1000"),
    "priors": (
        lambda value: _each(value, lambda name, one: bool(DOMAIN.fullmatch(str(name))) and _positive(one, 1000)),
        "domains with positive numbers up to 1000, as in {math: 2.0}",
    ),
    "top_k": (lambda value: value is None or _whole(value), "a whole number from 1 on, or null"),
    "audit": (
        lambda value: value is None or _each(value, _limit),
        "limits of flexo-audit, as in {share: [0.6, 0.9], loss: [0.05, 0.15], outlier: 10.0}, or null",
    ),
    "days": (
        lambda value: _each(value, lambda name, one: name in DAYS and _positive(one)),
        f"positive numbers of days for some of {', '.join(DAYS)}",
    ),
}
