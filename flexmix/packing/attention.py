"""How a packed batch is given to a model, so that no document attends to another."""

from __future__ import annotations

from typing import Any

import torch

from flexmix.packing.windows import Batch


def varlen(position_ids_BT: torch.Tensor) -> dict[str, Any]:
    """What flash attention must be told about packed rows: keywords of a transformers model's forward.

    transformers finds documents by their positions only in a batch of one row; in larger ones each row would attend
    across its documents. With these keywords it lays the rows end to end, documents apart, for `flash_attn_varlen`.

    Returns:
        `cu_seq_lens_q` and `cu_seq_lens_k` [documents + 1] int32, where documents start and the end;
        `max_length_q` and `max_length_k`, tokens of the longest.
    """
    position_ids = position_ids_BT.flatten()  # each row starts at 0
    starts = (position_ids == 0).nonzero().flatten()
    end = starts.new_tensor([position_ids.numel()])
    lengths = torch.cat([starts, end]).to(torch.int32)
    longest = int(position_ids.max()) + 1
    return {
        "cu_seq_lens_q": lengths, "cu_seq_lens_k": lengths, "max_length_q": longest, "max_length_k": longest,
    }  # fmt: skip


def model_inputs(batch: Batch, attention: str | None) -> dict[str, Any]:
    """Keywords of a transformers model's forward for packed rows, whatever its attention implementation is."""
    inputs = {name: batch[name] for name in ("input_ids", "position_ids")}
    return inputs | (varlen(batch["position_ids"]) if "flash" in (attention or "") else {})
