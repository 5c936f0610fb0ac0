"""One setting of the C library that a training or evaluation process on the CPU is a third faster with."""

from __future__ import annotations

import ctypes
import sys

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
