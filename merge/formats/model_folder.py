"""Model folders: which tensors lie where in their shards, and a digest that does not depend on sharding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.errors import ModelFolderError
from merge.formats.architecture import Shapes
from merge.model_files.weight_files import listed, stored_tensors
from merge.tensor_io.json_file import read_json
from merge.tensor_io.stored_tensor import StoredTensor, combined_digest

if TYPE_CHECKING:
    import torch

ABOUT = "flexo.json"  # of a dense model that flexo made: what it is and how it was made
DENSE = "flexo.dense"  # its format


class ModelFolder:
    """A Hugging Face model folder, read lazily.

    Args:
        folder: where it is.
        config: to take in place of its `config.json`.

    Raises `ModelFolderError` when the folder is missing, has no `config.json` or no safetensors weights, when a shard
    is damaged, when it is not clear which weights it holds, or a tensor has a dtype that is not in `DTYPES`.
    """

    def __init__(self, folder: Path, config: dict[str, Any] | None = None) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ModelFolderError(f"{folder}: no such folder.")
        self.config: dict[str, Any] = read_json(folder / "config.json") if config is None else config
        self._stored = stored_tensors(folder, self.config)

    @property
    def names(self) -> set[str]:
        return set(self._stored)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(stored.nbytes for stored in self._stored.values())

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies."""
        return self._stored[name]

    def dtype(self, name: str) -> torch.dtype:
        from merge.tensor_io.torch_tensors import TORCH

        dtype: torch.dtype = TORCH[self._stored[name].dtype]
        return dtype

    def tensor(self, name: str) -> torch.Tensor:
        """The values of one tensor, read now."""
        from merge.tensor_io.torch_tensors import load_tensor

        return load_tensor(self._stored[name])

    def require(self, shapes: Shapes, kind: str) -> None:
        """Raises `ModelFolderError` unless the folder holds exactly these names and shapes."""
        missing, extra = sorted(shapes.keys() - self.names), sorted(self.names - shapes.keys())
        if missing or extra:
            raise ModelFolderError(
                f"{self.folder}: not {kind}. Missing: {listed(missing)}. Not expected: {listed(extra)}."
            )
        for name, shape in shapes.items():
            if (found := self._stored[name].shape) != shape:
                raise ModelFolderError(
                    f"{self.folder}: {name} is {found}, its config.json asks for {shape}. "
                    "The folder is damaged or config.json was edited."
                )

    def digest(self, advance: Callable[[float], None] = lambda _amount: None) -> str:
        """A sha256 over sorted (name, dtype, shape, bytes), the same however the tensors are spread over files.

        `advance` is told the number of bytes after each tensor.
        """

        digests = []
        for name, stored in self._stored.items():
            digests.append((name, stored.digest()))
            advance(stored.nbytes)
        return combined_digest(digests)


def name_of(folder: Path) -> str:
    """A folder's own name; the path to it is private."""
    return folder.resolve().name
