"""Domain embeddings as small files: what a domain's text looks like on average, and how alike domains are.

A file is safetensors with a JSON header in its metadata, under `flexo.embedding`:

    mean           [L, D]     float32, E[x] of every layer: the embedding
    square         [L]        float32, E[|x|^2], so that a router row can be scaled
    second_moment  [L, D, D]  float32, E[x x^T], not centred; left out when only means are kept

    version  1
    domain   whose text it was
    kind     "router_input": x is what the router of each layer sees, the anchor's residual stream after attention
             "text": x is a text encoder's embedding of a document, projected to the anchor's width; L = 1
    model    what x was measured with: the anchor's digest, or the encoder, its seed and version
    vectors  how many x were averaged: positions or documents

Such a file tells about private text: a mean over many documents says what they are about, and second moments span the
directions in which single tokens lie, so that with few vectors rare content may be read off them. It is made for its
owner. Nothing in flexo sends it anywhere, and an expert file holds none of it but the router row.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from flexmix.domains.moments import Moments
from flexo.atomic_files import new_file
from flexo.errors import InputError

VERSION = 1
HEADER = "flexo.embedding"
Kind = Literal["router_input", "text"]


@dataclass(frozen=True)
class Embedding:
    """The embedding of one domain; fields and tensors as at the head of this module."""

    domain: str
    kind: Kind
    model: str
    vectors: int
    mean_LD: torch.Tensor  # noqa: N815 - the suffix is the shape
    square_L: torch.Tensor  # noqa: N815
    second_LDD: torch.Tensor | None = None  # noqa: N815

    @classmethod
    def of(cls, domain: str, kind: Kind, model: str, moments: Sequence[Moments], means_only: bool) -> Embedding:
        """From the moments of every layer."""
        return cls(
            domain,
            kind,
            model,
            moments[0].count,
            torch.stack([part.mean for part in moments]).float(),
            torch.stack([part.second.trace() for part in moments]).float(),
            None if means_only else torch.stack([part.second for part in moments]).float(),
        )

    def rows(self) -> list[torch.Tensor]:
        """The mean over the mean squared norm of every layer, [D] each: what router rows start from."""
        return list(self.mean_LD / self.square_L.unsqueeze(-1))

    def write(self, path: Path, replace: bool = False) -> None:
        """Writes the file whole or not at all; raises `InputError` if it exists and may not be replaced."""
        tensors = {"mean": self.mean_LD, "square": self.square_L}
        if self.second_LDD is not None:
            tensors["second_moment"] = self.second_LDD
        header = {name: getattr(self, name) for name in ("domain", "kind", "model", "vectors")}
        metadata = {HEADER: json.dumps({"version": VERSION} | header)}
        with new_file(path, replace) as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial, metadata)


def read_embedding(path: Path) -> Embedding:
    """Opens an embedding file; raises `InputError` unless it is one, whole and finite."""
    try:
        with safe_open(path, "pt") as file:
            metadata, tensors = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InputError(f"{path}: no such file. Make it with flexo-embed TEXT --anchor ANCHOR -o {path}") from None
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: not a whole safetensors file ({error}). Copy it again.") from None
    header = _header(path, metadata.get(HEADER))
    layers, width = tensors["mean"].shape if "mean" in tensors and tensors["mean"].dim() == 2 else (0, 0)
    shapes = {"mean": (layers, width), "square": (layers,), "second_moment": (layers, width, width)}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if layers * width == 0 or found not in (shapes, {name: shapes[name] for name in ("mean", "square")}):
        raise InputError(
            f"{path}: holds {found}, expected mean [L, D], square [L] and perhaps second_moment [L, D, D]. "
            "Make it anew with flexo-embed."
        )
    if not all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in tensors.values()):
        raise InputError(f"{path}: holds other than finite float32 numbers. Make it anew with flexo-embed.")
    if not (tensors["square"] > 0).all():
        raise InputError(f"{path}: a mean squared norm is not positive. Make it anew with flexo-embed.")
    return Embedding(
        header["domain"], header["kind"], header["model"], header["vectors"], tensors["mean"], tensors["square"],
        tensors.get("second_moment"),
    )  # fmt: skip


@dataclass(frozen=True)
class Likeness:
    """How alike N domains are: cosines between their means, over all layers and in every layer."""

    domains: list[str]  # or the files, where two of them are of one name
    mean_NN: torch.Tensor  # noqa: N815 - the suffix is the shape
    layers_LNN: torch.Tensor  # noqa: N815


def compare(files: Sequence[Path | str], centre: Path | str | None = None) -> Likeness:
    """How alike the domains of two embedding files or more are; `centre` is subtracted from all first.

    Raises `InputError` if a file is none, or they cannot be compared.
    """
    if len(files) < 2:
        raise InputError(f"{files[0]}: one file alone, a cosine needs two. Make them with flexo-embed.")
    found = [read_embedding(Path(path)) for path in files]
    names = [part.domain for part in found]
    if len(set(names)) < len(names):
        names = [str(path) for path in files]
    cosine_LNN = cosines(found, read_embedding(Path(centre)) if centre else None)
    return Likeness(names, cosine_LNN.mean(0), cosine_LNN)


def cosines(embeddings: Sequence[Embedding], centre: Embedding | None = None) -> torch.Tensor:
    """Cosines between the means of N domains in every layer, [L, N, N] float64.

    Args:
        embeddings: of one kind, measured with one model.
        centre: subtracted from all first, usually the embedding of public text. Hidden states of any text share a
            large common part, and raw cosines are close to 1 for it.

    Raises:
        InputError: the embeddings cannot be compared; says which and why.
    """
    first = embeddings[0]
    for other in (*embeddings[1:], *([centre] if centre else [])):
        for name in ("kind", "model"):
            if getattr(other, name) != getattr(first, name):
                raise InputError(
                    f"{other.domain!r} cannot be compared with {first.domain!r}: {name} is {getattr(other, name)}, "
                    f"not {getattr(first, name)}. Measure both with the same anchor or encoder."
                )
        if other.mean_LD.shape != first.mean_LD.shape:
            raise InputError(
                f"{other.domain!r} cannot be compared with {first.domain!r}: layers and width are "
                f"{tuple(other.mean_LD.shape)}, not {tuple(first.mean_LD.shape)}."
            )
    x_NLD = torch.stack([part.mean_LD for part in embeddings]).double()
    if centre is not None:
        x_NLD = x_NLD - centre.mean_LD.double()
    x_LND = torch.nn.functional.normalize(x_NLD, dim=-1).transpose(0, 1)
    return x_LND @ x_LND.transpose(1, 2)


def _header(path: Path, text: str | None) -> dict[str, Any]:
    """The header's fields, each of its type and no others."""
    if text is None:
        raise InputError(f"{path}: not a domain embedding (its metadata has no {HEADER}). Make one with flexo-embed.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: its header is not JSON ({error}). Make it anew with flexo-embed.") from None
    kinds = {"version": int, "domain": str, "kind": str, "model": str, "vectors": int}
    if not isinstance(header, dict) or {name: type(value) for name, value in header.items()} != kinds:
        raise InputError(f"{path}: its header has other fields than {', '.join(kinds)}. Make it anew with flexo-embed.")
    if header["version"] != VERSION:
        raise InputError(f"{path}: version {header['version']}, this flexo reads {VERSION}. Make it anew.")
    if header["kind"] not in get_args(Kind) or header["vectors"] < 1:
        raise InputError(f"{path}: kind {header['kind']!r} of {header['vectors']} vectors. Make it anew.")
    return header
