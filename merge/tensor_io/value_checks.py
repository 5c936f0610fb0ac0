"""Checks a tensor's values as they are read: their sha256, NaN and infinity, too many subnormal numbers.

The same rule holds for a merge, which copies them, and for a program that asks an expert file for a tensor.
"""

from __future__ import annotations

import hashlib
import math

from flexo.atomic_files import CHUNK
from merge.tensor_io.float_formats import Bytes, all_finite, count_subnormal
from merge.tensor_io.stored_tensor import StoredTensor


class Scan:
    """What has been seen of one tensor so far; `end` judges it."""

    def __init__(self, stored: StoredTensor) -> None:
        self._stored, self._digest = stored, hashlib.sha256(stored.title)
        self._counts = stored.most_subnormal < 1
        self._finite, self._subnormal = True, 0

    def see(self, data: Bytes) -> None:
        """The next values of the tensor, whole ones."""
        view, dtype = memoryview(data), self._stored.dtype
        for begin in range(0, len(view), CHUNK):
            part = view[begin : begin + CHUNK]
            self._digest.update(part)
            self._finite &= all_finite(part, dtype)
            if self._counts:
                self._subnormal += count_subnormal(part, dtype)

    def end(self) -> str:
        """The sha256, in hex; raises the refusal of the tensor if it is another one than stated, or values are bad.

        The sha256 is judged first: a damaged file may hold anything, and training has nothing to do with that.
        """
        stored, digest, count = self._stored, self._digest.hexdigest(), math.prod(self._stored.shape)
        if stored.sha256 not in (None, digest):
            raise stored.refusal(
                f"{stored.path}: {stored.name} does not match the sha256 that was stated for it. The file was damaged "
                "or altered; ask its owner for a new copy."
            )
        if not self._finite:
            raise stored.refusal(
                f"{stored.path}: {stored.name} holds NaN or infinite values. The training that made it failed."
            )
        if self._subnormal > stored.most_subnormal * count:
            raise stored.refusal(
                f"{stored.path}: {self._subnormal / count:.0%} of {stored.name} are subnormal numbers, below 1e-38, "
                "which training does not produce and which slow some processors down. Ask its owner what they are."
            )
        return digest


def scanned(stored: StoredTensor) -> bytearray:
    """All values of a tensor, read and judged; raises its refusal."""
    scan, data = Scan(stored), stored.read()
    scan.see(data)
    scan.end()
    return data
