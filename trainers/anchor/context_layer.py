"""A context layer: an OLMo-2 given a layer in front that tells its routers what the text has been about so far.

A router row reads the state of one position, and a position often does not know its domain; the words before it do.
So a layer that does nothing else is put before the first one. Its heads attend to positions of their document for
their distance alone, and what they average goes into dimensions of the residual stream of its own, which routers and
experts alone read:

    residual    [ D dimensions as they were | R new ones ]       R = heads * D / key-value heads
    new ones    c_t = s sqrt(R) a_t / |a_t|,   a_t = mean over u <= t, weighted by w(t - u), of f(token u)

f [V, R] are features of tokens, kept in the new dimensions of the embeddings, in which documents of the public text
differ most for how much words do: the correspondence analysis of counts of tokens in documents (Greenacre, "Theory and
Applications of Correspondence Analysis", 1984), of which latent semantic analysis is a relative. One feature is
constant. The mean of few words is long and says little, that of many is short and says much. The norm behind attention
makes all equally long, so that rows are not led by chance where the context is short; and the constant, which it scales
with the rest, tells how much context there was, and serves a row as an intercept.

Queries and keys are the same at all positions, so rotary embeddings make their product a sum of cos(d omega) over the
frequencies that they hold, at distance d. With all frequencies below 1 / NEAR, which lie evenly on a logarithmic scale,
w is flat up to NEAR words and falls like d^-FALL beyond: a change of subject is noticed. The layer's
feed-forward network is zero, and so is the norm behind it, whatever an expert would write there. So whatever experts
learn, c_t is the same.

The head is frozen, too, and what it can tell apart is what public text asked of it: an expert that wants other words
has D directions for them. So the head, where it is not the embedding, reads the new dimensions along e [V, R], the
features of tokens at one length (at random for a token that the text never has), and the last layer's networks may
write there: nothing behind them reads c_t but the head. The given network writes nothing; of c_t itself the head takes
as much as serves public text best, a topic's share in its words:

    logits_t = given + a e (c_t + y_t) / rms_t,   a = -L'(0) / L''(0), one step of Newton's on the loss of public text

The result is a plain OLMo-2 with the states of the given one, up to rounding and to a share of a percent in its last
norm.

B batch, T positions, D hidden size, R new dimensions, V vocabulary, N documents.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedModel

from flexmix.packing.attention import model_inputs
from flexmix.packing.windows import NO_LABEL, Batch
from flexo.errors import InputError
from trainers.loop.next_token_loss import NextToken

LEAST = 4  # a document, or what a window has of it, is at least a window over this long
SMOOTHING = 300.0  # added to every token's count: what is seen less often than this counts for less
NEAR, FALL = 50, 1.75  # tokens that count alike, and the power of the distance with which others count for less
VOICE = 1.0  # nats that an output of usual length in the new dimensions adds to a logit, as a standard deviation
TOPIC = 0.05  # ... and that the context adds, at least
STRENGTH = 0.5  # s, in root mean squares of the first layer's states: more, and the last norm notices
QUIET = 0.2  # of the embeddings' root mean square: what a token's own features add to the new dimensions
CHUNK = 256  # positions whose logits are in memory at a time
ROUNDS, SPARE = 12, 16  # of the subspace iteration, and dimensions it carries along


@dataclass(frozen=True)
class _Sizes:
    """Of an anchor's states on public text."""

    embedding: float  # root mean square of an embedding's entries
    state: float  # ... of what the first layer's router reads
    last: float  # mean square of the state before the last norm


@torch.no_grad()
def add_context_layer(model: PreTrainedModel, heads: int, batches: Iterable[Batch]) -> PreTrainedModel:
    """A new model with one layer more, wider by `heads` key-value heads in all of them.

    Args:
        model: an `Olmo2ForCausalLM`.
        heads: of context; with grouped queries each brings as many attention heads as a group has.
        batches: public text, as much as there is: features of tokens are learned from it.

    Raises:
        InputError: the text has too few documents to tell what they are about, or the model has such a layer.
    """
    old = model.config
    if not model.model.layers[0].post_feedforward_layernorm.weight.any():
        raise InputError("anchor.context_heads: this model has a context layer already. Set anchor.context_heads=0.")
    group = old.num_attention_heads // old.num_key_value_heads
    width = old.hidden_size // old.num_attention_heads
    D, R, kv_heads = old.hidden_size, heads * group * width, old.num_key_value_heads + heads
    used = min(R, kv_heads * width)  # grouped queries share their values
    first, counts_NV = _counts(batches, old.vocab_size)
    sizes = _measure(model, first)
    features_VK = torch.ones(old.vocab_size, used, dtype=torch.float64)
    features_VK[:, 1:] = token_features(counts_NV, used - 1)

    share = D / (D + R)
    numbers = {
        "hidden_size": D + R,
        "num_hidden_layers": old.num_hidden_layers + 1,
        "num_attention_heads": old.num_attention_heads + heads * group,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": old.rms_norm_eps * share,
    }
    values = {name: value for name, value in old.to_dict().items() if name not in ("head_dim", "model_type")}
    wide: PreTrainedModel = Olmo2ForCausalLM(Olmo2Config(**(values | numbers)))
    nn.Module.to(wide, model.dtype)  # in place; transformers' own method has no types
    state = wide.state_dict()
    for tensor in state.values():
        tensor.zero_()
    for name, tensor in model.state_dict().items():
        whole = tensor * math.sqrt(share) if "norm" in name else tensor
        state[_moved(name)][tuple(slice(n) for n in whole.shape)] = whole

    quiet, new = QUIET * sizes.embedding, slice(D, D + used)
    wide.model.embed_tokens.weight[:, new] = (quiet * features_VK).to(model.dtype)
    layer = wide.model.layers[0]
    layer.self_attn.v_proj.weight[:used, new] = torch.eye(used) / quiet
    for start in range(0, used, width):  # a key-value head each, of which one attention head of its group is read
        rows = torch.arange(start, min(start + width, used))
        layer.self_attn.o_proj.weight[D + rows, start * group + rows - start] = 1.0
    _attend_by_distance(wide, D, quiet)
    layer.post_attention_layernorm.weight[new] = STRENGTH * sizes.state * math.sqrt(used / (D + R))
    # the last norm sees a longer state, on average by this much
    wide.model.norm.weight[:D] *= math.sqrt(1 + used * (STRENGTH * sizes.state) ** 2 / (D * sizes.last))
    if not old.tie_word_embeddings and features_VK[:, 1:].any():
        _let_speak(wide, first, features_VK[:, 1:], D)
    nn.Module.train(wide, model.training)
    return wide


def _attend_by_distance(wide: PreTrainedModel, constant: int, quiet: float) -> None:
    """Sets queries and keys of the first layer, where the embeddings' dimension `constant` holds `quiet`."""
    attention, frequencies = wide.model.layers[0].self_attn, wide.model.rotary_emb.inv_freq.double()
    width, slow = 2 * len(frequencies), frequencies * NEAR < 1
    if not slow.any():
        return  # queries and keys of zero: all distances count alike
    # logits: a sum over slow frequencies of `each` cos(d omega), about -FALL log(d / NEAR) for long distances
    each = FALL * math.log(float(frequencies[0] / frequencies[-1])) / (len(frequencies) - 1)
    held = torch.cat([slow, torch.zeros_like(slow)])  # of the two dimensions that are turned together, the first
    length = math.sqrt(float(held.sum()) / width)  # of ones there, as the norm of queries and keys sees them
    for projection, norm in ((attention.q_proj, attention.q_norm), (attention.k_proj, attention.k_norm)):
        which = held.repeat(len(norm.weight) // width)
        projection.weight[which, constant] = 1 / quiet
        norm.weight[which] = length * math.sqrt(each * math.sqrt(width))


def _let_speak(wide: PreTrainedModel, batch: Batch, features_VK: torch.Tensor, constant: int) -> None:
    """Lets the head read dimensions behind `constant` along the features of tokens, and the last layer write there."""
    new = slice(constant + 1, constant + 1 + features_VK.shape[1])
    norm, head = wide.model.norm.weight, wide.lm_head.weight
    gain = norm[:constant].mean()
    norm[new] = gain
    rows_VK = features_VK.clone()
    unseen_V = ~rows_VK.any(1)  # by the text that features are from
    draw = torch.Generator().manual_seed(0)
    rows_VK[unseen_V] = torch.randn(rows_VK[unseen_V].shape, generator=draw, dtype=rows_VK.dtype)
    head[:, new] = nn.functional.normalize(rows_VK).to(head.dtype)
    share = _topic_share(wide, batch, new)
    head[:, new] *= share
    rms = math.sqrt(_measure(wide, batch).last)
    wide.model.layers[-1].post_feedforward_layernorm.weight[new] = VOICE * rms / (share * float(gain))


def _topic_share(wide: PreTrainedModel, batch: Batch, new: slice) -> float:
    """How strongly the head should read the dimensions `new`."""
    states = wide.model(**model_inputs(batch, wide.config._attn_implementation), use_cache=False).last_hidden_state
    head, slope, curvature = wide.lm_head.weight.float(), 0.0, 0.0
    kept_BT = batch["labels"] != NO_LABEL
    states_ND, labels_N = states[kept_BT].float(), batch["labels"][kept_BT]
    for x_ND, label_N in zip(torch.split(states_ND, CHUNK), torch.split(labels_N, CHUNK), strict=True):
        topic_NV = x_ND[:, new] @ head[:, new].T
        p_NV = (x_ND @ head.T - topic_NV).softmax(-1)
        mean_N1 = (p_NV * topic_NV).sum(-1, keepdim=True)
        slope += float((mean_N1 - topic_NV.gather(1, label_N[:, None])).sum())
        curvature += float((p_NV * (topic_NV - mean_N1).square()).sum())
    return max(-slope / curvature, TOPIC * math.sqrt(len(states_ND) / curvature))


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, batches: Iterable[Batch]) -> float:
    """Mean loss of an anchor, in nats per token."""
    training, loss = model.training, NextToken(model)
    loss.eval()
    there = ({name: part.to(model.device) for name, part in batch.items()} for batch in batches)
    parts = [(float(loss(batch)[1]), len(batch["labels"])) for batch in there]
    loss.train(training)
    return sum(value * rows for value, rows in parts) / sum(rows for _, rows in parts)


def token_features(counts_NV: torch.Tensor, count: int) -> torch.Tensor:
    """Features [V, count] in float64, those first along which documents differ most.

    Over the text that was counted each has mean zero and variance one; what the text is too little for is zero.

    Args:
        counts_NV: sparse, how often each document has each token.
        count: of features.
    """
    counts_NV = counts_NV.double().coalesce()
    length_N, times_V = counts_NV.sum(1).to_dense(), counts_NV.sum(0).to_dense()
    expected_V = times_V / times_V.sum()
    row_N, column_V = length_N.rsqrt(), (times_V + SMOOTHING).rsqrt()
    document, token = counts_NV.indices()
    scaled_NV = torch.sparse_coo_tensor(
        counts_NV.indices(), counts_NV.values() * row_N[document] * column_V[token], counts_NV.shape,
        check_invariants=True,
    )  # fmt: skip
    # what chance would give has rank one
    left_N, right_V = row_N * length_N, column_V * expected_V

    def deviations(x_VK: torch.Tensor) -> torch.Tensor:
        seen_NK: torch.Tensor = torch.sparse.mm(scaled_NV, x_VK)
        return seen_NK - torch.outer(left_N, right_V @ x_VK)

    def transposed(x_NK: torch.Tensor) -> torch.Tensor:
        seen_VK: torch.Tensor = torch.sparse.mm(scaled_NV.t(), x_NK)
        return seen_VK - torch.outer(right_V, left_N @ x_NK)

    carried = min(count + SPARE, *counts_NV.shape)
    draw = torch.Generator().manual_seed(0)
    basis_VK = torch.randn(len(times_V), carried, generator=draw, dtype=torch.float64)
    for _ in range(ROUNDS):
        basis_VK = torch.linalg.qr(transposed(deviations(basis_VK)))[0]
    _, sizes_K, turn_KK = torch.linalg.svd(deviations(basis_VK), full_matrices=False)
    kept = int((sizes_K[:count] > 1e-6).sum())  # of at most one, as correlations are
    found_VK = column_V[:, None] * (basis_VK @ turn_KK[:kept].T)
    found_VK = found_VK - expected_V @ found_VK
    features_VK = torch.zeros(len(times_V), count, dtype=torch.float64)
    features_VK[:, :kept] = found_VK / (expected_V @ found_VK.square()).sqrt()
    return features_VK


def _counts(batches: Iterable[Batch], vocabulary: int) -> tuple[Batch, torch.Tensor]:
    """The first batch, and how often each document of the others has each token, sparse [N, V]."""
    first: Batch | None = None
    parts: list[torch.Tensor] = []  # document and token, of each position
    documents = 0
    for batch in batches:
        if first is None:
            first = batch  # features are tried on text that they are not from
            continue
        starts_BT = batch["position_ids"] == 0  # each row starts at 0
        document = starts_BT.flatten().cumsum(0) - 1
        long = document.bincount() * LEAST >= starts_BT.shape[1]
        renumbered = long.cumsum(0) - 1 + documents
        kept = long[document]
        parts.append(torch.stack([renumbered[document][kept], batch["input_ids"].flatten()[kept]]))
        documents += int(long.sum())
    if first is None or documents < 2:
        raise InputError(
            "anchor.context_heads: the public text has too few documents of a quarter of a window to tell what they "
            "are about. Give more of it, or set anchor.context_heads=0."
        )
    index = torch.cat(parts, 1)
    ones = torch.ones(index.shape[1])
    return first, torch.sparse_coo_tensor(index, ones, (documents, vocabulary), check_invariants=True).coalesce()


def _measure(model: PreTrainedModel, batch: Batch) -> _Sizes:
    squares: dict[str, float] = {}

    def keep(name: str, x: torch.Tensor) -> None:
        squares[name] = float(x.float().square().mean())

    hooks = [
        model.model.layers[0].mlp.register_forward_pre_hook(lambda _m, x: keep("state", x[0])),
        model.model.norm.register_forward_pre_hook(lambda _m, x: keep("last", x[0])),
    ]
    try:
        model.model(**model_inputs(batch, model.config._attn_implementation), use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    embedding = float(model.model.embed_tokens.weight.float().square().mean().sqrt())
    return _Sizes(embedding, math.sqrt(squares["state"]), squares["last"])


def _moved(name: str) -> str:
    """Where a tensor of the given model lies in the one with a layer in front."""
    start, layers, rest = name.partition(".layers.")
    number, dot, part = rest.partition(".")
    return f"{start}{layers}{int(number) + 1}{dot}{part}" if layers else name
