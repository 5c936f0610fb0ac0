"""Context heads: an OLMo-2 widened so that its routers see not one position alone but the mean of its context.

A router row reads the state of one position, and a position often does not know its domain; the words before it do.
So the first layer gets further heads that attend to all positions of their document alike, and what they average is
written into dimensions of the residual stream of their own, where nothing but routers and experts reads it:

    residual    [ D dimensions as they were | R new ones ]       R = heads * D / attention heads
    new ones    c_t = mean over s <= t of P e_s                  e_s [D] the token embedding, P [R, D]

Rows of P are directions of embeddings in which documents differ most for how much their words do, measured on public
text (the generalised eigenvectors of both covariances, as in Fisher's discriminant analysis); one of them is as near
to a constant as there is, which serves a router as an intercept. Uniform attention is queries and keys of zero, which
stay zero in training: the gradient of each is a multiple of the other. Norms are rescaled for the wider stream. The
result is a plain OLMo-2 that computes what the given one did, up to rounding and to a share of a percent in its last
norm, and whatever its experts learn, c_t is the same.

B batch, T positions, D hidden size, R new dimensions, N positions of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedModel

from flexmix.domain import Moments
from flexmix.packing import Batch, model_inputs
from merge.errors import InputError
from trainers.loss import NextToken

LEAST = 4  # a context is at least a window over this long
PART = 0.01  # of an attention output that the new dimensions may be before its norm, so that the norm stays the same
CONSTANT = 0.3  # of the state's root mean square: the dimension that hardly varies
RIDGE = 1e-3


@dataclass(frozen=True)
class _Measured:
    """What is known of an anchor's embeddings and of the sizes of its states, from public text."""

    tokens: Moments  # of embeddings
    contexts: Moments  # of the mean embedding of each context
    attention: float  # root mean square of what the first layer's attention puts out, before its norm
    state: float  # ... of what the first layer's router reads
    last: float  # mean square of the state before the last norm


@torch.no_grad()
def add_context_heads(model: PreTrainedModel, heads: int, batches: Iterable[Batch]) -> PreTrainedModel:
    """A new model, wider by `heads` key-value heads in every layer; those of the first layer average the context.

    Args:
        model: an `Olmo2ForCausalLM`.
        heads: of context; with grouped queries each brings as many attention heads as a group has.
        batches: public text.

    Raises:
        InputError: the text has fewer contexts than it takes to tell directions apart.
    """
    measured = _measure(model, list(batches))
    old = model.config
    width, group = old.hidden_size // old.num_attention_heads, old.num_attention_heads // old.num_key_value_heads
    D, R, used = old.hidden_size, heads * group * width, heads * width
    P_RD = _directions(measured, used)
    share = D / (D + R)
    numbers = {
        "hidden_size": D + R,
        "num_attention_heads": old.num_attention_heads + heads * group,
        "num_key_value_heads": old.num_key_value_heads + heads,
        "rms_norm_eps": old.rms_norm_eps * share,
    }
    values = {name: value for name, value in old.to_dict().items() if name not in ("head_dim", "model_type")}
    wide: PreTrainedModel = Olmo2ForCausalLM(Olmo2Config(**(values | numbers)))
    nn.Module.to(wide, model.dtype)  # in place; transformers' own method has no types
    state, before = wide.state_dict(), model.state_dict()
    for name, tensor in state.items():
        tensor.zero_()
        whole = before[name] * math.sqrt(share) if "norm" in name else before[name]
        tensor[tuple(slice(n) for n in whole.shape)] = whole
    attention = wide.model.layers[0].self_attn
    keys, queries = old.num_key_value_heads * width, old.num_attention_heads * width
    attention.v_proj.weight[keys : keys + used, :D] = P_RD.to(model.dtype) * PART * measured.attention
    for head in range(heads):
        new, column = slice(D + head * width, D + (head + 1) * width), queries + head * group * width
        attention.o_proj.weight[new, column : column + width] = torch.eye(width)
    wide.model.layers[0].post_attention_layernorm.weight[D : D + used] = measured.state / PART * math.sqrt(share)
    # the new dimensions lengthen the state by as much on average
    added = measured.state**2 * float((P_RD @ measured.contexts.second @ P_RD.T).trace())
    wide.model.norm.weight[:D] *= math.sqrt(1 + added / (D * measured.last))
    wide.generation_config = deepcopy(model.generation_config)
    nn.Module.train(wide, model.training)
    return wide


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean loss of an anchor, in nats per token."""
    training, loss = model.training, NextToken(model)
    loss.eval()
    parts = [(float(loss(batch)[1]), len(batch["labels"])) for batch in batches]
    loss.train(training)
    return sum(value * rows for value, rows in parts) / sum(rows for _, rows in parts)


def _measure(model: PreTrainedModel, batches: list[Batch]) -> _Measured:
    embeddings, D = model.get_input_embeddings(), model.config.hidden_size
    tokens, contexts = Moments.empty(D), Moments.empty(D)
    for batch in batches:
        x_ND = embeddings(batch["input_ids"]).flatten(0, 1).double()
        tokens.update(x_ND)
        starts_BT = batch["position_ids"] == 0
        starts_BT[:, 0] = True
        context_N = starts_BT.flatten().cumsum(0) - 1
        counts = context_N.bincount()
        sums = x_ND.new_zeros(len(counts), D).index_add_(0, context_N, x_ND)
        contexts.update((sums / counts[:, None])[counts * LEAST >= starts_BT.shape[1]])
    if contexts.count < 2:
        raise InputError(
            "anchor.context_heads: the public text has too few documents of a quarter of a window to tell how they "
            "differ. Give more of it, or set anchor.context_heads=0."
        )
    squares: dict[str, torch.Tensor] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        squares[name] = x.float().square().mean()

    first = model.model.layers[0]
    hooks = [
        first.post_attention_layernorm.register_forward_pre_hook(lambda _m, x: keep("attention", x[0])),
        first.mlp.register_forward_pre_hook(lambda _m, x: keep("state", x[0])),
        model.model.norm.register_forward_pre_hook(lambda _m, x: keep("last", x[0])),
    ]
    try:
        model.model(**model_inputs(batches[0], model.config._attn_implementation), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return _Measured(
        tokens, contexts, float(squares["attention"].sqrt()), float(squares["state"].sqrt()), float(squares["last"])
    )


def _directions(measured: _Measured, count: int) -> torch.Tensor:
    """P [count, D] in float64: a near constant first, then those in which contexts differ most.

    Along all but the first a token has variance one and the mean token lies at zero.
    """
    mean_D, within_DD = measured.tokens.mean, measured.tokens.covariance
    within_DD = within_DD + RIDGE * within_DD.diagonal().mean() * torch.eye(len(mean_D), dtype=within_DD.dtype)
    constant_D = torch.linalg.solve(within_DD, mean_D)
    constant_D = constant_D / (constant_D @ mean_D)  # 1 at the mean token, with the least variance
    root_DD = torch.linalg.cholesky(within_DD)
    half_DD = torch.linalg.solve_triangular(root_DD, measured.contexts.covariance, upper=False)
    between_DD = torch.linalg.solve_triangular(root_DD, half_DD.T, upper=False)
    vectors_DK = torch.linalg.eigh((between_DD + between_DD.T) / 2)[1].flip(1)[:, : count - 1]
    P_KD = torch.linalg.solve_triangular(root_DD.T, vectors_DK, upper=True).T
    P_KD = P_KD - torch.outer(P_KD @ mean_D, constant_D)
    return torch.cat([CONSTANT * constant_D[None], P_KD])
