"""Randomness that only the owner can reproduce: which units a step draws, and the noise on its gradient.

Both are a function of a key of 32 random bytes, a purpose and a number, so a run that was killed goes on to the same
bits from its key alone, and no step draws or adds noise twice. The key lies in the run's work folder and is destroyed
at the end: with it, anyone could take the noise off again. The seed in an expert's header has nothing to do with it.

The stream is ChaCha20 (RFC 7539), not a generator made for simulations, whose state can be computed from its output.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from flexo.errors import InputError

KEY = "noise.key"
KEY_BYTES = 32
PATIENCE = 60.0  # seconds
AT_ONCE = 1 << 20  # numbers
PARTS = 4  # normal numbers in one that is used

Floats = npt.NDArray[np.float64]


class Secret:
    """A key, and what can be drawn from it."""

    def __init__(self, key: bytes) -> None:
        assert len(key) == KEY_BYTES, f"a key of {len(key)} bytes"
        self._key = key

    @classmethod
    def of(cls, folder: Path, makes: bool = True) -> Secret:
        """The secret of a work folder: made at the first call, read at later ones.

        Args:
            folder: the work folder of a run.
            makes: whether this process makes it; one that does not waits for a minute until another has.

        Raises `InputError` if the file is not what was written.
        """
        path = folder / KEY
        waited = 0.0
        while not makes and not _written(path) and waited < PATIENCE:
            time.sleep(0.1)
            waited += 0.1
        if makes and not path.exists():
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
        key = path.read_bytes() if path.exists() else b""
        if len(key) != KEY_BYTES:
            raise InputError(f"{path}: {len(key)} bytes, expected {KEY_BYTES}. The run cannot go on: start it over.")
        return cls(key)

    @property
    def name(self) -> str:
        """Names the run without telling the key."""
        return hashlib.sha256(b"name" + self._key).hexdigest()[:16]

    def uniform(self, purpose: str, number: int, count: int) -> Floats:
        """Numbers in [0, 1) with 53 random bits, [count]; the same for the same purpose and number."""
        return _uniform(self._stream(purpose, number), count)

    def normals(self, purpose: str, number: int, count: int) -> Floats:
        """Independent normal numbers of mean 0 and deviation 1, [count], as `normal` makes them."""
        return _normals(self._stream(purpose, number), count)

    def normal(self, purpose: str, number: int, like: torch.Tensor, deviation: float) -> torch.Tensor:
        """Independent normal numbers of mean 0, in the shape of `like`, float32 on its device.

        Each is the sum of four in double precision, over two: the gaps between the floating-point numbers that one
        could be, from which the number below the noise may be told (Mironov 2012), are then too fine to use
        (Holohan and Braghin 2021, arXiv 2107.10138), as in Opacus' secure mode.
        """
        stream, count = self._stream(purpose, number), like.numel()
        drawn = np.empty(count, dtype=np.float32)
        for first in range(0, count, AT_ONCE):
            n = min(AT_ONCE, count - first)
            drawn[first : first + n] = _normals(stream, n) * deviation
        return torch.from_numpy(drawn).view(like.shape).to(like.device)

    def _stream(self, purpose: str, number: int) -> _Stream:
        return _Stream(self._key, hashlib.sha256(f"{purpose}/{number}".encode()).digest()[:12])


def _written(path: Path) -> bool:
    return path.exists() and path.stat().st_size == KEY_BYTES


def destroy(folder: Path) -> None:
    """Overwrites the key of a work folder and removes it; on disks that keep old blocks, overwriting is only a try."""
    path = folder / KEY
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.write(bytes(KEY_BYTES))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()


class _Stream:
    """Bytes of ChaCha20 for one nonce of 12 bytes."""

    def __init__(self, key: bytes, nonce: bytes) -> None:
        try:
            from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
        except ModuleNotFoundError:
            raise InputError("privacy=dp needs the package cryptography: pip install 'flexo[privacy]'") from None
        self._cipher = Cipher(algorithms.ChaCha20(key, bytes(4) + nonce), mode=None).encryptor()

    def read(self, count: int) -> bytes:
        return self._cipher.update(bytes(count))


def _uniform(stream: _Stream, count: int) -> Floats:
    words = np.frombuffer(stream.read(8 * count), dtype="<u8")
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _normals(stream: _Stream, count: int) -> Floats:
    parts: Floats = sum(_normal(stream, count) for _ in range(PARTS)) / PARTS**0.5
    return parts


def _normal(stream: _Stream, count: int) -> Floats:
    """Box and Muller (1958), in double precision."""
    pairs = -(-count // 2)
    radius = np.sqrt(-2 * np.log1p(-_uniform(stream, pairs)))
    angle = 2 * np.pi * _uniform(stream, pairs)
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
