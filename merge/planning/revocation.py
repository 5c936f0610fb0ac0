"""Who may not be merged any more: experts that have left a model, and lists of revoked experts and keys.

    {"format": "flexo.revoked", "version": 1, "digests": [sha256, ...], "keys": [fingerprint, ...],
     "notice": {"domain": "math", "when": "2026-11-29T08:00:00Z", "by": "owner", "reason": "", "models": [sha256, ...]}}

`digests` are those of experts, as manifests list them; `keys` are fingerprints, as `flexo-sign` shows them. A notice of
withdrawal is such a file about one expert; `models` are the digests of the models that held it. A list has no `notice`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flexo.errors import ExpertFileError, InputError
from merge.formats.expert_file import ExpertFile
from merge.formats.expert_header import SHA256
from merge.formats.manifest import expert_entry, made_at
from merge.formats.signatures import Voucher, read_signature, signature_path
from merge.tensor_io.json_file import read_json
from merge.tensor_io.stored_tensor import combined_digest

FORMAT = "flexo.revoked"
FIELDS = {"format", "version", "digests", "keys", "notice"}


@dataclass(frozen=True)
class Revoked:
    """Digests of experts and fingerprints of keys that are not to be used."""

    digests: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    where: str = ""  # for messages

    def refuse(self, experts: Sequence[ExpertFile], vouchers: Mapping[str, Voucher]) -> None:
        """Raises `ExpertFileError` for an expert that is listed, or vouched for by a key that is."""
        for expert in experts:
            if (digest := expert_entry(expert, None)["digest"]) in self.digests:
                raise ExpertFileError(
                    f"{expert.path}: revoked by {self.where} (digest {digest[:16]}). Merge without it."
                )
            voucher = vouchers.get(expert.domain)
            beside = signature_path(expert.path)
            key = voucher.key if voucher else read_signature(beside).key if self.keys and beside.exists() else None
            if key in self.keys:
                raise ExpertFileError(
                    f"{expert.path}: signed by the key {str(key)[:16]}, which {self.where} revokes. Ask its owner "
                    "to sign it with the key that they use now."
                )

    def refuse_staying(self, entries: Sequence[Mapping[str, Any]], where: str) -> None:
        """Raises `ExpertFileError` for an expert of a merged folder that is listed, and is to stay in it."""
        for entry in entries:
            vouched = entry.get("vouched")
            key = vouched.get("key") if isinstance(vouched, dict) else None
            if entry.get("digest") in self.digests or key in self.keys:
                raise ExpertFileError(
                    f"{where}: holds the expert for {entry['domain']!r}, which {self.where} revokes. Take it out "
                    f"first: flexo-optout {where} --drop {entry['domain']}"
                )


def read_revoked(path: Path) -> Revoked:
    """A list of what was revoked, or a notice of withdrawal; raises `InputError` for anything else."""
    found = read_json(path)
    if found.get("format") != FORMAT or found.get("version") != 1 or not found.keys() <= FIELDS:
        raise InputError(
            f"{path}: not a list of revoked experts. Expected JSON of the format {FORMAT!r}, version 1, with "
            "digests and keys and nothing else."
        )
    lists = [found.get(name, []) for name in ("digests", "keys")]
    for name, values in zip(("digests", "keys"), lists, strict=True):
        if not isinstance(values, list) or not all(isinstance(one, str) and SHA256.fullmatch(one) for one in values):
            raise InputError(f"{path}: {name} is not a list of sha256 in hex.")
    return Revoked(frozenset(lists[0]), frozenset(lists[1]), str(path))


def notice(domain: str, digests: Iterable[str], by: str, reason: str, models: Iterable[str]) -> dict[str, Any]:
    """A notice of withdrawal, for programs; `models` are digests of models that hold the expert."""
    return {
        "format": FORMAT,
        "version": 1,
        "digests": sorted(set(digests)),
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
    left: Sequence[Mapping[str, Any]], joining: Sequence[ExpertFile], readmit: Sequence[str], reason: str, where: str
) -> list[dict[str, Any]]:
    """What the manifest keeps of experts that had left and are taken back.

    Args:
        left: the manifest's list of who has left.
        joining: experts that are about to join.
        readmit: domains that may come back.
        reason: why; kept in the manifest.
        where: the folder, for messages.

    Raises:
        ExpertFileError: an expert had left and nobody says that it may come back, whatever name it has now.
        InputError: a domain is readmitted that is not coming back.
    """
    gone = {str(one.get("digest")): one for one in left}
    back = []
    for expert in joining:
        digest = expert_entry(expert, None)["digest"]
        if digest not in gone:
            continue
        if expert.domain not in readmit:
            was = gone[digest].get("domain", "an owner who is forgotten")
            when = f" on {gone[digest]['when']}" if "when" in gone[digest] else ""
            raise ExpertFileError(
                f"{expert.path}: this very expert has left {where}{when}, as {was}. Whoever leaves stays out. If its "
                f"owner wants it back: --readmit {expert.domain} --reason TEXT"
            )
        back.append({"domain": expert.domain, "digest": digest, "when": made_at(), "reason": reason})
    if useless := [domain for domain in readmit if domain not in [one["domain"] for one in back]]:
        raise InputError(f"--readmit {useless[0]}: no expert of that name that has left {where} is joining it.")
    return back


def forgetting(history: Mapping[str, Any], domains: Sequence[str]) -> dict[str, Any]:
    """A manifest's history that keeps no more than the digests of the experts of some domains."""
    lists = {name: history.get(name) or [] for name in ("left", "replaced", "readmitted")}
    bare = {
        name: [{"digest": one.get("digest")} if one.get("domain") in domains else one for one in entries]
        for name, entries in lists.items()
    }
    priors = {domain: prior for domain, prior in (history.get("priors") or {}).items() if domain not in domains}
    return {**history, **bare, "priors": priors}
