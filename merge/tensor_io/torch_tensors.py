"""PyTorch's side of files: their tensors in memory, and tensors in memory as bytes. Importing it takes seconds."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from merge.tensor_io.stored_tensor import DTYPES, OutputTensor, StoredTensor, table_bytes, tensor_title

TORCH = {name: getattr(torch, torch_name) for name, (torch_name, _) in DTYPES.items()}
NAMES = {dtype: name for name, dtype in TORCH.items()}


def dtype_name(tensor: torch.Tensor) -> str:
    """The safetensors name of a tensor's dtype, or PyTorch's own where our files have no such dtype."""
    return NAMES.get(tensor.dtype, str(tensor.dtype))


def load_tensor(stored: StoredTensor) -> torch.Tensor:
    """The values of a tensor in a file, read now, unchecked."""
    return as_tensor(stored.read(), stored)


def as_tensor(data: bytearray, stored: StoredTensor) -> torch.Tensor:
    """Bytes that were read from `stored`, as a tensor over the same memory."""
    if not data:
        return torch.empty(stored.shape, dtype=TORCH[stored.dtype])
    return torch.frombuffer(data, dtype=TORCH[stored.dtype]).reshape(stored.shape)


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor in C order, without a copy where it is contiguous."""
    tensor = tensor.detach().contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,)).view(torch.uint8)  # reshape(-1) may keep an odd stride of size 1
    view: memoryview = flat.numpy().data
    return view


def tensor_digest(tensor: torch.Tensor) -> str:
    """A sha256 over dtype, shape and bytes of one tensor, as hex; the same as `StoredTensor.digest` of its file."""
    digest = hashlib.sha256(tensor_title(NAMES[tensor.dtype], tensor.shape))
    digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def computed_tensor(
    name: str, shape: tuple[int, ...], dtype: torch.dtype, make: Callable[[], torch.Tensor]
) -> OutputTensor:
    """A tensor to write whose values `make` computes when their turn comes, rounded to `dtype`."""
    return OutputTensor(name, NAMES[dtype], shape, lambda: bytes(tensor_bytes(make().detach().to("cpu", dtype))))


def save_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    """Writes tensors that are in memory as one safetensors file, in the order given."""
    entries = ((name, NAMES[tensor.dtype], tuple(tensor.shape)) for name, tensor in tensors.items())
    with path.open("wb") as file:
        file.write(table_bytes(entries, metadata))
        for tensor in tensors.values():
            file.write(tensor_bytes(tensor))
