"""The merge of what was chosen: the plan of `flexo-merge`, the owners' signatures, and the federation's name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from federation.coordinator.choose import Chosen, key_of
from federation.roles.signed import ours
from federation.store.place import Advance
from merge.formats import signatures
from merge.planning.merge_plan import Plan, execute, plan


def merge(
    chosen: Chosen, files: list[Path], anchor: Path, output: Path, advance: Advance, accept: Callable[[Path], None]
) -> list[str]:
    """Writes the merged folder, whole or not at all; returns what the plan warns about."""
    keys: dict[str, tuple[str, Ed25519PublicKey]] = {}
    for path, (owner, one) in zip(files, chosen.experts, strict=True):
        if one.signature:
            _write_signature(path, owner.keys[0], one)
        public = bytes.fromhex(key_of(chosen.found, owner).keyval["public"])
        keys[owner.keys[0]] = (owner.domain, Ed25519PublicKey.from_public_bytes(public))
    trusted = signatures.TrustedKeys(Path("the federation's keys"), keys)
    made = _planned(chosen, files, anchor, trusted)
    execute(made, output, advance, accept=accept)
    return [f"warning: {text}" for text in made.warnings]


def _planned(chosen: Chosen, files: list[Path], anchor: Path, trusted: signatures.TrustedKeys) -> Plan:
    policy = chosen.policy
    made = plan(
        files, anchor, policy.top_k, trusted=trusted, signed=policy.signatures, public_weight=policy.public_weight
    )
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
    left: list[dict[str, Any]] = [
        {"domain": domain, "digest": digest} if domain and domain not in present else {"digest": digest}
        for digest, domain in sorted(chosen.found.left.items())
    ]
    made.history["left"] = left
    return made


def _write_signature(path: Path, key: str, one: Any) -> None:
    content = {
        "format": signatures.FORMAT,
        "version": signatures.VERSION,
        "header": signatures.header_digest(one.header),
        "key": key,
        "signature": one.signature,
    }
    signatures.signature_path(path).write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")
