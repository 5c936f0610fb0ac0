"""A FlexOlmo folder of ours: opened and checked, and written anew with other router rows."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexo.errors import ModelFolderError
from merge.formats.architecture import Architecture, architecture_of
from merge.formats.manifest import MANIFEST, read_manifest
from merge.formats.model_folder import ModelFolder
from merge.formats.quantization import packed_tensors, scheme_of


@dataclass(frozen=True)
class Merged:
    """An opened FlexOlmo folder; weights stay on disk until they are asked for."""

    folder: Path
    weights: ModelFolder
    architecture: Architecture
    manifest: dict[str, Any]

    @property
    def domains(self) -> list[str]:
        """Expert names in the order of their indices, `public` first."""
        return [expert["domain"] for expert in self.manifest["experts"]]


def open_merged(folder: Path, quantised: bool = False) -> Merged:
    """Opens a folder made by `flexo-merge` or `flexo-btx`; raises `ModelFolderError` unless it is whole.

    `quantised` says whether a folder made by `flexo-quantize` will do, too.
    """
    manifest, weights = read_manifest(folder), ModelFolder(folder)
    config = weights.config
    if config.get("model_type") != "flex_olmo":
        raise ModelFolderError(f"{folder}: model_type is {config.get('model_type')!r}, expected 'flex_olmo'.")
    arch = architecture_of(config | {"model_type": "olmo2"}, str(folder))
    scheme = scheme_of(manifest, arch, str(folder / MANIFEST))
    if scheme and not quantised:
        raise ModelFolderError(f"{folder}: its experts are quantised. Take the model that it was made from.")
    listed = len(manifest["experts"])
    if config.get("num_experts") != listed:
        raise ModelFolderError(
            f"{folder}: {MANIFEST} lists {listed} experts, config.json {config.get('num_experts')}. Merge it again."
        )
    weights.require(packed_tensors(arch, listed, scheme), f"a FlexOlmo model of {listed} experts")
    return Merged(folder, weights, arch, manifest)
