"""A FlexOlmo folder of ours: opened and checked, and written anew with other router rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merge.assemble import MAX_SHARD_SIZE
from merge.card import model_card
from merge.checkpoint import Checkpoint, write_json
from merge.errors import CheckpointError
from merge.files import new_folder
from merge.flexolmo import Architecture, architecture_of, merged_router, merged_tensors
from merge.manifest import MANIFEST, read_manifest
from merge.packed import packed_tensors, scheme_of
from merge.stream import Piece, write_pieces
from merge.tensors import made_piece

WEIGHTS = ("*.safetensors", "*.safetensors.index.json")


@dataclass(frozen=True)
class Merged:
    """An opened FlexOlmo folder; weights stay on disk until they are asked for."""

    folder: Path
    checkpoint: Checkpoint
    architecture: Architecture
    manifest: dict[str, Any]

    @property
    def domains(self) -> list[str]:
        """Expert names in the order of their indices, `public` first."""
        return [expert["domain"] for expert in self.manifest["experts"]]


def open_merged(folder: Path, quantised: bool = False) -> Merged:
    """Opens a folder made by `flexo-merge` or `flexo-btx`; raises `CheckpointError` unless it is whole.

    `quantised` says whether a folder made by `flexo-quantize` will do, too.
    """
    manifest, checkpoint = read_manifest(folder), Checkpoint(folder)
    config = checkpoint.config
    if config.get("model_type") != "flex_olmo":
        raise CheckpointError(f"{folder}: model_type is {config.get('model_type')!r}, expected 'flex_olmo'.")
    arch = architecture_of(config | {"model_type": "olmo2"}, str(folder))
    scheme = scheme_of(manifest, arch, str(folder / MANIFEST))
    if scheme and not quantised:
        raise CheckpointError(f"{folder}: its experts are quantised. Take the model that it was made from.")
    listed = len(manifest["experts"])
    if config.get("num_experts") != listed:
        raise CheckpointError(
            f"{folder}: {MANIFEST} lists {listed} experts, config.json {config.get('num_experts')}. Merge it again."
        )
    checkpoint.require(packed_tensors(arch, listed, scheme), f"a FlexOlmo model of {listed} experts")
    return Merged(folder, checkpoint, arch, manifest)


def write_rows(
    merged: Merged,
    rows: Mapping[int, torch.Tensor],
    output: Path,
    manifest: dict[str, Any],
    advance: Callable[[float], None] = lambda _amount: None,
) -> None:
    """Writes the model once more with other router rows, every other tensor bit for bit as it was.

    Args:
        merged: the model.
        rows: layer -> router [E, D], rounded here to the dtype of the model's own.
        output: the folder to make, whole or not at all; config, tokenizer and other files are copied.
        manifest: of the new folder.
        advance: told the bytes written.
    """
    source = merged.checkpoint
    new = {merged_router(n): tensor for n, tensor in rows.items()}
    assert new.keys() <= source.names, f"no such routers: {sorted(new.keys() - source.names)[:4]}"
    pieces = []
    for name, shape in merged_tensors(merged.architecture, len(merged.domains)).items():
        if name in new:
            pieces.append(made_piece(name, shape, source.dtype(name), partial(new.__getitem__, name)))
        else:
            pieces.append(Piece(name, source.stored(name).dtype, shape, source.stored(name)))
    left = {path for pattern in WEIGHTS for path in merged.folder.glob(pattern)}
    with new_folder(output) as folder:
        digests = write_pieces(folder, pieces, manifest.get("max_shard_size") or MAX_SHARD_SIZE, advance)
        for path in merged.folder.iterdir():
            if path.is_file() and path not in left and not path.name.startswith("."):
                shutil.copyfile(path, folder / path.name)
        if manifest.get("tensors"):
            manifest = manifest | {"tensors": digests.written}
        write_json(folder / MANIFEST, manifest)
        (folder / "README.md").write_text(model_card(manifest, output.resolve().name), encoding="utf-8")
