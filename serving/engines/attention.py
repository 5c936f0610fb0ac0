"""Attention of a packed pass in which each request attends to its own keys alone.

transformers multiplies with the keys of all requests and masks. Then one owner's broken expert reaches strangers'
answers, for 0 times NaN is NaN.

H heads, T positions, D head size.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PER_REQUEST = "flexo_per_request"  # its name in transformers; none of the names there changes its meaning


def attend_per_request(
    module: Any,
    q_1HTD: torch.Tensor,
    k_1HTD: torch.Tensor,
    v_1HTD: torch.Tensor,
    attention_mask: None,
    **given: Any,
) -> tuple[torch.Tensor, None]:
    """What transformers calls in each layer of a packed pass; the cache is theirs."""
    assert attention_mask is None
    k_1HTD, v_1HTD = given["cache"].update(
        key_states=k_1HTD, value_states=v_1HTD, layer_idx=module.layer_idx, kwargs=given
    )
    lengths, seens = (given[name].diff().tolist() for name in ("cu_seq_lens_q", "cu_seq_lens_k"))
    y_1HTD, q, k = torch.empty_like(q_1HTD), 0, 0
    # neighbours of the same lengths are a batch of B, whose products do not meet either
    for (length, seen), alike in groupby(zip(lengths, seens, strict=True)):
        count = len(list(alike))
        q_end, k_end = q + count * length, k + count * seen
        mask = None
        if length > 1:  # the last query sees all keys
            mask = torch.ones(length, seen, dtype=torch.bool, device=q_1HTD.device).tril(seen - length)
        y_BHTD = scaled_dot_product_attention(
            _batch(q_1HTD[:, :, q:q_end], count),
            _batch(k_1HTD[:, :, k:k_end], count),
            _batch(v_1HTD[:, :, k:k_end], count),
            attn_mask=mask,
            scale=given["scaling"],
            enable_gqa=module.num_key_value_groups > 1,
        )
        y_1HTD[:, :, q:q_end] = y_BHTD.transpose(0, 1).flatten(1, 2)
        q, k = q_end, k_end
    return y_1HTD.transpose(1, 2).contiguous(), None


def _batch(x_1HTD: torch.Tensor, count: int) -> torch.Tensor:
    """A row of `count` sequences of the same length as a batch."""
    heads, positions, size = x_1HTD.shape[1:]
    return x_1HTD.reshape(heads, count, positions // count, size).transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(PER_REQUEST, attend_per_request)
