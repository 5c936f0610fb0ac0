"""The two-expert layer of an owner: a frozen public feed-forward network beside a trained one, mixed by a router.

    y_BTD = p_0 * public(x_BTD) + p_1 * expert(x_BTD),   p = softmax([r_pub.x, r.x + min(b, 0)])

With two experts the softmax is a sigmoid of the margin `m = (r - r_pub).x + min(b, 0)`, so p_1 = sigmoid(m), and the
mixture is one interpolation from the public output to the expert's. Both experts run for every token (top-2 of 2).

B batch, T positions, D hidden size, L layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from flexo.errors import InputError
from merge.formats.architecture import FFN, ROUTER_BIAS, ROUTER_WEIGHT, expert_ffn
from trainers.distributed import whole
from trainers.expert.low_rank import LowRankExpert
from trainers.expert.paired_ffn import Weights, paired_ffn
from trainers.expert.unit_gradients import UnitGradients, recorded_linear
from trainers.router.row_init import check_row_init


@dataclass(frozen=True)
class PairOptions:
    """The router of a pair, what of the pair is trained, and what that starts from."""

    router_init: str = "discriminant"  # a key of `trainers.router.row_init.ROW_INITS`
    embedding: str | None = None  # a domain embedding file, instead of reading own text once more
    router_scale: float = 1.0  # on a discriminant
    router_shrinkage: float = 0.01  # of a discriminant's covariance
    train_router: bool = True
    train_expert: bool = True
    first_layer: int = 0  # that gets an expert; in the layers below it the file holds the public network again
    router_bias: float | None = None  # what a trained bias starts from; only a bias below 0 counts; None: no bias
    rank: int | None = None  # of the expert's difference from the public network; None: full
    start: Path | None = None  # an expert file of the same domain to go on from
    standardise: bool = False  # ship the row as PHATGOOSE does, see trainers.router.phatgoose

    def __post_init__(self) -> None:
        check_row_init(self.router_init)
        if self.router_bias is not None and self.router_bias > 0:
            raise InputError(
                f"model.router_bias={self.router_bias}: a bias counts only while it is below 0, expected at most 0."
            )
        if self.start is None and (self.router_init == "kept" or not self.train_expert):
            raise InputError(
                "model.router_init=kept and model.train_expert=false go on from an earlier expert: name "
                "its file with model.start=experts/math.pt."
            )
        if self.start is not None and self.rank is not None:
            raise InputError("model.rank with model.start: an expert file is of full rank. Set model.rank=null.")
        if self.start is not None and self.first_layer:
            raise InputError(
                f"model.first_layer={self.first_layer} with model.start: what that expert learned in the layers below "
                "would be lost. Set model.first_layer=0."
            )
        if not (self.train_expert or self.train_router or self.router_bias is not None):
            raise InputError("model.train_expert=false and model.train_router=false leave nothing to train.")
        if self.rank is not None and self.rank < 1:
            raise InputError(f"model.rank={self.rank}: expected a positive number, or null for a full expert.")

    def first_trained_layer(self, first_layer: int) -> int:
        """The first layer whose expert learns, given the first of the anchor that is not its context layer."""
        return max(self.first_layer, first_layer)

    def check_layers(self, layers: int) -> None:
        """Raises `InputError` unless an anchor of so many layers has the first one with an expert."""
        if not 0 <= self.first_layer < layers:
            raise InputError(
                f"model.first_layer={self.first_layer}: this anchor has layers 0 to {layers - 1}, expected one of them."
            )


class PairedExperts(nn.Module):
    """Takes the place of a decoder layer's `mlp`.

    Args:
        public: the anchor's feed-forward network; its parameters are frozen here.
        expert: the owner's, a network like the public one or a `LowRankExpert`; None where it is the public network
            itself: the layer computes what the anchor does, and nothing in it is trained.
        public_row: the shared public router row [D], a buffer, never trained.
        row: what the owner's router row starts from [D].
        train_row: whether the row is trained.
        bias: None, or what a trained router bias b starts from; min(b, 0) is what counts (FlexOlmo, arXiv 2507.07024,
            section 3.2).

    After a forward pass `logits_BT2` holds the router logits of public and expert, for losses and diagnostics.
    """

    def __init__(
        self,
        public: nn.Module,
        expert: nn.Module | None,
        public_row: torch.Tensor,
        row: torch.Tensor,
        *,
        train_row: bool = True,
        bias: float | None = None,
    ) -> None:
        super().__init__()
        own = expert is not None
        self.public = public.requires_grad_(False)
        self.expert = expert
        self.public_row_D: torch.Tensor
        self.register_buffer("public_row_D", public_row.clone())
        self.row_D = nn.Parameter(row.clone(), requires_grad=train_row and own)
        self.bias = None if bias is None else nn.Parameter(torch.tensor([bias], dtype=row.dtype), requires_grad=own)
        self.logits_BT2: torch.Tensor | None = None
        self.units: UnitGradients | None = None  # where gradients go, for training with privacy

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        self.logits_BT2 = logits_BT2 = self._logits(x_BTD)
        if self.expert is None:
            return self.public(x_BTD)  # type: ignore[no-any-return]
        p_BT1 = torch.sigmoid(logits_BT2[..., 1:] - logits_BT2[..., :1])
        public = _weights(self.public)
        if isinstance(self.expert, LowRankExpert):
            return self.expert.mixture(x_BTD, p_BT1, public, self.units)
        return paired_ffn(x_BTD, p_BT1, public, _weights(self.expert), self.units)

    def _logits(self, x_BTD: torch.Tensor) -> torch.Tensor:
        """The router logits of public and expert [B, T, 2], float32."""
        if self.units is None:
            rows_2D = torch.stack([self.public_row_D, self.row_D])
            logits_BT2 = nn.functional.linear(x_BTD, rows_2D).float()
            if self.bias is not None:
                logits_BT2 = logits_BT2 + torch.cat([torch.zeros_like(self.bias), self.bias.clamp(max=0)])
            return logits_BT2
        own_BT1 = recorded_linear(x_BTD, self.row_D, self.units).float()
        if self.bias is not None:
            own_BT1 = own_BT1 + recorded_linear(torch.ones_like(own_BT1), self.bias, self.units).clamp(max=0)
        return torch.cat([nn.functional.linear(x_BTD, self.public_row_D[None]).float(), own_BT1], -1)

    def expert_weights(self) -> Weights | None:
        """Gate, up and down projection of the expert, whole; None where it is the public network."""
        if self.expert is None:
            return None
        if isinstance(self.expert, LowRankExpert):
            return self.expert.weights(_weights(self.public))
        gate, up, down = map(whole, _weights(self.expert))
        return gate, up, down


def _weights(ffn: nn.Module) -> Weights:
    gate, up, down = (ffn.get_parameter(f"{part}.weight") for part in FFN)
    return gate, up, down


def pair(
    model: PreTrainedModel,
    public_rows: Sequence[torch.Tensor],
    rows: Sequence[torch.Tensor],
    options: PairOptions | None = None,
    first_layer: int = 0,
    start: Callable[[int, str], torch.Tensor] | None = None,
) -> PreTrainedModel:
    """Freezes an anchor and replaces every layer's feed-forward network by a pair. Changes `model` and returns it.

    Args:
        model: the anchor, an `Olmo2ForCausalLM`.
        public_rows: the shared public router row [D] of every layer.
        rows: the starting router row [D] of every layer.
        options: what is trained, and from where on; None: the defaults.
        first_layer: of the anchor, the first that is not its context layer.
        start: layer, projection -> the weight that an expert of full rank starts from, where `model` has another one or
            has rounded it; None: what `model` has.
    """
    options = options or PairOptions()
    model.requires_grad_(False)
    for n, (layer, public_row, row) in enumerate(zip(model.model.layers, public_rows, rows, strict=True)):
        expert: nn.Module | None = None
        if n >= options.first_trained_layer(first_layer):
            expert = _new_expert(layer.mlp, options, None if start is None else partial(start, n))
        layer.mlp = PairedExperts(
            layer.mlp, expert, public_row.float(), row.float(),
            train_row=options.train_router, bias=options.router_bias,
        )  # fmt: skip
    return model


def _new_expert(
    public: nn.Module, options: PairOptions, start: Callable[[str], torch.Tensor] | None = None
) -> nn.Module:
    """An expert that starts as the public network, or as the weights that `start` gives for each projection."""
    if options.rank is not None:
        return LowRankExpert(_weights(public), options.rank)
    expert = deepcopy(public).float().requires_grad_(options.train_expert)
    if start is not None:
        with torch.no_grad():
            for part in FFN:
                expert.get_parameter(f"{part}.weight").copy_(start(part))
    return expert


def pairs(model: nn.Module) -> list[PairedExperts]:
    """The paired layers of a model, from the first layer to the last."""
    return [module for module in model.modules() if isinstance(module, PairedExperts)]


def trainable_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Name and parameter of all that is trained: the expert networks, the owner's router rows, the biases if any."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert ".mlp.expert." in name or name.endswith((".mlp.row_D", ".mlp.bias")), f"{name} must stay frozen"
            yield name, parameter


def router_logits(model: nn.Module) -> torch.Tensor:
    """The router logits of the last forward pass [L, B, T, 2], public first."""
    logits = [layer.logits_BT2 for layer in pairs(model)]
    assert all(part is not None for part in logits), "no forward pass yet"
    return torch.stack([part for part in logits if part is not None])


def expert_state(model: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The expert's half under the names of an expert file; all devices of a run must ask for it together.

    Networks of layers whose expert is the public one are left out.
    """
    tensors: dict[str, torch.Tensor] = {}

    def keep(name: str, tensor: torch.Tensor) -> None:
        """At once: the network that a low-rank expert stands for is made layer by layer, and is large in float32."""
        tensors[name] = tensor.detach().to("cpu", dtype)

    for n, layer in enumerate(pairs(model)):
        if (weights := layer.expert_weights()) is not None:
            for part, weight in zip(FFN, weights, strict=True):
                keep(expert_ffn(n, part), weight)
        keep(ROUTER_WEIGHT.format(n=n), whole(layer.row_D))
        if layer.bias is not None:
            keep(ROUTER_BIAS.format(n=n), whole(layer.bias).clamp(max=0))
    return tensors
