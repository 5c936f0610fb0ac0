"""Whether a merged folder holds exactly what is in force: nobody who has left, nothing that nobody signed.

The weights of an expert in a merged folder are those of its file, byte for byte, and the file's owner has signed the
sha256 of every tensor. So the folder is compared with what owners signed, without their files. Router rows and all
other tensors are compared with the manifest; that a model's manifest is the one which the federation assembled is in
the signed history.
"""

from __future__ import annotations

import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from federation.history.events import Event, models
from federation.reader.status import Federation
from federation.roles.owners import Owner, Submission
from federation.store.place import Advance
from flexo.atomic_files import sha256_file
from merge.formats.architecture import FFN, anchor_ffn, anchor_tensors, expert_ffn, merged_ffn
from merge.formats.manifest import MANIFEST
from merge.formats.merged_folder import Merged, open_merged
from merge.planning.revocation import model_digest
from merge.tensor_io.stored_tensor import StoredTensor, combined_digest


@dataclass
class Verdict:
    """What is wrong with a folder, and what is worth knowing about it."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def verify_model(found: Federation, folder: Path, advance: Advance = lambda _amount: None) -> Verdict:
    """Compares a merged folder with what is in force; reads every tensor once.

    Raises `ModelFolderError` for a folder that is no merged model.
    """
    merged, verdict = open_merged(folder, quantised=True), Verdict()
    recorded = _recorded(found, folder, merged, verdict)
    anchor = str(merged.manifest.get("anchor", {}).get("digest"))
    if anchor not in [one["digest"] for one in found.about["anchors"]]:
        verdict.faults.append(f"its anchor {anchor[:12]} is none of this federation's: it moved on, or never had it")
    signed: dict[str, str] = {}
    owners = {owner.domain: owner for owner in found.owners}
    for index, entry in enumerate(merged.manifest["experts"]):
        if index:
            signed |= _check_expert(found, verdict, index, entry, owners.get(entry["domain"]), anchor)
    held = set(merged.domains)
    for owner in found.owners:
        if owner.domain not in held and anchor in owner.in_force:
            verdict.faults.append(f"{owner.domain}: in force, and not in this model; it joined, or was left out")
    rounded = bool(merged.manifest.get("quantised") or merged.manifest.get("converted_from"))
    if rounded:
        verdict.notes.append("weights were rounded after the merge, so they are compared with the manifest alone")
        signed = {}
    stated = merged.manifest.get("tensors")
    if not isinstance(stated, dict):
        verdict.faults.append(f"{MANIFEST} lists no digests of tensors, so most of the folder cannot be checked")
        stated = {}
    if not recorded:
        verdict.notes.append("not assembled by this federation: its router rows are as its manifest says, unsigned")
    read = _compare(merged, signed, stated, verdict, advance)
    if not rounded:
        _compare_anchor(merged, anchor, read, verdict)
    for name, sha256 in (recorded or {}).get("files", {}).items():  # config and tokenizer
        if not (folder / name).is_file() or sha256_file(folder / name) != sha256:
            verdict.faults.append(f"{name}: not the file that the federation assembled")
    return verdict


def _recorded(found: Federation, folder: Path, merged: Merged, verdict: Verdict) -> Event | None:
    """The history's entry of this model, if it has one; a fault if it says it has."""
    known = models(found.events)
    manifest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    for one in known:  # first of all models: one that was assembled again has the same tensors
        if one["manifest"] == manifest:
            return one
    for one in known:
        if one["model"] == model_digest(merged.manifest):
            verdict.faults.append(
                f"{MANIFEST} was changed after the federation assembled this model as {one['name']!r}"
            )
            return one
    if claimed := merged.manifest.get("federation"):
        verdict.faults.append(f"claims to be of {str(claimed.get('name'))[:80]!r}, and the history does not know it")
    return None


def _check_expert(
    found: Federation, verdict: Verdict, index: int, entry: dict[str, Any], owner: Owner | None, anchor: str
) -> dict[str, str]:
    """Adds what is wrong with one expert; returns what its owner signed of it, by the names of merged tensors."""
    domain, digest = entry["domain"], str(entry.get("digest"))
    if digest in found.left:
        by = owner.withdrawal if owner else None
        reason = f": {by['reason']}" if by and by.get("reason") else ""
        who = "the coordinator withdrew it" if by and by["by"] == "coordinator" else "its owner withdrew it"
        verdict.faults.append(f"{domain}: has left, and this model still holds it ({who}{reason})")
        return {}
    if owner is None:
        verdict.faults.append(f"{domain}: nobody of that name is in the federation, so nobody signed it")
        return {}
    one: Submission | None = owner.in_force.get(anchor)
    if one is None:
        verdict.faults.append(f"{domain}: nothing of it is in force ({owner.problem or 'nothing was submitted'})")
        return {}
    if one.digest != digest:
        verdict.faults.append(
            f"{domain}: not the version in force; serial {owner.serial} has digest {one.digest[:12]}, "
            f"this {digest[:12]}"
        )
        return {}
    layers = range(one.header.anchor.architecture.num_hidden_layers)
    return {merged_ffn(n, index, part): one.header.tensors[expert_ffn(n, part)].sha256 for n in layers for part in FFN}


def _compare(
    merged: Merged, signed: dict[str, str], stated: dict[str, Any], verdict: Verdict, advance: Advance
) -> dict[str, str]:
    """Adds every tensor that is not the one that its owner signed or the manifest states; returns all digests."""

    def digest(stored: StoredTensor) -> tuple[str, str]:
        found = stored.digest()
        advance(stored.nbytes)
        return stored.name, found

    tensors = [merged.weights.stored(name) for name in sorted(merged.weights.names)]
    with ThreadPoolExecutor(2) as pool:
        read = dict(pool.map(digest, tensors))
    for name, found in read.items():
        if found != signed.get(name, found):
            verdict.faults.append(f"{name}: not the weights that its owner signed")
        elif stated and found != stated.get(name):
            verdict.faults.append(f"{name}: not the tensor that {MANIFEST} states")
    return read


def _compare_anchor(merged: Merged, anchor: str, read: dict[str, str], verdict: Verdict) -> None:
    """Adds a fault unless what is not an expert's, with the public network, is the anchor that its owners had."""
    arch = merged.architecture
    places = {name: name for name in anchor_tensors(arch)}
    for n in range(arch.num_hidden_layers):
        places |= {anchor_ffn(n, part): merged_ffn(n, 0, part) for part in FFN}
    if combined_digest((name, read[place]) for name, place in places.items()) != anchor:
        verdict.faults.append(f"its shared weights are not those of the anchor {anchor[:12]}")
