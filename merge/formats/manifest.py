"""`manifest.json` of a merged folder: its experts and their owners, how it was made, and which experts have left."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.errors import ModelFolderError
from merge.formats.expert_header import DOMAIN
from merge.tensor_io.json_file import read_json

if TYPE_CHECKING:
    from merge.formats.anchor_folder import Anchor
    from merge.formats.expert_file import ExpertFile
    from merge.formats.signatures import Voucher

MANIFEST = "manifest.json"
FORMAT = "flexo.manifest"
PUBLIC = {"domain": "public", "title": "the anchor's own feed-forward network"}  # the entry of expert 0


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a merged folder; raises `ModelFolderError` if the folder is not one of ours."""
    if not (folder / MANIFEST).exists():
        raise ModelFolderError(f"{folder}: no {MANIFEST}. Is it a folder made by flexo-merge?")
    manifest = read_json(folder / MANIFEST)
    experts = manifest.get("experts")
    if manifest.get("format") != FORMAT or manifest.get("version") != 1 or not isinstance(experts, list):
        raise ModelFolderError(f"{folder / MANIFEST}: not a flexo manifest of version 1.")
    for entry in experts:  # a name goes into tables, commands and the card of the next model
        domain = entry.get("domain") if isinstance(entry, dict) else None
        if not isinstance(domain, str) or not DOMAIN.fullmatch(domain):
            raise ModelFolderError(f"{folder / MANIFEST}: an expert without a plain domain name. Was it edited?")
    return manifest


def public_weight_of(folder: Path, manifest: Mapping[str, Any]) -> float:
    """The prior weight of the public expert, in units of one domain, that rows were made with; 1 if not stated."""
    weight = manifest.get("public_weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < inf:
        raise ModelFolderError(f"{folder / MANIFEST}: public_weight is {weight!r}, expected a positive number.")
    return float(weight)


def made_at() -> str:
    """The time in UTC, or that of SOURCE_DATE_EPOCH, so that a merge can be repeated to the byte."""
    made = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))


def new_record(format: str, how: str, **entries: Any) -> dict[str, Any]:
    """A manifest, or what `flexo.json` says of a dense model: its format, when and how it was made, and `entries`."""
    return {"format": format, "version": 1, "made": made_at(), "how": how} | entries


def anchor_entry(anchor: Anchor, name: str, digest: str) -> dict[str, Any]:
    """What a manifest says of the anchor: the name and digest that experts know it by, and what is read from it now."""
    return {
        "name": name,
        "digest": digest,
        "tokenizer_digest": anchor.tokenizer_digest,
        "router_digest": anchor.router_digest,
        "architecture": anchor.architecture.to_dict(),
    }


def expert_entry(expert: ExpertFile, voucher: Voucher | None = None, sketch: str = "") -> dict[str, Any]:
    """What the manifest says of an expert that joins, without its index."""
    about = expert.header.to_dict()
    del about["tensors"], about["anchor"]
    known_by = {"digest": expert.header.digest} | ({"sketch": sketch} if sketch else {})
    vouched = {"vouched": voucher.to_dict()} if voucher else {}
    return {"file": expert.path.name} | known_by | about | {"router_bias": expert.has_bias} | vouched
