"""Inputs of a merge at chosen sizes, without a model: an anchor folder and expert files that `flexo-merge` accepts.

Values are bfloat16 drawn from N(0, 0.02), 16 MB of them, from which every tensor takes a stretch that begins elsewhere.
With `sparse`, files are holes instead: all values are zero, they take no room on the disk and no time to read from it,
but hashing and copying them costs what other bytes cost.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from merge.formats.anchor_folder import BIAS_DIRECTION, BIAS_ERROR, ROUTER, SHARED, open_anchor
from merge.formats.architecture import ROUTER_WEIGHT, Shapes, anchor_tensors, architecture_of, expert_tensors
from merge.formats.expert_file import FORMAT
from merge.formats.expert_header import AnchorReference, Data, Header, Losses, TensorInfo, Training
from merge.tensor_io.float_formats import rounded
from merge.tensor_io.json_file import write_json
from merge.tensor_io.stored_tensor import combined_digest, table_bytes, tensor_title

POOL = 1 << 23  # values


@dataclass(frozen=True)
class Sizes:
    """The numbers of an anchor, and how many experts the merged model has, public included."""

    hidden: int
    ffn: int
    layers: int
    vocabulary: int
    experts: int

    def config(self) -> dict[str, object]:
        return {
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "dtype": "bfloat16",
            "vocab_size": self.vocabulary,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.hidden // 128,
            "num_key_value_heads": self.hidden // 128,
            "tie_word_embeddings": False,
        }


class Weights:
    """Values of tensors by their number, which says where in the pool they begin."""

    def __init__(self, sparse: bool) -> None:
        values = np.random.default_rng(0).normal(0, 0.02, POOL).astype(np.float32)
        self.sparse = sparse
        self.pool = memoryview(bytes(2 * POOL) if sparse else rounded(values, "BF16"))
        self.known: dict[tuple[int, ...], str] = {}  # digests of zeros, by shape

    def write(self, path: Path, shapes: Shapes, metadata: dict[str, str], first: int = 0) -> None:
        """Writes a safetensors file of tensors with the numbers from `first` on."""
        with path.open("wb") as file:
            file.write(table_bytes(((name, "BF16", shape) for name, shape in shapes.items()), metadata))
            if self.sparse:
                file.truncate(file.tell() + sum(2 * math.prod(shape) for shape in shapes.values()))
                return
            for number, shape in enumerate(shapes.values(), first):
                file.writelines(self.stretches(shape, number))

    def digests(self, shapes: Shapes, first: int = 0) -> dict[str, str]:
        """The sha256 of each of these tensors."""
        return {name: self.digest(shape, number) for number, (name, shape) in enumerate(shapes.items(), first)}

    def digest(self, shape: tuple[int, ...], number: int) -> str:
        if self.sparse and shape in self.known:
            return self.known[shape]
        digest = hashlib.sha256(tensor_title("BF16", shape))
        for part in self.stretches(shape, number):
            digest.update(part)
        return self.known.setdefault(shape, digest.hexdigest()) if self.sparse else digest.hexdigest()

    def stretches(self, shape: tuple[int, ...], number: int) -> Iterator[memoryview]:
        left, begin = 2 * math.prod(shape), 2 * (number * 7919 % POOL)
        while left:
            part = self.pool[begin : begin + left]
            left, begin = left - len(part), 0
            yield part


def write_inputs(folder: Path, sizes: Sizes, sparse: bool) -> list[Path]:
    """Writes `anchor/` and `domain-N.safetensors` into `folder`; returns all files with weights, the anchor's first."""
    weights, anchor = Weights(sparse), folder / "anchor"
    (anchor / SHARED).mkdir(parents=True)
    write_json(anchor / "config.json", sizes.config())
    (anchor / "tokenizer.json").write_text("{}")
    arch = architecture_of(sizes.config(), "config.json")
    shapes, path = anchor_tensors(arch), anchor / "model.safetensors"
    weights.write(path, shapes, {"format": "pt"})
    rows: Shapes = {}
    for n in range(sizes.layers):
        rows[ROUTER_WEIGHT.format(n=n)] = rows[BIAS_DIRECTION.format(n=n)] = (sizes.hidden,)
        rows[BIAS_ERROR.format(n=n)] = (1,)
    weights.write(anchor / SHARED / ROUTER, rows, {"format": "pt"})
    opened, digest = open_anchor(anchor), combined_digest(weights.digests(shapes).items())
    reference = AnchorReference(str(anchor), digest, opened.tokenizer_digest, opened.router_digest, arch)
    return [path, *(_write_expert(folder, number, reference, weights) for number in range(1, sizes.experts))]


def _write_expert(folder: Path, number: int, anchor: AnchorReference, weights: Weights) -> Path:
    losses = Losses(own_before=3.0, own_after=2.0, public_before=3.0, public_after=3.0)
    training = Training(1000, 10, 0, "bf16-mixed", 9e-4, 0.0, "random", 0.0, losses, None)
    shapes, first = expert_tensors(anchor.architecture), 10007 * number
    table = {name: TensorInfo("BF16", shapes[name], sha256) for name, sha256 in weights.digests(shapes, first).items()}
    header = Header(
        f"domain-{number}", "Random values", "CC0-1.0", "", anchor, training, Data(1, 1000), None, {}, table
    )
    path = folder / f"{header.domain}.safetensors"
    weights.write(path, shapes, {"format": FORMAT, "version": str(header.version), "header": header.to_json()}, first)
    return path
