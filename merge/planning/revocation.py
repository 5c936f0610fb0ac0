"""Who may not be merged any more: experts that have left a model, and lists of revoked experts and keys.

    {"format": "flexo.revoked", "version": 1, "digests": [sha256, ...], "sketches": [...], "keys": [fingerprint, ...],
     "notice": {"domain": "math", "when": "2026-11-29T08:00:00Z", "by": "owner", "reason": "", "models": [sha256, ...]}}

`digests` are those of experts, as manifests list them, and `sketches` know the same experts when they were changed a
little (`merge.planning.twins`); `keys` are fingerprints, as `flexo-sign` shows them. A notice of withdrawal is such a
file about one expert; `models` are the digests of the models that held it. A list has no `notice`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexo.errors import ExpertFileError, InputError
from merge.formats.expert_file import ExpertFile
from merge.formats.expert_header import SHA256
from merge.formats.manifest import made_at
from merge.formats.signatures import Voucher
from merge.tensor_io.json_file import read_json
from merge.tensor_io.stored_tensor import combined_digest

FORMAT = "flexo.revoked"
BITS = 512  # of a sketch, see `merge.planning.twins`
SAME = 77  # bits that may differ in sketches of one expert: 15 %, a cosine of 0.89
SKETCH = re.compile(rf"[0-9a-f]{{{BITS // 4}}}")
LISTS = {"digests": SHA256, "sketches": SKETCH, "keys": SHA256}
FIELDS = {"format", "version", "notice", *LISTS}


@dataclass(frozen=True)
class Revoked:
    """Digests and sketches of experts and fingerprints of keys that are not to be used."""

    digests: frozenset[str]
    sketches: frozenset[str]
    keys: frozenset[str]
    where: str  # for messages

    def refuse(self, experts: Sequence[ExpertFile], vouchers: Mapping[str, Voucher]) -> None:
        """Raises `ExpertFileError` for an expert that is listed, or vouched for by a key that is.

        Where keys are listed, an expert without a verified signature is refused, too: what a signature says of its own
        key proves nothing, and a thief would leave it out.
        """
        for expert in experts:
            if (digest := expert.header.digest) in self.digests:
                raise ExpertFileError(
                    f"{expert.path}: revoked by {self.where} (digest {digest[:16]}). Merge without it."
                )
            if self.keys and expert.domain not in vouchers:
                raise ExpertFileError(
                    f"{expert.path}: {self.where} revokes keys, and no signature of this expert was verified, so any "
                    "key may have made it. Add --trusted-keys FOLDER --require-signatures, with its owner's key there."
                )
            if self.keys and (key := vouchers[expert.domain].key) in self.keys:
                raise ExpertFileError(
                    f"{expert.path}: signed by the key {key[:16]}, which {self.where} revokes. Ask its owner "
                    "to sign it with the key that they use now."
                )

    def refuse_staying(self, entries: Sequence[Mapping[str, Any]], where: str) -> None:
        """Raises `ExpertFileError` for an expert of a merged folder that is listed, and is to stay in it."""
        for entry in entries:
            vouched = entry.get("vouched")
            key = vouched.get("key") if isinstance(vouched, dict) else None
            listed = str(entry.get("digest")) in self.digests or str(key) in self.keys  # it may hold anything
            if listed or any(same_expert(entry.get("sketch"), sketch) for sketch in self.sketches):
                why = f"which {self.where} revokes"
            elif self.keys and not key:
                why = f"whose signature nobody verified, and {self.where} revokes keys"
            else:
                continue
            raise ExpertFileError(
                f"{where}: holds the expert for {entry['domain']!r}, {why}. Take it out first: flexo-optout {where} "
                f"--drop {entry['domain']}"
            )


def same_expert(one: object, other: object) -> bool:
    """Whether two sketches are of one expert; what is no sketch is like nothing."""
    if not (isinstance(one, str) and isinstance(other, str) and SKETCH.fullmatch(one) and SKETCH.fullmatch(other)):
        return False
    return (int(one, 16) ^ int(other, 16)).bit_count() <= SAME


def read_revoked(path: Path) -> Revoked:
    """A list of what was revoked, or a notice of withdrawal; raises `InputError` for anything else."""
    found = read_json(path)
    if found.get("format") != FORMAT or found.get("version") != 1 or not found.keys() <= FIELDS:
        raise InputError(
            f"{path}: not a list of revoked experts. Expected JSON of the format {FORMAT!r}, version 1, with "
            "digests, sketches and keys and nothing else."
        )
    for name, pattern in LISTS.items():
        values = found.setdefault(name, [])
        if not isinstance(values, list) or not all(isinstance(one, str) and pattern.fullmatch(one) for one in values):
            raise InputError(
                f"{path}: {name} is not a list of {'sketches' if name == 'sketches' else 'sha256'} in hex."
            )
    digests, sketches, keys = (frozenset(found[name]) for name in LISTS)
    return Revoked(digests, sketches, keys, str(path))


def notice(
    domain: str, digests: Iterable[str], sketches: Iterable[str], by: str, reason: str, models: Iterable[str]
) -> dict[str, Any]:
    """A notice of withdrawal, for programs; `models` are digests of models that hold the expert."""
    return {
        "format": FORMAT,
        "version": 1,
        "digests": sorted(set(digests)),
        "sketches": sorted(set(sketches)),
        "keys": [],
        "notice": {"domain": domain, "when": made_at(), "by": by, "reason": reason, "models": sorted(set(models))},
    }


def model_digest(manifest: Mapping[str, Any]) -> str:
    """The digest of a merged model, over all its tensors; of its experts where the manifest lists no tensors."""
    tensors = manifest.get("tensors")
    if isinstance(tensors, dict) and tensors:
        return combined_digest((str(name), str(sha256)) for name, sha256 in tensors.items())
    return combined_digest((str(one["domain"]), str(one.get("digest"))) for one in manifest["experts"])


def readmissions(
    gone: Sequence[tuple[Mapping[str, Any], str]],
    joining: Sequence[ExpertFile],
    sketches: Mapping[str, str],
    readmit: Sequence[str],
    reason: str,
) -> list[dict[str, Any]]:
    """What the manifest keeps of experts that had left and are taken back, as they were or a little changed.

    Args:
        gone: who has left, each with `digest` and `sketch` as far as they are known, and what they have left.
        joining: experts that are about to join.
        sketches: those of the experts that join, by domain.
        readmit: domains that may come back.
        reason: why; kept in the manifest.

    Raises:
        ExpertFileError: an expert had left and nobody says that it may come back, whatever name it has now.
        InputError: a domain is readmitted that is not coming back.
    """
    back = []
    for expert in joining:
        digest, sketch = expert.header.digest, sketches.get(expert.domain)
        for was, where in gone:
            if was.get("digest") != digest and not same_expert(was.get("sketch"), sketch):
                continue
            if expert.domain not in readmit:
                very = "this very expert" if was.get("digest") == digest else "but for little changes, an expert that"
                name = was.get("domain", "an owner who is forgotten")
                when = f" on {was['when']}" if "when" in was else ""
                raise ExpertFileError(
                    f"{expert.path}: {very} has left {where}{when}, as {name}. Whoever leaves stays out. If its owner "
                    f"wants it back: --readmit {expert.domain} --reason TEXT"
                )
            back.append({"domain": expert.domain, "digest": digest, "when": made_at(), "reason": reason})
            break
    if useless := [domain for domain in readmit if domain not in [one["domain"] for one in back]]:
        raise InputError(f"--readmit {useless[0]}: no expert of that name that has left is joining.")
    return back


def forgetting(history: Mapping[str, Any], domains: Sequence[str]) -> dict[str, Any]:
    """A manifest's history that keeps no more than the digests of the experts of some domains."""
    lists = {name: history.get(name) or [] for name in ("left", "replaced", "readmitted")}
    bare = {
        name: [
            {kept: one[kept] for kept in ("digest", "sketch") if kept in one} if one.get("domain") in domains else one
            for one in entries
        ]
        for name, entries in lists.items()
    }
    priors = {domain: prior for domain, prior in (history.get("priors") or {}).items() if domain not in domains}
    return {**history, **bare, "priors": priors}
