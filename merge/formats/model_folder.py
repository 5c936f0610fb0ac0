"""Model folders: which tensors lie where in their shards, and a digest that does not depend on sharding."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.errors import ModelFolderError
from merge.formats.architecture import Shapes
from merge.tensor_io.json_file import read_json
from merge.tensor_io.stored_tensor import DTYPES, StoredTensor, combined_digest, read_table

if TYPE_CHECKING:
    import torch

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.jinja", "generation_config.json",
)  # fmt: skip
ABOUT = "flexo.json"  # of a dense model that flexo made: what it is and how it was made
DENSE = "flexo.dense"  # its format


class ModelFolder:
    """A Hugging Face model folder, read lazily.

    Raises `ModelFolderError` when the folder is missing, has no `config.json` or no safetensors weights, when a shard
    is damaged, when two shards hold the same name, or a tensor has a dtype that is not in `DTYPES`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not folder.is_dir():
            raise ModelFolderError(f"{folder}: no such folder.")
        self.config: dict[str, Any] = read_json(folder / "config.json")
        self._stored: dict[str, StoredTensor] = {}
        for path in self._weight_files():
            for name, stored in open_table(path).items():
                if name in self._stored:
                    raise ModelFolderError(
                        f"{path}: {name[:80]!r} is also in {self._stored[name].path.name}, and a tensor has one place "
                        "only. Are shards of two models mixed here?"
                    )
                if stored.dtype not in DTYPES:
                    raise ModelFolderError(
                        f"{path}: {name[:80]!r} has dtype {stored.dtype}, expected one of {', '.join(DTYPES)}."
                    )
                self._stored[name] = stored

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
                f"{self.folder}: not {kind}. Missing: {_listed(missing)}. Not expected: {_listed(extra)}."
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

    def _weight_files(self) -> list[Path]:
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not all(isinstance(file, str) for file in weight_map.values()):
                raise ModelFolderError(f"{index}: no weight_map with file names in it.")
            files = sorted(set(weight_map.values()))
            if foreign := [file for file in files if Path(file).name != file]:
                raise ModelFolderError(
                    f"{index}: the shard {foreign[0][:80]!r} is not a plain file name; shards lie beside the index."
                )
            return [self.folder / file for file in files]
        if (single := self.folder / "model.safetensors").exists():
            return [single]
        others = sorted(path.name for path in self.folder.glob("*.bin"))
        found = f"found {_listed(others)}; convert it to safetensors first" if others else "is it a model folder?"
        raise ModelFolderError(f"{self.folder}: no model.safetensors and no model.safetensors.index.json ({found}).")


def open_table(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name; raises `ModelFolderError` unless it is whole."""
    if not path.exists():
        raise ModelFolderError(f"{path}: the index names this shard, but it is missing. Copy or download it again.")
    try:
        return read_table(path)[0]
    except (OSError, ValueError) as error:
        raise ModelFolderError(f"{path}: not a whole safetensors file ({error}). Copy or download it again.") from None


def _listed(names: list[str], limit: int = 4) -> str:
    return (", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")) or "none"


def copy_tokenizer(source: Path, folder: Path) -> None:
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, folder / name)


def name_of(folder: Path) -> str:
    """A folder's own name; the path to it is private."""
    return folder.resolve().name
