"""Running a model whose experts lie in 4 or 8 bits, with the experts kept so in memory.

transformers itself loads such a folder with the help of compressed-tensors, and unpacks all experts on the way. Here
they stay packed: a layer unpacks some rows of an expert that it needs, multiplies, and drops them.

N tokens, K active experts, E experts, D hidden size, F intermediate size, g weights to a scale, b bits.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - the name everyone uses
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from merge.formats.quantization import Scheme

METHOD = "flexo"
AT_ONCE = 1 << 20  # values unpacked at a time


class PackedExperts(nn.Module):
    """Stands in for `FlexOlmoExperts`: the same sums in the same order, over weights q s made when they are needed."""

    def __init__(self, experts: Any, scheme: Scheme) -> None:
        super().__init__()
        self.act_fn, self.num_experts, self.scheme = experts.act_fn, experts.num_experts, scheme
        for name in ("gate_up_proj", "down_proj"):
            weight = getattr(experts, name)
            shapes = scheme.parts(weight.shape[1:])
            packed = torch.empty(len(weight), *shapes["_packed"], dtype=torch.int32, device=weight.device)
            scale = torch.empty(len(weight), *shapes["_scale"], dtype=weight.dtype, device=weight.device)
            self.register_parameter(name + "_packed", nn.Parameter(packed, requires_grad=False))
            self.register_parameter(name + "_scale", nn.Parameter(scale, requires_grad=False))

    def forward(self, x_ND: torch.Tensor, index_NK: torch.Tensor, weights_NK: torch.Tensor) -> torch.Tensor:
        y_ND = torch.zeros_like(x_ND)
        for expert in cast(Any, index_NK).unique().tolist():
            token, place = torch.where(index_NK == expert)
            gate, up = self.linear(x_ND[token], "gate_up_proj", expert).chunk(2, dim=-1)
            out = self.linear(self.act_fn(gate) * up, "down_proj", expert)
            y_ND.index_add_(0, token, (out * weights_NK[token, place, None]).to(y_ND.dtype))
        return y_ND

    def linear(self, x_NC: torch.Tensor, name: str, expert: int) -> torch.Tensor:
        """One expert's product [N, R] with its weight [R, C], some rows at a time: what is unpacked stays in cache."""
        packed, scale_RG = getattr(self, name + "_packed")[expert], getattr(self, name + "_scale")[expert]
        rows = max(1, AT_ONCE // x_NC.shape[-1])
        parts = [
            F.linear(x_NC, self.unpacked(*some)) for some in zip(packed.split(rows), scale_RG.split(rows), strict=True)
        ]
        return torch.cat(parts, -1) if len(parts) > 1 else parts[0]

    def unpacked(self, packed: torch.Tensor, scale_RG: torch.Tensor) -> torch.Tensor:
        """Rows of a weight [R, C] in the dtype of their scales."""
        whole = packed.view(torch.uint8)
        if self.scheme.bits == 4:
            whole = torch.stack((whole & 15, whole >> 4), -1)
        groups = whole.view(*scale_RG.shape, self.scheme.group_size).to(scale_RG.dtype)
        weight_RC: torch.Tensor = groups.sub_(self.scheme.top + 1).mul_(scale_RG[..., None]).flatten(1)
        return weight_RC


@register_quantization_config(METHOD)
class PackedConfig(QuantizationConfigMixin):
    """What stands in `quantization_config` while a folder is loaded; on disk it is that of compressed-tensors."""

    def __init__(self, bits: int, group_size: int, **_: Any) -> None:
        self.quant_method: Any = METHOD
        self.bits, self.group_size = bits, group_size


@register_quantizer(METHOD)
class PackedQuantizer(HfQuantizer):
    """Puts `PackedExperts` in place before transformers reads the weights, and says what their parts are called."""

    serialized_names = {"weight": ["weight_packed", "weight_scale"]}  # noqa: RUF012 - as the base class has it

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        given: Any = self.quantization_config
        scheme = Scheme(given.bits, given.group_size)
        for layer in model.model.layers:
            layer.mlp.experts = PackedExperts(layer.mlp.experts, scheme)
        model._keys_to_ignore_on_load_unexpected = {r"\.weight_shape$"}

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False
