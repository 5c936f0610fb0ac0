"""What is kept in memory during a step, and what is not."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_freed_memory() -> None:
    """Tells glibc to keep large freed blocks for the next step instead of returning their pages to the kernel.

    A step frees and allocates its logits and activations anew, and faulting the pages in again cost a quarter to a
    third of the time of a tiny model's step. Does nothing with another C library.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 1 << 30)
        mallopt(M_TRIM_THRESHOLD, (1 << 31) - 1)


def checkpoint_activations(model: Any) -> None:
    """Makes a transformers model keep one hidden state per layer for backward, and compute the rest twice.

    transformers also asks for a gradient of the embeddings then, as reentrant checkpointing would need. Nobody uses it
    where embeddings are frozen, and it costs the backward of the whole first layer.
    """
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.disable_input_require_grads()
