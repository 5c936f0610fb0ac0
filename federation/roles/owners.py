"""What owners have signed: submissions and withdrawals, in the metadata of each owner's role.

A role is called `owner-` and twelve random digits, so that its name says nothing once its owner has left. Its newest
version counts when the coordinator's snapshot names it. A withdrawal counts at once: it needs nobody's consent.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from tuf.api.metadata import TargetFile, Targets

from federation.roles.home import Home
from federation.roles.signed import (
    MOST_OWNER,
    Listed,
    listed_versions,
    name_of,
    ours,
    signed_versions,
    stored_as,
    verified,
)
from federation.roles.trust import State, expired
from federation.store.place import Place, StoreError
from flexo.errors import InputError
from merge.formats.expert_header import SHA256, Header, parse_header

PLAIN_NAME = re.compile(r"[ -.0-~]{1,100}")  # printable ASCII but for the slash, short enough for every store


@dataclass(frozen=True)
class Submission:
    """An expert file that an owner has signed, for one anchor."""

    target: TargetFile
    header: Header
    signature: str | None  # of `flexo-sign`, over the header

    @property
    def digest(self) -> str:
        return self.header.digest

    @property
    def sha256(self) -> str:
        return str(self.target.hashes["sha256"])

    @property
    def stored_as(self) -> str:
        return stored_as(self.target)


@dataclass(frozen=True)
class Owner:
    """One domain of a federation: who signs for it, and what was signed."""

    domain: str
    role: str
    keys: tuple[str, ...]  # fingerprints
    serial: int = 0  # in force, 0 where nothing was submitted
    signed: Targets | None = None
    submissions: Mapping[str, Submission] = field(default_factory=dict)  # digest of an anchor -> expert
    pending: Targets | None = None  # newer than what is in force, signed by the owner, not yet taken up
    problem: str = ""  # why nothing of this owner is in force, or why the newest version is not
    suspended: Mapping[str, Any] = field(default_factory=dict)  # by the coordinator: {"serial": n, "reason": text}

    @property
    def newest(self) -> Targets | None:
        return self.pending or self.signed

    @property
    def withdrawal(self) -> dict[str, Any] | None:
        """What the owner signed when they withdrew, or the coordinator in their place; None while they are in."""
        if self.newest and (found := withdrawal_of(self.newest)):
            return {"by": "owner"} | found
        if self.suspended and self.serial <= self.suspended["serial"]:
            return {"by": "coordinator", "reason": self.suspended["reason"]}
        return None

    @property
    def in_force(self) -> Mapping[str, Submission]:
        """What may be merged now, by the digest of its anchor."""
        if not self.signed or self.withdrawal or expired(self.signed):
            return {}
        return self.submissions


def withdrawal_of(signed: Targets) -> dict[str, Any] | None:
    found = ours(signed).get("withdrawn")
    return dict(found) if isinstance(found, Mapping) else None


def domains_of(state: State) -> dict[str, str]:
    """Role -> domain of everybody who is in."""
    return dict(ours(state.targets).get("owners", {}))


def role_of(state: State, domain: str) -> str:
    """The role that signs for a domain; raises `InputError` if there is none."""
    for role, name in domains_of(state).items():
        if name == domain:
            return role
    known = ", ".join(sorted(domains_of(state).values())) or "none"
    raise InputError(
        f"{domain!r}: nobody of that name is in this federation (it has {known}). The coordinator adds an owner with: "
        f"flexo-federation add-owner {domain} --key OWNER.pub"
    )


def read_owners(home: Home, state: State, place: Place | None = None) -> list[Owner]:
    """Everybody who is in, by domain, with what the store has of them beyond the snapshot."""
    place = place or home.place
    listed = listed_versions(place)
    with ThreadPoolExecutor(8) as pool:  # where a store is far away, most of the time is waiting
        reading = [
            pool.submit(read_owner, home, state, role, domain, place, listed)
            for role, domain in sorted(domains_of(state).items(), key=lambda pair: pair[1])
        ]
        return [one.result() for one in reading]


def read_owner(home: Home, state: State, role: str, domain: str, place: Place, listed: Listed | None = None) -> Owner:
    """One owner; what does not hold is said in `problem`, so that one owner never hides the others."""
    keys = tuple(state.targets.get_delegated_role(role).keyids)
    refused: Mapping[str, Any] = ours(state.snapshot).get("refused", {}).get(role, {})
    serial, signed, submissions = 0, None, {}
    problem = f"serial {refused['serial']} was refused: {refused['why']}" if refused else ""
    if meta := state.meta(role):
        serial = meta.version
        try:
            data = home.cached(name_of(role, serial), (meta.hashes or {})["sha256"], MOST_OWNER)
            signed = verified(data, Targets, role, state.targets)
            submissions = read_submissions(signed, role, domain) if signed else {}
            if not signed:
                problem = "signed with a key that is no longer this owner's: submit it again with the new one"
            elif expired(signed):
                problem = f"expired on {signed.expires:%Y-%m-%d}: its owner can submit it again"
        except InputError as error:
            signed, problem = None, str(error)
    known = max(serial, int(refused.get("serial", 0)))
    newer = next(signed_versions(place, role, Targets, state.targets, known, listed), None)
    pending = newer[0] if newer else None
    suspended = ours(state.targets).get("suspended", {}).get(role, {})
    return Owner(domain, role, keys, serial, signed, submissions, pending, problem, suspended)


def networks(owners: Iterable[Owner]) -> dict[str, str]:
    """Network -> domain of all that is in force."""
    return {one.header.network: owner.domain for owner in owners for one in owner.in_force.values()}


def read_submissions(signed: Targets, role: str, domain: str) -> dict[str, Submission]:
    """The expert files that a piece of an owner's metadata names, by the digest of their anchors.

    Raises `StoreError` for files of another owner, for names that would lead anywhere else than to a file of that
    name, in a store or in a member's home, and for headers that do not say what the file's name does.
    """
    found: dict[str, Submission] = {}
    for path, target in signed.targets.items():
        where = f"{domain}, serial {signed.version}: {path[:120]}"
        custom = target.custom if isinstance(target.custom, Mapping) else {}
        folder, _, name = path.rpartition("/")
        if folder != f"experts/{role}":
            raise StoreError(f"{where}: a key signs for its own domain, and this file is not in experts/{role}/.")
        if not PLAIN_NAME.fullmatch(name):
            raise StoreError(f"{where}: expected a name of 1 to 100 plain characters. Rename it and submit again.")
        if not isinstance(text := custom.get("header"), str) or not SHA256.fullmatch(target.hashes.get("sha256", "")):
            raise StoreError(f"{where}: without its expert's header or sha256. Submit it with flexo-federation.")
        header = parse_header(text, where)
        if header.domain != domain:
            raise StoreError(f"{where}: an expert for {header.domain!r}, signed with the key of {domain!r}.")
        signature = custom.get("signature")
        found[header.anchor.digest] = Submission(target, header, signature if isinstance(signature, str) else None)
    return found
