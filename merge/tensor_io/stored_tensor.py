"""Tensors as plain bytes in files: which bytes of which file, and the header of a safetensors file read and written.

Nothing here needs PyTorch or numpy, whose import alone would take longer than many commands do.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexo.atomic_files import CHUNK
from flexo.errors import InputError, ModelFolderError
from merge.tensor_io.json_file import parse_json

# safetensors name -> name in PyTorch, bytes of a value
DTYPES = {
    "F64": ("float64", 8), "F32": ("float32", 4), "F16": ("float16", 2), "BF16": ("bfloat16", 2),
    "I64": ("int64", 8), "I32": ("int32", 4), "I16": ("int16", 2), "I8": ("int8", 1), "U8": ("uint8", 1),
    "BOOL": ("bool", 1),
}  # fmt: skip
FLOATS = ("F64", "F32", "F16", "BF16")
MAX_TABLE = 36 << 20  # bytes of a safetensors header: that of an expert in its metadata, and about 150 bytes a tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file: values in C order from byte `start` on."""

    path: Path
    name: str
    dtype: str  # a key of DTYPES, or a name that a reader refuses
    shape: tuple[int, ...]
    start: int
    nbytes: int
    sha256: str | None = None  # over `title` and the bytes, as a header or manifest states it; None if none does
    refusal: type[InputError] = ModelFolderError  # raised for damage
    most_subnormal: float = 1.0  # fraction of subnormal numbers beyond which it is refused, see `value_checks`

    @property
    def title(self) -> bytes:
        """The line with which the digest of a tensor begins."""
        return tensor_title(self.dtype, self.shape)

    def stated(self, sha256: str | None, refusal: type[InputError], most_subnormal: float = 1.0) -> StoredTensor:
        return replace(self, sha256=sha256, refusal=refusal, most_subnormal=most_subnormal)

    def read(self) -> bytearray:
        """All values, as they lie there."""
        data = bytearray(self.nbytes)
        with self.path.open("rb") as file:
            self.fill(file.fileno(), memoryview(data), 0)
        return data

    def fill(self, descriptor: int, view: memoryview, begin: int) -> None:
        """Fills `view` with the bytes from `begin` on, from the open file; raises if that has become shorter."""
        filled = 0
        while filled < len(view):
            count = os.preadv(descriptor, [view[filled:]], self.start + begin + filled)
            if count == 0:
                raise self.refusal(f"{self.path}: cut short while it was read. Copy the file again.")
            filled += count

    def chunks(self, descriptor: int, buffer: memoryview, first: int = 0) -> Iterator[tuple[int, memoryview]]:
        """The values from byte `first` on, part by part in one `buffer`, each with the number of bytes before it."""
        for begin in range(first, self.nbytes, len(buffer)):
            view = buffer[: min(len(buffer), self.nbytes - begin)]
            self.fill(descriptor, view, begin)
            yield begin, view

    def digest(self) -> str:
        """The sha256 over dtype, shape and values, as hex; reads them once, in a buffer of a few MB."""
        digest = hashlib.sha256(self.title)
        with self.path.open("rb") as file:
            for _, view in self.chunks(file.fileno(), memoryview(bytearray(min(CHUNK, max(self.nbytes, 1))))):
                digest.update(view)
        return digest.hexdigest()


def tensor_title(dtype: str, shape: Iterable[int]) -> bytes:
    return f"{dtype} {list(shape)}\n".encode()


def combined_digest(digests: Iterable[tuple[str, str]]) -> str:
    """One sha256 over (name, digest) pairs, sorted by name."""
    return hashlib.sha256("".join(f"{name} {digest}\n" for name, digest in sorted(digests)).encode()).hexdigest()


def read_table(path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """The tensors of a safetensors file and its metadata, from its header alone.

    Raises `ValueError` for whatever the format does not allow: repeated names, tensors that overlap or leave gaps, a
    size that does not fit dtype and shape, a file that ends too early or too late.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise ValueError(f"{size} bytes, too few for the header")
        if length > MAX_TABLE:
            raise ValueError(f"a header of {length / 1e6:.0f} MB, expected at most {MAX_TABLE / 1e6:.0f} MB")
        text = file.read(length)
    header = parse_json(text.decode())
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("the metadata is no object of texts")
    tensors = {name: _entry(path, name, entry, 8 + length) for name, entry in header.items()}
    end = 8 + length
    for stored in sorted(tensors.values(), key=lambda stored: (stored.start, stored.nbytes)):
        if stored.start != end:
            raise ValueError(f"{stored.name[:80]!r} begins at byte {stored.start}, the one before it ends at {end}")
        end += stored.nbytes
    if end != size:
        raise ValueError(f"{size} bytes, the header describes {end}")
    return tensors, metadata


def table_bytes(entries: Iterable[tuple[str, str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The start of a safetensors file, length and header, whose tensors (name, dtype, shape) lie one after another."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    start = 0
    for name, dtype, shape in entries:
        end = start + math.prod(shape) * DTYPES[dtype][1]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the values begin aligned
    return struct.pack("<Q", len(text)) + text


def _entry(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"{name[:80]!r} has no dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    counts = [*shape, *offsets] if isinstance(shape, list) and isinstance(offsets, list) else [-1]
    if not isinstance(dtype, str) or any(type(count) is not int or not 0 <= count < 1 << 63 for count in counts):
        raise ValueError(f"{name[:80]!r} has a dtype, shape or offsets of the wrong kind")
    nbytes = offsets[1] - offsets[0] if len(offsets) == 2 else -1
    if nbytes < 0 or (dtype in DTYPES and nbytes != math.prod(shape) * DTYPES[dtype][1]):
        raise ValueError(f"{name[:80]!r} has {nbytes} bytes, which is not {dtype[:20]} {shape[:8]}")
    return StoredTensor(path, name, dtype, tuple(shape), data_start + offsets[0], nbytes)


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write: name, dtype and shape on disk, and where its values lie or the function that makes them."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    origin: StoredTensor | Callable[[], bytes]

    @classmethod
    def copied(cls, name: str, stored: StoredTensor) -> OutputTensor:
        """`stored` under another name, or the same, in its own dtype."""
        return cls(name, stored.dtype, stored.shape, stored)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * DTYPES[self.dtype][1]

    @property
    def converts(self) -> bool:
        """Whether its values lie there in another dtype."""
        return isinstance(self.origin, StoredTensor) and self.origin.dtype != self.dtype
