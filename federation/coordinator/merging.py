"""The merge of what was chosen: the plan of `flexo-merge`, the owners' signatures, and the federation's name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tuf.api.metadata import Key

from federation.coordinator.choose import Chosen
from federation.history.notice import since, sketches_of
from federation.roles.signed import ours
from federation.store.place import Advance
from flexo.errors import InputError
from merge.formats import signatures
from merge.formats.signing import write_signature_file
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import Plan, execute, plan
from merge.planning.revocation import same_expert


def merge(
    chosen: Chosen, files: list[Path], anchor: Path, output: Path, advance: Advance, accept: Callable[[Path], None]
) -> list[str]:
    """Writes the merged folder, whole or not at all; returns what the plan warns about."""
    keys = chosen.found.home.folder / "trusted"
    with suppress(FileNotFoundError):  # a key that stays behind would be trusted
        shutil.rmtree(keys)
    for path, (owner, one) in zip(files, chosen.experts, strict=True):
        _trust(keys / owner.domain / f"{owner.domain}.pub", chosen.found.state.targets.get_key(owner.keys[0]))
        if one.signature:
            write_signature_file(path, signatures.header_digest(one.header), owner.keys[0], one.signature)
    made = _planned(chosen, files, anchor, keys)
    execute(made, output, advance, accept=accept)
    warnings = [f"warning: {text}" for text in made.warnings]
    for path, (owner, _) in zip(files, chosen.experts, strict=True):  # where they lie in the home says nothing
        warnings = [text.replace(str(path), owner.domain) for text in warnings]
    return warnings


def _planned(chosen: Chosen, files: list[Path], anchor: Path, keys: Path) -> Plan:
    policy = chosen.policy
    options = MergeOptions(
        top_k=policy.top_k,
        public_weight=policy.public_weight,
        priors=policy.priors,
        trusted_keys=keys,
        require_signatures=policy.signatures,
    )
    made = plan(files, anchor, options)
    made.history["federation"] = {
        "name": ours(chosen.found.state.targets)["name"],
        "snapshot": chosen.found.state.snapshot.version,
        "policy": policy.version,
        "experts": {
            owner.domain: {"role": owner.role, "serial": owner.serial, "digest": one.digest, "key": owner.keys[0]}
            for owner, one in chosen.experts
        },
    }
    present = {owner.domain for owner, _ in chosen.experts}
    sketches = sketches_of(chosen.found.events, chosen.found.left)
    left: list[dict[str, Any]] = []
    for digest, domain in sorted(chosen.found.left.items()):
        known_by = {"digest": digest} | ({"sketch": sketches[digest]} if digest in sketches else {})
        left.append(known_by | ({"domain": domain} if domain and domain not in present else {}))
        _refuse_alike(chosen, made, domain, digest, sketches.get(digest))
    made.history["left"] = left
    return made


def _refuse_alike(chosen: Chosen, made: Plan, domain: str, digest: str, sketch: str | None) -> None:
    """Raises `InputError` for an expert that is, but for little changes, one of `domain` that was withdrawn.

    Its own owner may bring it back, saying why; the domain is empty where nobody may. What was there before the one
    that was withdrawn is no copy of it, so nobody gets rid of another owner by a copy of theirs.
    """
    events = chosen.found.events
    for owner, one in chosen.experts:
        alike = same_expert(made.sketches.get(owner.domain), sketch)
        readmitted = owner.domain == domain and owner.signed and ours(owner.signed).get("readmit")
        if alike and not readmitted and since(events, one.digest) >= since(events, digest):
            raise InputError(
                f"{owner.domain}: but for little changes, its expert is one that was withdrawn"
                f"{f' by the owner of {domain!r}' if domain else ''}, and comes back under no name. Take it out: "
                f"flexo-federation withdraw {owner.domain} --keys KEYS/. If its owner had withdrawn it and changed "
                "their mind, they say so with submit --readmit REASON"
            )


def _trust(path: Path, key: Key) -> None:
    """Writes an owner's public key as `--trusted-keys` reads it: the folder's name binds it to the domain."""
    public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    path.parent.mkdir(parents=True)
    path.write_bytes(public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
