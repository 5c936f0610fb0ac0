"""Choosing experts of a loaded model for the calls inside a `with` block.

    model, tokenizer = load_model(Path("model"))
    with select_experts(model, ["public", "math"]):
        model.generate(...)

The router rows and weights of the others are not there inside the block: what is computed is bit for bit what a model
merged without them computes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from merge.errors import InputError
from merge.manifest import MANIFEST, read_manifest
from merge.names import refuse_unknown


def expert_names(model: PreTrainedModel) -> list[str]:
    """The domains of a loaded merged model in the order of its experts, `public` first, from the folder's manifest."""
    manifest = read_manifest(Path(str(model.name_or_path)))
    return [expert["domain"] for expert in manifest["experts"]]


@contextmanager
def select_experts(model: PreTrainedModel, names: Sequence[str], top_k: int | None = None) -> Iterator[PreTrainedModel]:
    """Leaves only the experts `names` in `model` until the block ends.

    Args:
        model: a `FlexOlmoForCausalLM` loaded from a merged folder. It is changed in place, so no other thread may run
            it meanwhile. Weights of the chosen experts are copied for the time of the block.
        names: domains, in any order; at least one.
        top_k: active experts per token inside the block; None keeps the model's number, at most all chosen.

    Raises:
        InputError: an unknown or repeated name, a top_k that does not fit, or a selection inside another.
    """
    known = expert_names(model)
    if len(known) != model.config.num_experts:
        raise InputError(
            f"{MANIFEST} of {model.name_or_path} lists {len(known)} experts, "
            f"the model now has {model.config.num_experts}. A selection inside another is not possible."
        )
    chosen = _indices(names, known)
    top_k = min(len(chosen), model.config.num_experts_per_tok) if top_k is None else top_k
    if not 1 <= top_k <= len(chosen):
        raise InputError(f"top_k {top_k}: {len(chosen)} experts are selected, expected 1 to {len(chosen)}.")
    blocks = [layer.mlp for layer in model.model.layers]
    whole = [(block.gate.weight, block.experts.gate_up_proj, block.experts.down_proj) for block in blocks]
    before = model.config.num_experts_per_tok
    try:
        for block, weights in zip(blocks, whole, strict=True):
            index = torch.tensor(chosen, device=weights[0].device)
            _put(block, [nn.Parameter(weight.detach()[index], requires_grad=False) for weight in weights], top_k)
        _count(model, len(chosen), top_k)
        yield model
    finally:
        for block, weights in zip(blocks, whole, strict=True):
            _put(block, weights, before)
        _count(model, len(known), before)


def _put(block: Any, weights: Sequence[nn.Parameter], top_k: int) -> None:
    gate, experts = block.gate, block.experts
    gate.weight, experts.gate_up_proj, experts.down_proj = weights
    gate.num_experts = experts.num_experts = len(weights[0])
    gate.top_k = top_k


def _count(model: Any, experts: int, top_k: int) -> None:
    for place in (model, model.config):  # the model keeps its own numbers for the load-balancing loss
        place.num_experts, place.num_experts_per_tok = experts, top_k


def _indices(names: Sequence[str], known: list[str]) -> list[int]:
    refuse_unknown(names, known, "this model")
    if not names or len(set(names)) != len(names):
        raise InputError(f"experts {', '.join(names) or '(none)'}: expected at least one, each named once.")
    return sorted(known.index(name) for name in names)
