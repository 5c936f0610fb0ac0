"""Model folders that flexo writes: a FlexOlmo folder opened and checked, and what a writer puts beside the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexo.errors import ModelFolderError
from merge.formats.anchor_folder import tokenizer_digest
from merge.formats.architecture import Architecture, anchor_config, architecture_of
from merge.formats.expert_header import SHA256
from merge.formats.manifest import MANIFEST, public_weight_of, read_manifest
from merge.formats.model_card import model_card
from merge.formats.model_folder import ABOUT, DENSE, ModelFolder
from merge.formats.quantization import Scheme, packed_tensors, scheme_of
from merge.model_files.config_keys import QUANTISED, check_settings, without_left_out
from merge.model_files.kept_files import copy_beside
from merge.tensor_io.json_file import write_json
from merge.tensor_io.stored_tensor import FLOATS, StoredTensor


@dataclass(frozen=True)
class Merged:
    """An opened FlexOlmo folder; weights stay on disk until they are asked for. `open_merged` makes it."""

    folder: Path
    manifest: dict[str, Any]
    weights: ModelFolder
    architecture: Architecture
    scheme: Scheme | None  # how its experts are quantised
    top_k_at_most: int  # active experts per token, if it has as many
    max_shard_size: int | None  # bytes of tensors per file; None if the manifest does not say
    public_weight: float  # prior weight of the public expert, in units of one domain
    converted_from: str | None  # the dtype that experts were trained in, where a merge has rounded them to another

    @property
    def anchor(self) -> dict[str, Any]:
        """What the manifest says of the anchor: name, digests and architecture."""
        found: dict[str, Any] = self.manifest["anchor"]
        return found

    @property
    def domains(self) -> list[str]:
        """Expert names in the order of their indices, `public` first."""
        return [expert["domain"] for expert in self.manifest["experts"]]

    @property
    def digests(self) -> dict[str, str] | None:
        """The sha256 of each tensor by name; None where the manifest states none."""
        return self.manifest.get("tensors") or None

    @property
    def router_trained(self) -> bool:
        """Whether router rows were trained after the merge."""
        return bool(self.manifest.get("router_training"))

    def stored(self, name: str) -> StoredTensor:
        """Where a tensor lies, and the sha256 that the manifest states for it."""
        return self.weights.stored(name).stated((self.digests or {}).get(name), ModelFolderError)


def open_merged(folder: Path, quantised: bool = False) -> Merged:
    """Opens a folder made by `flexo-merge`, `flexo-btx` or a command that changes their results.

    Args:
        folder: the folder.
        quantised: whether a folder made by `flexo-quantize` will do, too.

    Raises:
        ModelFolderError: manifest, config.json, tokenizer and tensors are not those of one whole model; or its experts
            are quantised and must not be.
    """
    manifest, weights = read_manifest(folder), ModelFolder(folder)
    where = folder / MANIFEST
    try:
        anchor = manifest["anchor"]
        given: dict[str, Any] = {"model_type": "olmo2"} | anchor["architecture"]
        at_most = max(1, int(manifest.get("top_k_at_most", manifest["top_k"])))
        size, dtype = int(manifest.get("max_shard_size", 0)), manifest.get("converted_from")
        digests = {name: str(anchor[name]) for name in ("name", "digest", "tokenizer_digest", "router_digest")}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ModelFolderError(
            f"{where}: not as flexo-merge writes it ({type(error).__name__}: {str(error)[:80]!r})."
        ) from None
    domains = [entry["domain"] for entry in manifest["experts"]]
    if domains[:1] != ["public"] or len(set(domains)) != len(domains):
        raise ModelFolderError(f"{where}: expected the expert 'public' first and each domain once, got {domains[:20]}.")
    if dtype not in (None, *FLOATS):
        raise ModelFolderError(f"{where}: converted_from is {str(dtype)[:80]!r}, expected one of {', '.join(FLOATS)}.")
    own = {QUANTISED} if manifest.get("quantised") else set()  # it repeats the scheme
    config = {name: value for name, value in weights.config.items() if name not in own}
    arch = _same_architecture(folder, config, architecture_of(given, str(where)), len(domains))
    scheme = scheme_of(manifest, arch, str(where))
    if scheme and not quantised:
        raise ModelFolderError(f"{folder}: its experts are quantised. Take the model that it was made from.")
    shapes = packed_tensors(arch, len(domains), scheme)
    weights.require(shapes, f"a FlexOlmo model of the {len(domains)} experts in {MANIFEST}")
    if tokenizer_digest(folder) != digests["tokenizer_digest"]:
        raise ModelFolderError(f"{folder}: tokenizer.json is not the one of its {MANIFEST}. Was it exchanged?")
    _check_lists(manifest, weights, str(where))
    weight = public_weight_of(folder, manifest)
    return Merged(folder, manifest, weights, arch, scheme, at_most, size or None, weight, dtype)


def _same_architecture(folder: Path, config: Mapping[str, Any], stated: Architecture, experts: int) -> Architecture:
    """The model's numbers, if config.json and manifest agree on them."""
    if config.get("model_type") != "flex_olmo":
        raise ModelFolderError(f"{folder}: model_type is {config.get('model_type')!r}, expected 'flex_olmo'.")
    check_settings(config, str(folder))
    arch = architecture_of(anchor_config(config), str(folder))
    for name, size in stated.to_dict().items():
        if (found := arch.to_dict()[name]) != size:
            raise ModelFolderError(f"{folder}: {name} is {found} in config.json, {size} in {MANIFEST}. Merge it again.")
    if config.get("num_experts") != experts:
        raise ModelFolderError(
            f"{folder}: {MANIFEST} lists {experts} experts, config.json {config.get('num_experts')}. Merge it again."
        )
    return arch


def _check_lists(manifest: Mapping[str, Any], weights: ModelFolder, where: str) -> None:
    """Digests are stated of every tensor or of none, and experts that are gone are a list."""
    stated = manifest.get("tensors") or {}
    known = isinstance(stated, dict) and (not stated or stated.keys() == weights.names)
    if not known or not all(isinstance(digest, str) and SHA256.fullmatch(digest) for digest in stated.values()):
        raise ModelFolderError(f"{where}: tensors is not a sha256 in hex for each tensor of the folder, and not null.")
    for name in ("left", "replaced"):
        if not isinstance(manifest.get(name, []), list):
            raise ModelFolderError(f"{where}: {name} is {str(manifest[name])[:60]!r}, expected a list of experts.")


def finish(folder: Path, output: Path, config: Mapping[str, Any], tokenizer: Path, record: Mapping[str, Any]) -> None:
    """Writes all that a model folder holds beside its tensors: config.json, tokenizer, how it was made, model card.

    Args:
        folder: where the tensors are; it becomes `output`.
        output: its name goes into the model card.
        config: of `config.json`.
        tokenizer: the folder whose tokenizer files are copied.
        record: a manifest, which brings a model card with it, or what `flexo.json` says of a dense model.
    """
    write_json(folder / "config.json", without_left_out(config))
    copy_beside(tokenizer, folder)
    if record["format"] == DENSE:
        write_json(folder / ABOUT, record)
        return
    write_json(folder / MANIFEST, record)
    (folder / "README.md").write_text(model_card(dict(record), output.resolve().name), encoding="utf-8")
