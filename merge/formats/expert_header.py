"""The header of an expert file: every field with its type and unit, written and parsed without trust.

All fields are required unless a default is given here. Unknown fields are refused, so that a header holds nothing that
is not named here, and no private text.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import sys
import types
import typing
from dataclasses import dataclass, field, replace
from typing import Any

from flexo.errors import ExpertFileError
from merge.formats.architecture import Architecture
from merge.tensor_io.json_file import MAX_HEADER, parse_json
from merge.tensor_io.stored_tensor import DTYPES, combined_digest

MAX_TEXT = 2000
MAX_LAYERS = 1000
DOMAIN = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
SHA256 = re.compile(r"[0-9a-f]{64}")

_hints = functools.cache(typing.get_type_hints)  # it evaluates annotations, which takes time


@dataclass(frozen=True)
class AnchorReference:
    """Which anchor the expert belongs to. Digests decide; the name only helps to find it."""

    name: str  # folder or hf://OWNER/NAME, as the owner gave it
    digest: str  # sha256 over all weights, see ModelFolder.digest
    tokenizer_digest: str  # sha256 of tokenizer.json
    router_digest: str  # sha256 over the public router rows that the expert was trained beside
    architecture: Architecture


@dataclass(frozen=True)
class Losses:
    """Held-out loss in nats per token, before (the anchor) and after (the public and the new expert together)."""

    own_before: float | None
    own_after: float | None
    public_before: float | None
    public_after: float | None


@dataclass(frozen=True)
class Training:
    """How the expert was trained."""

    tokens: int  # seen in training, public ones included
    steps: int  # optimiser steps
    seed: int
    precision: str  # e.g. "bf16-mixed"
    learning_rate: float  # peak
    weight_decay: float
    router_init: str  # how the router row started: "mean", "discriminant", "random", "public", "kept" or "phatgoose"
    public_share: float  # of the tokens seen
    losses: Losses
    router_mass: float | None  # mean probability of this expert on own held-out text, over tokens and layers


@dataclass(frozen=True)
class Data:
    """How much private text stands behind the expert; nothing about what it says."""

    documents: int
    tokens: int


@dataclass(frozen=True)
class Privacy:
    """A differential-privacy guarantee, where training gave one; in version 1 no more is said of it."""

    mechanism: str
    epsilon: float
    delta: float


@dataclass(frozen=True)
class Released:
    """One thing that was released of the owner's text: a sum over units, with Gaussian noise."""

    epsilon: float  # of it alone, at the guarantee's delta
    noise: float  # deviation over the sensitivity
    rate: float  # the probability with which a unit is in the sum
    times: int  # how often, with units drawn anew


@dataclass(frozen=True)
class StatedPrivacy(Privacy):
    """A guarantee as version 2 states it: epsilon and delta are of all that is in the file."""

    unit: str  # whose presence is protected: "document", or the name of the column that names it
    noise_multiplier: float  # of a step's gradient
    clip: str  # the norm that a unit's gradient is clipped to, or "automatic"
    sampling_rate: float  # the probability with which a step draws a unit
    steps: int
    accountant: str  # and its version
    released: dict[str, Released]
    not_covered: str  # what the guarantee says nothing of


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the file."""

    dtype: str  # safetensors names: F32, BF16, F16
    shape: tuple[int, ...]
    sha256: str  # over dtype, shape and bytes, see torch_tensors.tensor_digest

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][1]


@dataclass(frozen=True)
class Header:
    """All that an expert file says about itself."""

    domain: str  # lower-case letters, digits, _ and -; unique within a merge
    title: str  # for people
    licence: str  # of the expert's weights, SPDX where possible
    contact: str  # who answers questions, may be empty
    anchor: AnchorReference
    training: Training
    data: Data
    privacy: Privacy | None  # in version 2 a `StatedPrivacy`
    software: dict[str, str]  # package -> version
    tensors: dict[str, TensorInfo] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """The lowest version of the expert file that can hold this."""
        return 2 if isinstance(self.privacy, StatedPrivacy) or self.factored else 1

    @property
    def factored(self) -> bool:
        """Whether a weight is stated that the file holds as factors."""
        return any(name.endswith(".left") for name in self.tensors)

    @property
    def digest(self) -> str:
        """The digest of the expert, over all its tensors, by which manifests and lists know it."""
        return combined_digest((name, info.sha256) for name, info in self.tensors.items())

    @property
    def network(self) -> str:
        """The digest of its weights, whole or as factors, without router rows: one network under two names has one."""
        return combined_digest((n, info.sha256) for n, info in self.tensors.items() if n.endswith("_proj.weight"))

    def with_tensors(self, tensors: dict[str, TensorInfo]) -> Header:
        return replace(self, tensors=tensors)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def parse_header(text: str, where: str, version: int = 1) -> Header:
    """A header from its JSON; raises `ExpertFileError` naming the field for anything that is not as specified.

    Args:
        text: the JSON.
        where: the file, for messages.
        version: of the expert file.
    """
    if len(text) > MAX_HEADER:
        raise ExpertFileError(f"{where}: a header of {len(text) / 1e6:.0f} MB, expected at most {MAX_HEADER >> 20} MB.")
    try:
        value = parse_json(text)
    except ValueError as error:
        raise ExpertFileError(f"{where}: the header is not readable as JSON ({error}).") from None
    privacy = value.get("privacy") if isinstance(value, dict) else None
    if privacy is not None:
        value = value | {"privacy": None}
        privacy = _build(Privacy if version == 1 else StatedPrivacy, privacy, where, "header.privacy")
        _check_privacy(privacy, where)
    header: Header = replace(_build(Header, value, where, "header"), privacy=privacy)
    if header.version != version:
        raise ExpertFileError(f"{where}: a file of version {version} whose header is one of version {header.version}.")
    check_domain(header.domain, where)
    for name, digest in [
        ("anchor.digest", header.anchor.digest),
        ("anchor.tokenizer_digest", header.anchor.tokenizer_digest),
        ("anchor.router_digest", header.anchor.router_digest),
        *((f"tensors.{name}.sha256", info.sha256) for name, info in header.tensors.items()),
    ]:
        if not SHA256.fullmatch(digest):
            raise ExpertFileError(f"{where}: header.{name[:80]} is {digest[:80]!r}, expected a sha256 in hex.")
    for name, info in header.tensors.items():
        if (
            info.dtype not in DTYPES
            or not 1 <= len(info.shape) <= 2
            or any(not 0 < size < 1 << 31 for size in info.shape)
        ):
            raise ExpertFileError(
                f"{where}: header.tensors.{name[:80]} is {info.dtype[:80]} {list(info.shape)[:8]}, expected a dtype "
                "like F32 and a shape of one or two positive sizes."
            )
    if not 0 < (layers := header.anchor.architecture.num_hidden_layers) <= MAX_LAYERS:
        raise ExpertFileError(f"{where}: header.anchor.architecture has {layers} layers, expected 1 to {MAX_LAYERS}.")
    return header


def _check_privacy(privacy: Privacy, where: str) -> None:
    """Raises `ExpertFileError` for numbers that no guarantee has; one that is not finite is no JSON of ours."""
    positive = {"epsilon": privacy.epsilon}
    shares = {"delta": privacy.delta}
    if isinstance(privacy, StatedPrivacy):
        positive["noise_multiplier"] = privacy.noise_multiplier
        shares["sampling_rate"] = privacy.sampling_rate
        for name, one in privacy.released.items():
            positive[f"released.{name[:80]}.noise"] = one.noise
            shares[f"released.{name[:80]}.rate"] = one.rate
    for name, value in (positive | shares).items():
        if not value > 0 or (name in shares and value > 1):
            expected = "above 0" if name in positive else "above 0, at most 1"
            raise ExpertFileError(f"{where}: header.privacy.{name} is {value:g}, expected a number {expected}.")


def check_domain(domain: str, where: str) -> None:
    """Raises `ExpertFileError` unless `domain` is a plain name that is safe in file names, tables and commands."""
    if not DOMAIN.fullmatch(domain):
        raise ExpertFileError(
            f"{where}: {domain[:80]!r} is no domain name. Use lower-case letters, digits, '_' and '-', at most 64."
        )
    if domain == "public":
        raise ExpertFileError(f"{where}: the domain name 'public' is taken by the anchor's own expert.")


def _build(kind: Any, value: Any, where: str, path: str) -> Any:
    """`value` from JSON as `kind`: a dataclass, a dict, a tuple of ints, an optional or a plain type."""

    def expect(holds: bool, expected: str) -> None:
        if not holds:
            found = "a JSON object or array" if isinstance(value, dict | list) else repr(value)[:60]
            raise ExpertFileError(f"{where}: {path} is {found}, expected {expected}.")

    if typing.get_origin(kind) is types.UnionType:
        inner, _none = typing.get_args(kind)
        return None if value is None else _build(inner, value, where, path)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        expect(isinstance(value, dict), "a JSON object")
        hints = _hints(kind)
        if missing := sorted(hints.keys() - value.keys()):
            raise ExpertFileError(f"{where}: {path}.{missing[0]} is missing.")
        if surplus := sorted(value.keys() - hints.keys()):
            raise ExpertFileError(f"{where}: {path} has the field {surplus[0][:80]!r}, which is not part of it.")
        return kind(**{name: _build(hint, value[name], where, f"{path}.{name}") for name, hint in hints.items()})
    if typing.get_origin(kind) is dict:
        expect(isinstance(value, dict), "a JSON object")
        item = typing.get_args(kind)[1]
        names = {name: _build(str, name, where, f"a name in {path}") for name in value}
        return {name: _build(item, value[name], where, f"{path}.{name[:80]}") for name in names}
    if typing.get_origin(kind) is tuple:
        expect(isinstance(value, list) and all(type(size) is int for size in value), "a shape")
        return tuple(value)
    if kind is float:
        expect(type(value) in (int, float) and abs(value) <= sys.float_info.max, "a finite number")
        return float(value)
    if kind is int:
        expect(type(value) is int and 0 <= value < 1 << 63, "a whole number from 0 on")
    elif kind is str:
        expect(isinstance(value, str) and len(value) <= MAX_TEXT and value.isprintable(), "one line of printable text")
    else:
        assert kind is bool, f"{path}: no rule for {kind}"
        expect(isinstance(value, bool), "true or false")
    return value
