"""The model that a merge starts from: an anchor, which holds the public expert alone, or a folder merged before."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from flexo.console import Advance
from flexo.errors import ModelFolderError
from merge.formats.anchor_folder import Anchor
from merge.formats.architecture import (
    FFN,
    ROUTER_WEIGHT,
    Architecture,
    anchor_ffn,
    anchor_tensors,
    merged_config,
    merged_ffn,
    merged_router,
)
from merge.formats.manifest import PUBLIC, anchor_entry
from merge.formats.merged_folder import Merged
from merge.formats.model_folder import ModelFolder
from merge.formats.quantization import Scheme
from merge.planning.merge_options import DEFAULT_TOP_K, PUBLIC_WEIGHT
from merge.tensor_io.float_formats import Values, to_float32
from merge.tensor_io.shard_writer import MAX_SHARD_SIZE
from merge.tensor_io.stored_tensor import StoredTensor, combined_digest
from merge.tensor_io.value_checks import scanned


class Base(Protocol):
    """Gives a merge its shared tensors and the experts that were there before."""

    kind: str  # anchor or model, as people are shown it
    folder: Path
    weights: ModelFolder
    architecture: Architecture
    about: dict[str, Any]  # the manifest's entry on the anchor
    experts: list[dict[str, Any]]  # the manifest's entries, public first, without index
    converted_from: str | None  # the dtype that experts are trained in, where a merge has rounded them to another
    scheme: Scheme | None  # how its experts are quantised
    stated: bool  # whether a digest is known for every tensor, so that a merge compares all that it reads
    top_k_at_most: int  # settings of a merge that asks for no others, see `MergeOptions`
    max_shard_size: int
    public_weight: float

    def tensor(self, name: str) -> StoredTensor:
        """A shared tensor, by its name in a merged model."""

    def dtype(self, n: int) -> str:
        """The dtype of layer `n`, its router's and its experts' unless they are quantised."""

    def ffn(self, index: int, n: int, part: str, stored_as: str = "") -> StoredTensor:
        """A weight of expert `index`, or a part of it where experts are quantised."""

    def rows(self, n: int) -> Values:
        """The router of layer `n`, float32 [E, D]."""

    def config(self, experts: int, top_k: int) -> dict[str, Any]:
        """`config.json` of a merge with so many experts."""

    def check(self, read: Mapping[str, str]) -> None:
        """Refuses tensors, given as digests by merged name, that the experts were not trained against."""

    def verify(self, advance: Advance) -> None:
        """Like `check`, reading all weights: for a plan that is shown and not carried out."""

    def refuse_other(self, digest: str) -> None:
        """Like `check`, for callers that already have the digest of all weights."""


class AnchorBase:
    """An anchor: the public expert is its own feed-forward network."""

    kind = "anchor"
    converted_from: str | None = None
    scheme: Scheme | None = None
    stated = True
    top_k_at_most, max_shard_size, public_weight = DEFAULT_TOP_K, MAX_SHARD_SIZE, PUBLIC_WEIGHT

    def __init__(self, anchor: Anchor, name: str, digest: str) -> None:
        self.anchor, self.folder, self.weights, self.architecture = (
            anchor, anchor.folder, anchor.weights, anchor.architecture
        )  # fmt: skip
        self.experts: list[dict[str, Any]] = [PUBLIC]
        self.about = anchor_entry(anchor, name, digest)

    def tensor(self, name: str) -> StoredTensor:
        return self.weights.stored(name)

    def dtype(self, n: int) -> str:
        return self.ffn(0, n, FFN[0]).dtype

    def ffn(self, index: int, n: int, part: str, stored_as: str = "") -> StoredTensor:
        assert index == 0 and not stored_as, f"an anchor has the public expert alone, asked for {index}{stored_as}"
        return self.weights.stored(anchor_ffn(n, part))

    def rows(self, n: int) -> Values:
        stored = self.anchor.shared[ROUTER_WEIGHT.format(n=n)]
        return to_float32(stored.read(), stored.dtype).reshape(1, -1)

    def config(self, experts: int, top_k: int) -> dict[str, Any]:
        return merged_config(self.weights.config, experts, top_k)

    def check(self, read: Mapping[str, str]) -> None:
        places = {name: name for name in anchor_tensors(self.architecture)}
        for n in range(self.architecture.num_hidden_layers):
            places |= {anchor_ffn(n, part): merged_ffn(n, 0, part) for part in FFN}
        self.refuse_other(combined_digest((name, read[place]) for name, place in places.items()))

    def verify(self, advance: Advance) -> None:
        self.refuse_other(self.weights.digest(advance))

    def refuse_other(self, digest: str) -> None:
        if digest != self.about["digest"]:
            raise ModelFolderError(
                f"{self.folder}: the anchor's digest is {digest[:12]}, the experts were trained against the anchor "
                f"{self.about['digest'][:12]} (theirs was called {self.about['name']!r}). Experts only fit the anchor "
                "that they were trained with."
            )


class MergedBase:
    """A folder that was merged before, with the experts that its manifest lists."""

    kind = "model"

    def __init__(self, merged: Merged) -> None:
        self.merged, self.folder, self.weights = merged, merged.folder, merged.weights
        self.architecture, self.scheme, self.about = merged.architecture, merged.scheme, merged.anchor
        self.experts = [
            {key: value for key, value in entry.items() if key != "index"} for entry in merged.manifest["experts"]
        ]
        self.converted_from, self.stated = merged.converted_from, merged.digests is not None
        self.top_k_at_most, self.public_weight = merged.top_k_at_most, merged.public_weight
        self.max_shard_size = merged.max_shard_size or MAX_SHARD_SIZE

    def tensor(self, name: str) -> StoredTensor:
        return self.merged.stored(name)

    def dtype(self, n: int) -> str:
        return self.tensor(merged_router(n)).dtype

    def ffn(self, index: int, n: int, part: str, stored_as: str = "") -> StoredTensor:
        return self.tensor(merged_ffn(n, index, part) + stored_as)

    def rows(self, n: int) -> Values:
        stored = self.tensor(merged_router(n))
        if self.merged.router_trained:  # after the merge: the manifest's digests are those of the rows before
            stored = stored.stated(None, ModelFolderError)
        return to_float32(scanned(stored), stored.dtype).reshape(stored.shape)

    def config(self, experts: int, top_k: int) -> dict[str, Any]:
        return self.weights.config | {"num_experts": experts, "num_experts_per_tok": top_k}

    def check(self, read: Mapping[str, str]) -> None:
        """Every tensor has been compared with the manifest on the way."""

    def verify(self, advance: Advance) -> None:
        """The manifest's digest was compared with the experts' headers; the anchor itself is not at hand."""

    def refuse_other(self, digest: str) -> None:
        """As in `verify`."""
