"""Attention of a packed pass in which each request attends to its own keys alone.

transformers multiplies with the keys of all requests and masks. Then one owner's broken expert reaches strangers'
answers, for 0 times NaN is NaN.

H heads, T positions, D head size.
"""

from __future__ import annotations

from itertools import pairwise
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
    ends_q, ends_k = given["cu_seq_lens_q"].tolist(), given["cu_seq_lens_k"].tolist()
    y_1HTD = torch.empty_like(q_1HTD)
    for (q, q_end), (k, k_end) in zip(pairwise(ends_q), pairwise(ends_k), strict=True):
        length, seen = q_end - q, k_end - k
        mask = None
        if length > 1:  # the last query sees all keys
            mask = torch.ones(length, seen, dtype=torch.bool, device=q_1HTD.device).tril(seen - length)
        y_1HTD[:, :, q:q_end] = scaled_dot_product_attention(
            q_1HTD[:, :, q:q_end],
            k_1HTD[:, :, k:k_end],
            v_1HTD[:, :, k:k_end],
            attn_mask=mask,
            scale=given["scaling"],
            enable_gqa=module.num_key_value_groups > 1,
        )
    return y_1HTD.transpose(1, 2).contiguous(), None


ALL_ATTENTION_FUNCTIONS.register(PER_REQUEST, attend_per_request)
