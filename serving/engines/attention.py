"""Attention of a packed pass in which each request attends to its own keys alone.

transformers multiplies with the keys of all requests and masks. Then one owner's broken expert reaches strangers'
answers, for 0 times NaN is NaN.

H heads, T positions of a pass, S of its requests with what is cached, B requests alike, D head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

PER_REQUEST = "flexo_per_request"  # its name in transformers; none of the names there changes its meaning


class Packing:
    """How the requests of a pass lie in its row of tokens and in the cache; made once for all layers.

    Args:
        given: what transformers gives the model for a pass.
    """

    def __init__(self, given: Mapping[str, Any]) -> None:
        (seens,), (read_S,), (self._write_T,) = (
            given["cu_seq_lens_k"].values(),
            given["read_index"],
            given["write_index"],
        )
        (self._cache,) = given["cache"].cache_allocators.values()
        heads, device = self._cache.num_key_value_heads, read_S.device
        # by heads, so that the keys of one lie together: attention over them is then much faster
        self._read_P = (read_S * heads + torch.arange(heads, device=device)[:, None]).flatten()
        self.groups: list[tuple[int, int, int, torch.Tensor | None]] = []
        # neighbours of the same lengths are a batch, whose products do not meet either
        lengths = (cumulative.diff().tolist() for cumulative in (given["cu_seq_lens_q"], seens))
        for (length, seen), alike in groupby(zip(*lengths, strict=True)):
            mask = None
            if length > 1:  # the last query sees all keys
                mask = torch.ones(length, seen, dtype=torch.bool, device=device).tril(seen - length)
            self.groups.append((len(list(alike)), length, seen, mask))

    def kept(self, layer: int, *new_1HTD: torch.Tensor) -> list[torch.Tensor]:
        """Writes a layer's new keys and values into the cache; those of the requests from their begin, [1, H, S, D]."""
        found = []
        for pages, x_1HTD in zip(self._cache.get_cache_for_block_table(layer), new_1HTD, strict=True):
            heads, size = pages.shape[-2:]
            pages.view(-1, heads, size).index_copy_(0, self._write_T, x_1HTD[0].transpose(0, 1))
            if len(self._read_P):  # else nothing was cached before
                x_1HTD = pages.view(-1, size).index_select(0, self._read_P).view(1, heads, -1, size)
            found.append(x_1HTD)
        return found


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
    packing: Packing = given["packing"]
    k_1HSD, v_1HSD = packing.kept(module.layer_idx, k_1HTD, v_1HTD)
    heads, positions, size = q_1HTD.shape[1:]
    y_1THD, q, k = q_1HTD.new_empty(1, positions, heads, size), 0, 0
    for count, length, seen, mask in packing.groups:
        q_end, k_end = q + count * length, k + count * seen
        y_BHTD = scaled_dot_product_attention(
            _batch(q_1HTD[:, :, q:q_end], count),
            _batch(k_1HSD[:, :, k:k_end], count),
            _batch(v_1HSD[:, :, k:k_end], count),
            attn_mask=mask,
            scale=given["scaling"],
            enable_gqa=module.num_key_value_groups > 1,
        )
        y_1THD[0, q:q_end] = y_BHTD.transpose(1, 2).flatten(0, 1)
        q, k = q_end, k_end
    return y_1THD, None


def _batch(x_1HTD: torch.Tensor, count: int) -> torch.Tensor:
    """A row of `count` sequences of the same length as a batch."""
    heads, positions, size = x_1HTD.shape[1:]
    return x_1HTD.reshape(heads, count, positions // count, size).transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(PER_REQUEST, attend_per_request)
