"""Writes a merged model once more with other router rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from flexo.atomic_files import new_folder
from merge.formats.architecture import merged_router, merged_tensors
from merge.formats.merged_folder import Merged, finish
from merge.tensor_io.shard_writer import MAX_SHARD_SIZE, write_tensors
from merge.tensor_io.stored_tensor import OutputTensor
from merge.tensor_io.torch_tensors import computed_tensor


def write_rows(
    merged: Merged,
    rows: Mapping[int, torch.Tensor],
    output: Path,
    manifest: dict[str, Any],
    advance: Callable[[float], None] = lambda _amount: None,
) -> None:
    """Writes the model once more with other router rows, every other tensor bit for bit as its manifest states.

    Args:
        merged: the model.
        rows: layer -> router [E, D], rounded here to the dtype of the model's own.
        output: the folder to make, whole or not at all; config and tokenizer are copied.
        manifest: of the new folder.
        advance: told the bytes written.

    Raises:
        ModelFolderError: a tensor is damaged or was exchanged.
    """
    old = merged.weights
    new = {merged_router(n): tensor for n, tensor in rows.items()}
    assert new.keys() <= old.names, f"no such routers: {sorted(new.keys() - old.names)[:4]}"
    tensors = []
    for name, shape in merged_tensors(merged.architecture, len(merged.domains)).items():
        if name in new:
            tensors.append(computed_tensor(name, shape, old.dtype(name), partial(new.__getitem__, name)))
        else:
            tensors.append(OutputTensor.copied(name, merged.stored(name)))
    with new_folder(output) as folder:
        digests = write_tensors(folder, tensors, manifest.get("max_shard_size") or MAX_SHARD_SIZE, advance)
        if manifest.get("tensors"):
            manifest = manifest | {"tensors": digests.written}
        finish(folder, output, old.config, merged.folder, manifest)
