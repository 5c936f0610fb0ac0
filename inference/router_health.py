"""What the routers of a merged model do on a text: shares and entropy per layer, and whether all values are finite.

Mass is a token's router probability, before the active experts are chosen. A share, as in `inference.attribution`, is
an expert's part of the weights of the active ones. Entropy is in bits. A layer chooses where its experts differ.

Legend: B sequences, T tokens of all of them, E experts, K active experts, L layers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel


@dataclass(frozen=True)
class LayerRouting:
    """Router figures of one layer over a text."""

    share: list[float]  # [E] mean over tokens; sums to 1
    heaviest: list[float]  # [E] fraction of tokens for which the expert has the most mass; sums to 1
    entropy: float  # bits, mean over tokens: 0 where one expert has all mass, log2 E where all have the same
    chooses: bool  # see `layers_that_choose`


@dataclass(frozen=True)
class Routing:
    """Figures of a whole model, layer by layer; `broken` names what is not finite, and the figures end before it."""

    layers: list[LayerRouting]
    broken: str | None


@torch.inference_mode()
def measure_routing(model: PreTrainedModel, x_BT: torch.Tensor) -> tuple[Routing, torch.Tensor]:
    """Runs `model`, a FlexOlmo in evaluation mode, on token ids `x_BT`; what passes, and the last states [B, T, D]."""
    run: Any = model
    output = run.model(input_ids=x_BT, output_router_logits=True, output_hidden_states=True, use_cache=False)
    routing = _routing(output, model.config.num_experts_per_tok, layers_that_choose(run.model.layers))
    return routing, output.last_hidden_state


def layers_that_choose(layers: Iterable[Any]) -> list[bool]:
    """Whether the experts of each layer of a FlexOlmo model differ, [L]; all True if they do in none.

    In a context layer all experts are one network, so that it makes no difference which of them a router takes.
    """
    differ = [_differ(layer.mlp.experts) for layer in layers]
    return differ if any(differ) else [True] * len(differ)


def entropies(p_TE: torch.Tensor) -> torch.Tensor:
    """Entropy of each token's probabilities, bits, [T]."""
    entropy_T: torch.Tensor = torch.special.entr(p_TE).sum(-1) / math.log(2)
    return entropy_T


def count_choices(index_T: torch.Tensor, experts: int) -> torch.Tensor:
    """How many tokens chose each of `experts`, [E] in float64 on CPU."""
    return torch.bincount(index_T.cpu(), minlength=experts).double()


def _differ(experts: nn.Module) -> bool:
    """Whether two experts have different weights, each parameter being [E, ...]; ends at the first difference."""
    return any(not torch.equal(part, weight[0]) for weight in experts.parameters() for part in weight[1:])


def _routing(output: Any, top_k: int, chooses: list[bool]) -> Routing:
    for n, hidden_BTD in enumerate(output.hidden_states):
        if not hidden_BTD.isfinite().all():
            return Routing([], f"the hidden states behind {f'layer {n - 1}' if n else 'the embedding'}")
    for n, logits_TE in enumerate(output.router_logits):
        if not logits_TE.isfinite().all():
            return Routing([], f"the router logits of layer {n}")
    layers = zip(output.router_logits, chooses, strict=True)
    return Routing([_layer(logits_TE, top_k, one) for logits_TE, one in layers], None)


def _layer(logits_TE: torch.Tensor, top_k: int, chooses: bool) -> LayerRouting:
    experts = logits_TE.shape[-1]
    p_TE = logits_TE.double().softmax(-1)
    p_TK, index_TK = p_TE.topk(top_k)
    weight_TK = p_TK / p_TK.sum(-1, keepdim=True)
    share_E = torch.zeros(experts, dtype=torch.float64).index_add_(
        0, index_TK.cpu().flatten(), weight_TK.cpu().flatten()
    )
    heaviest_E = count_choices(index_TK[:, 0], experts)
    entropy = entropies(p_TE).mean().item()
    return LayerRouting((share_E / share_E.sum()).tolist(), (heaviest_E / heaviest_E.sum()).tolist(), entropy, chooses)
