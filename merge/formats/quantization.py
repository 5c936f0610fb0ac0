"""Expert weights in 4 or 8 bits: the arithmetic, and how they lie on disk.

Weights are quantised in groups of g neighbours along a row (the inputs of one output). With b bits and t = 2^(b-1) - 1,

    s = max|w| / t,    q = clamp(round(w / s), -t - 1, t),    w' = q s,

where s is rounded to the dtype of the weights before it is used, and is 1 where it would be 0. So |w - w'| <= s / 2, or
a little more at the ends of a group whose s was rounded down.

On disk they are what the library compressed-tensors calls "pack-quantized", which transformers and vLLM read. In place
of `NAME.weight` [R, C] are `weight_packed` int32 [R, C b / 32] (q + t + 1, so many as fit in a word, the first in the
lowest bits), `weight_scale` [R, C / g] and `weight_shape`, R and C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from flexo.errors import InputError, ModelFolderError
from merge.formats.architecture import Architecture, Shapes, merged_tensors
from merge.tensor_io.float_formats import Values, rounded, to_float32

BITS = (4, 8)
PARTS = ("_packed", "_scale", "_shape")
GROUP = 128  # the default, where it divides
LEAST_GROUP = 8  # so that a group fills whole words


@dataclass(frozen=True)
class Scheme:
    """How experts are quantised: bits per weight, and weights per scale."""

    bits: int
    group_size: int

    @property
    def top(self) -> int:
        """The largest whole number; the smallest is one further from 0."""
        return int(2 ** (self.bits - 1)) - 1

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def config(self) -> dict[str, Any]:
        """`quantization_config` of config.json. Router, norms, embeddings and attention are as they were."""
        weights = {
            "num_bits": self.bits, "type": "int", "symmetric": True, "strategy": "group",
            "group_size": self.group_size, "dynamic": False,
        }  # fmt: skip
        return {
            "quant_method": "compressed-tensors",
            "format": "pack-quantized",
            "quantization_status": "compressed",
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
            "ignore": ["lm_head", "re:.*self_attn.*", r"re:.*mlp\.gate$"],
        }

    def parts(self, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
        """The shapes of what is stored for a weight of `shape`, by suffix of its name."""
        rows, columns = shape
        sizes = (rows, columns * self.bits // 32), (rows, columns // self.group_size), (2,)
        return dict(zip(PARTS, sizes, strict=True))

    def quantize(self, values_RC: Values, dtype: str) -> tuple[Values, Values]:
        """Whole numbers, int8 [R, C], and scales, float32 [R, C / g], from finite float32 values.

        `dtype` is that of the scales, which are rounded to it.
        """
        groups = values_RC.reshape(len(values_RC), -1, self.group_size)
        largest = np.abs(groups).max(-1)
        scale = to_float32(rounded(largest / np.float32(self.top), dtype), dtype).reshape(largest.shape)
        scale = np.where(scale == 0, np.float32(1), scale)
        whole = np.clip(np.rint(groups / scale[..., None]), -self.top - 1, self.top)
        return whole.astype(np.int8).reshape(values_RC.shape), scale

    def dequantize(self, whole_RC: Values, scale_RG: Values) -> Values:
        """float32 [R, C] from whole numbers and scales."""
        groups = whole_RC.reshape(*scale_RG.shape, self.group_size)
        values: Values = (groups * scale_RG[..., None]).astype(np.float32).reshape(whole_RC.shape)
        return values

    def pack(self, whole_RC: Values) -> bytes:
        """The bytes of `weight_packed`."""
        data: Values = (whole_RC.astype(np.int16) + self.top + 1).astype(np.uint8)
        if self.bits == 4:
            data = data[:, ::2] | data[:, 1::2] << 4
        return data.tobytes()

    def unpack(self, data: bytes, shape: tuple[int, ...]) -> Values:
        """The inverse of `pack`: int8 [R, C]."""
        packed: Values = np.frombuffer(data, np.uint8)
        if self.bits == 4:
            packed = np.stack((packed & 15, packed >> 4), -1)
        whole: Values = (packed.astype(np.int16) - self.top - 1).astype(np.int8).reshape(shape)
        return whole


def scheme_for(arch: Architecture, bits: int, group_size: int | None) -> Scheme:
    """The scheme for a model; raises `InputError` for a group size that does not divide its rows.

    Args:
        arch: the model's numbers. Rows of experts are as long as its hidden or its intermediate size.
        bits: 4 or 8.
        group_size: None takes 128, or the largest smaller power of two that divides.
    """
    assert bits in BITS, f"{bits} bits"
    common = math.gcd(arch.hidden_size, arch.intermediate_size)
    if group_size is None:
        group_size = math.gcd(common, GROUP)
    if group_size < LEAST_GROUP or group_size % LEAST_GROUP or common % group_size:
        fitting = [size for size in range(LEAST_GROUP, common + 1, LEAST_GROUP) if common % size == 0]
        advice = f"Give one of {', '.join(map(str, fitting))}." if fitting else "It cannot be quantised here."
        raise InputError(
            f"--group-size {group_size}: expected a multiple of {LEAST_GROUP} that divides the hidden size "
            f"{arch.hidden_size} and the intermediate size {arch.intermediate_size}. {advice}"
        )
    return Scheme(bits, group_size)


def scheme_of(manifest: Mapping[str, Any], arch: Architecture, where: str) -> Scheme | None:
    """What a manifest says of how its experts are quantised, None if they are not; raises `ModelFolderError`."""
    said = manifest.get("quantised")
    if said is None:
        return None
    if not isinstance(said, dict) or said.get("bits") not in BITS or type(said.get("group_size")) is not int:
        raise ModelFolderError(f"{where}: quantised is {str(said)[:80]}, expected bits 4 or 8 and a group_size.")
    try:
        return scheme_for(arch, said["bits"], said["group_size"])
    except InputError as error:
        raise ModelFolderError(f"{where}: quantised does not fit the model. {error}") from None


def packed_tensors(arch: Architecture, experts: int, scheme: Scheme | None) -> Shapes:
    """Every tensor of a FlexOlmo model in the order of the file, experts quantised if there is a scheme."""
    names: Shapes = {}
    for name, shape in merged_tensors(arch, experts).items():
        if scheme and ".mlp.experts." in name:
            names |= {name + part: size for part, size in scheme.parts(shape).items()}
        else:
            names[name] = shape
    return names
