"""An owner submits an expert, or withdraws: two files with the owner's signature, the second of which makes it true.

The expert file goes first, under its sha256, and means nothing by itself. Then the owner's metadata is created under
the next serial number, whole and exclusively. A process that is killed in between has submitted nothing; the next one
finds the file there and goes on.
"""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import TargetFile, Targets

from federation.history.commit import policy_of
from federation.history.events import read_events
from federation.history.notice import left_digests
from federation.policy.admission import audit, can_audit, objections
from federation.roles.home import Home
from federation.roles.keys import signer
from federation.roles.owners import Owner, networks, read_owner, read_owners, read_submissions, role_of, withdrawal_of
from federation.roles.signed import (
    MOST_OWNER,
    create_signed,
    name_of,
    ours,
    set_ours,
    sign,
    signed_versions,
    stored_as,
)
from federation.roles.trust import State, follow
from federation.store.place import Advance, StoreError
from federation.store.transfer import holds, send
from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from merge.formats.expert_file import ExpertFile, open_expert
from merge.formats.signatures import header_digest, statement
from merge.formats.signing import read_private_key


@dataclass(frozen=True)
class Submitted:
    domain: str
    serial: int
    sent: bool  # False if the store had the file already
    notes: list[str]


def submit(
    home: Home, file: Path, keys: list[Path], anchor: Path | None = None, readmit: str = "",
    advance: Advance = lambda _amount: None,
) -> Submitted:  # fmt: skip
    """Checks an expert as the coordinator will, signs it, and uploads it.

    Args:
        home: of the federation.
        file: the expert.
        keys: the owner's private key; during a change of keys, the new one, too.
        anchor: its folder, for the audit that the policy may ask for; None leaves that to the coordinator.
        readmit: why an expert comes back that this owner withdrew.
        advance: told the bytes read and sent, twice the size of the file.

    Raises:
        InputError: the federation would refuse it, in words for its owner, before anything is uploaded; or its values
            are damaged, which is found on the way, and nothing is left of the upload.
    """
    state, expert = follow(home), open_expert(file)
    domain = expert.domain
    role = role_of(state, domain)
    owners = read_owners(home, state, home.writable)
    (owner,) = [one for one in owners if one.role == role]
    signing = _signers(state, role, domain, keys)
    notes = refuse_forgotten(home, owner)
    policy = policy_of(state.targets)
    left = left_digests(state, read_events(home, state.snapshot), domain if readmit else "")
    anchors = [entry["digest"] for entry in ours(state.targets)["anchors"]]
    why = objections(expert.header, policy, anchors, left, networks(owners))
    if why:
        raise InputError(f"{file}: this federation would refuse it: {'; '.join(why)}. Nothing was uploaded.")
    if policy.audit and anchor and can_audit():
        if why := audit([file], anchor, policy):
            raise InputError(f"{file}: the policy's audit refuses it: {'; '.join(why)}. Nothing was uploaded.")
    elif policy.audit:
        notes.append("the coordinator will audit it; --anchor FOLDER does that here, before anything is uploaded")
    private = read_private_key(keys[0])
    signature = base64.b64encode(private.sign(statement(header_digest(expert.header)))).decode()
    target, sent = _sent(home, owner, expert, signature, advance)
    kept = _other_anchors(owner, expert.header.anchor.digest, anchors)
    made = Targets(targets={one.path: one for one in [*kept, target]})
    set_ours(made, {"readmit": readmit} if readmit else {})
    serial = publish(home, state, owner, made, signing)
    return Submitted(domain, serial, sent, notes)


def withdraw(home: Home, domain: str, keys: list[Path], reason: str, forget: bool) -> dict[str, Any]:
    """Signs, for an owner, that nothing of theirs may be used from now on; returns what is signed of it.

    It takes effect for everybody who reads the store, whether the coordinator agrees or not. Who has withdrawn may
    still ask to be forgotten.
    """
    state = follow(home)
    role = role_of(state, domain)
    signing = _signers(state, role, domain, keys)
    owner = read_owner(home, state, role, domain, home.writable)
    if not owner.newest and not owner.serial:
        raise InputError(f"{domain!r} has submitted nothing that could be withdrawn.")
    before = withdrawal_of(owner.newest) if owner.newest else None
    if before and (before.get("forget") or not forget):
        return before
    about = {"reason": reason or (before or {}).get("reason", ""), "forget": forget}
    made = Targets(targets={})
    set_ours(made, {"withdrawn": about})
    publish(home, state, owner, made, signing)
    return about


def publish(home: Home, state: State, owner: Owner, made: Targets, signing: list[CryptoSigner]) -> int:
    """Writes an owner's metadata under the next serial number and returns that.

    Raises `StoreError` if somebody with the same key takes numbers faster than this.
    """
    place, days = home.writable, policy_of(state.targets).days["owner"]
    known = max(owner.serial, home.written().get(owner.role, 0))
    later = next(signed_versions(place, owner.role, Targets, state.targets, known), None)
    made.version = (later[0].version if later else known) + 1
    data = sign(made, signing, days)
    if not create_signed(place, owner.role, made, data, state.targets):
        raise StoreError(
            f"{place.url}: serial {made.version} of {owner.domain!r} was written meanwhile, with the same key. Two "
            "submissions at once? Look with flexo-federation status, then submit again what shall be in force."
        )
    home.remember(owner.role, made.version)
    if place.read(name_of(owner.role, made.version), MOST_OWNER) != data:
        raise StoreError(f"{place.url}: does not give back what was just written. Do not rely on it; try again.")
    return made.version


def refuse_forgotten(home: Home, owner: Owner) -> list[str]:
    """Warns of a store that shows less of an owner than was written from here."""
    written = home.written().get(owner.role, 0)
    shown = max(owner.serial, owner.pending.version if owner.pending else 0)
    if written <= shown or (owner.problem and f"serial {written} was refused" in owner.problem):
        return []
    return [
        f"the store shows serial {shown} of {owner.domain!r}, and serial {written} was written from here: the store "
        "has forgotten the last write, or hides it. Submit or withdraw again, and tell the coordinator"
    ]


def _signers(state: State, role: str, domain: str, keys: list[Path]) -> list[CryptoSigner]:
    """What signs with the owner's keys, one of which must be the one that the federation knows."""
    found = [signer(path) for path in keys]
    known = state.targets.get_delegated_role(role).keyids
    if not any(one.public_key.keyid in known for one in found):
        raise InputError(
            f"{keys[0]}: the key {found[0].public_key.keyid[:16]}, which may not sign for {domain!r}; that takes the "
            f"key {' or '.join(keyid[:16] for keyid in known)}. A key signs for its own domain and no other. For a new "
            f"key, ask the coordinator: flexo-federation rotate {domain} --key NEW.pub"
        )
    return found


def _sent(home: Home, owner: Owner, expert: ExpertFile, signature: str, advance: Advance) -> tuple[TargetFile, bool]:
    """Checks the values of an expert while it is uploaded; says what to sign, and whether it had to be uploaded."""
    header, about = expert.header, expert.path.stat()
    custom: dict[str, Any] = {"header": header.to_json(), "signature": signature}

    def target(sha256: str) -> TargetFile:
        path = f"experts/{owner.role}/{header.anchor.digest[:12]}{expert.path.suffix}"
        return TargetFile(about.st_size, {"sha256": sha256}, path, {"custom": custom})

    before = owner.submissions.get(header.anchor.digest)
    if before and before.header == header and before.sha256 == sha256_file(expert.path):
        again = target(before.sha256)
        if holds(home.writable, stored_as(again), again.length, before.sha256):
            advance(2 * again.length)
            return again, False
    this = hashlib.sha256(f"{header_digest(header)} {about.st_size} {about.st_mtime_ns}".encode()).hexdigest()
    check = partial(expert.verify, advance)
    sha256 = send(
        home.writable, f"{owner.role}/{this}", expert.path, lambda sha256: stored_as(target(sha256)), check, advance
    )
    return target(sha256), True


def _other_anchors(owner: Owner, anchor: str, anchors: list[str]) -> list[TargetFile]:
    """What the owner has submitted for the federation's other anchors, which stays."""
    if owner.withdrawal or not owner.newest:
        return []
    there = read_submissions(owner.newest, owner.role, owner.domain)
    return [one.target for digest, one in there.items() if digest != anchor and digest in anchors]
