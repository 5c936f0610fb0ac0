"""How the coordinator changes a federation, so that a change is made wholly or not at all, and none is lost.

    1. new metadata, history and files are written under names that nobody has taken; alone they mean nothing
    2. the next snapshot is created, exclusively: this is the commit. Who comes second starts again from what it says
    3. the timestamp is claimed under the next number, exclusively, and then put in the place of the old one

A process killed before 2 has changed nothing. One killed between 2 and 3 has: whoever writes next finds the snapshot
and stamps it. Of two that stamp at once, each looks afterwards whether a later claim is there, and puts that in place,
so that the newest one stays whatever the order of their writes.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import MetaFile, Root, Snapshot, Targets, Timestamp

from federation.history.events import Event, append
from federation.policy.policy import Policy, parse_policy
from federation.roles.home import Home
from federation.roles.keys import finish_rotation, signers
from federation.roles.signed import (
    MOST,
    create_signed,
    described,
    name_of,
    ours,
    set_ours,
    sign,
    signed_versions,
    versions_there,
)
from federation.roles.trust import State, expired, latest, newest_snapshot
from federation.store.place import Place, StoreError
from merge.formats.signatures import SignatureError

ATTEMPTS = 20


@dataclass
class Draft:
    """A change in the making: the state that it starts from, and what it does to it."""

    state: State  # once it is published, the one in force since
    targets: Targets  # a copy, to change
    meta: dict[str, MetaFile] = field(default_factory=dict)  # role -> newer version of an owner's metadata
    refused: dict[str, dict[str, Any]] = field(default_factory=dict)  # role -> {"serial": n, "why": text}
    events: list[Event] = field(default_factory=list)
    stamp: bool = False  # whether to write a new snapshot and timestamp though nothing else changes

    @property
    def about(self) -> dict[str, Any]:
        """Our part of the targets metadata: name, policy, owners, anchors, what was revoked."""
        return ours(self.targets)

    def set(self, **about: Any) -> None:
        set_ours(self.targets, self.about | about)

    @cached_property
    def retargeted(self) -> bool:
        """Whether the targets metadata differs from that in force; final once it is asked."""
        return bool(self.targets.to_dict() != self.state.targets.to_dict())


@dataclass(frozen=True)
class Coordinator:
    """A member who holds the keys."""

    home: Home
    keys: Path

    @property
    def place(self) -> Place:
        return self.home.writable

    def signers(self, role: str, root: Root) -> list[CryptoSigner]:
        """What signs for a role; raises `SignatureError` without a key that `root` names: nobody would believe it."""
        found = signers(self.keys, role)
        if not any(one.public_key.keyid in root.roles[role].keyids for one in found):
            raise SignatureError(
                f"{self.keys}: its key for {role!r} ({found[0].public_key.keyid[:16]}) is not the federation's, or not "
                f"any more. Copy {role}.pem from where it was rotated."
            )
        return found

    def commit(self, change: Callable[[Draft], None]) -> Draft:
        """Applies `change` to the newest state and publishes it; starts again where somebody else was faster.

        `change` may be called several times, each time with a new draft; an exception of its leaves all as it was.
        Returns the draft that was published, with the state that is in force since.
        """
        for _ in range(ATTEMPTS):
            state = self._stamped(latest(self.home))
            draft = Draft(state, copy.deepcopy(state.targets))
            change(draft)
            if self._publish(draft):
                draft.state = latest(self.home)
                return draft
        raise StoreError(f"{self.place.url}: others write at the same time, {ATTEMPTS} times in a row. Run it again.")

    def _stamped(self, state: State) -> State:
        """The same state, in force if a killed process had not got so far."""
        if state.timestamp.snapshot_meta.version == state.snapshot.version:
            return state
        data = self.place.read(name_of("snapshot", state.snapshot.version), MOST["snapshot"])
        days = policy_of(state.targets).days["timestamp"]
        self.stamp(state.root, state.snapshot, data, state.timestamp.version, days)
        return latest(self.home)

    def _publish(self, draft: Draft) -> bool:
        """Whether the draft is in force now; False if somebody else's is."""
        state = draft.state
        changed = draft.retargeted or draft.meta or draft.refused or draft.events or draft.stamp
        if not changed and not expired(state.timestamp):
            return True
        days = policy_of(draft.targets).days
        self.signers("timestamp", state.root)  # missing or wrong, that is better known before anything is written
        snapshot = copy.deepcopy(state.snapshot)
        snapshot.version += 1
        for role, meta in draft.meta.items():
            snapshot.meta[f"{role}.json"] = meta
        if draft.retargeted or expired(state.targets):
            targets = draft.targets
            known = state.targets.version
            targets.version = max([known, *versions_there(self.place, "targets", known)]) + 1
            data = sign(targets, self.signers("targets", state.root), days["targets"])
            if not self.place.create(name_of("targets", targets.version), data):
                return False
            snapshot.meta["targets.json"] = described(targets, data)
        about = ours(snapshot)
        refused = {role: why for role, why in about.get("refused", {}).items() if role not in draft.meta}
        head = append(self.place, about.get("history"), draft.events) if draft.events else about.get("history")
        set_ours(snapshot, {"history": head, "refused": refused | draft.refused})
        data = sign(snapshot, self.signers("snapshot", state.root), days["snapshot"])
        if not create_signed(self.place, "snapshot", snapshot, data, state.root):
            return False
        self.stamp(state.root, snapshot, data, state.timestamp.version, days["timestamp"])
        return True

    def stamp(self, root: Root, snapshot: Snapshot, data: bytes, known: int, days: float) -> None:
        """Makes a snapshot the one that everybody follows, unless a newer one is stamped meanwhile."""
        while True:  # the claims first: so a later claim never names an earlier snapshot
            version = self._claimed(root, known)[0] + 1
            snapshot, data = newest_snapshot(self.place, root, snapshot, data)
            stamp = Timestamp(version, snapshot_meta=described(snapshot, data))
            stamped = sign(stamp, self.signers("timestamp", root), days)
            if create_signed(self.place, "timestamp", stamp, stamped, root):
                break
        shown = 0
        while shown < version:
            shown, stamped = self._claimed(root, version - 1, stamped)
            self.place.replace(name_of("timestamp", None), stamped)
            version = self._claimed(root, shown)[0]

    def _claimed(self, root: Root, known: int, data: bytes = b"") -> tuple[int, bytes]:
        """The newest timestamp after version `known` that was claimed and signed, or what is given."""
        for stamp, found in signed_versions(self.place, "timestamp", Timestamp, root, known):
            return stamp.version, found
        return known, data

    def settle_keys(self, root: Root) -> None:
        """Gives the keys of a finished rotation their names in the folder."""
        for role, entry in root.roles.items():
            finish_rotation(self.keys, role, entry.keyids)


def policy_of(targets: Targets) -> Policy:
    """The policy that is part of the signed targets metadata."""
    return parse_policy(str(ours(targets).get("policy", "{}")), "the federation's policy")


def first_state(
    coordinator: Coordinator, root: Root, root_data: bytes, about: dict[str, Any], events: list[Event]
) -> None:
    """Writes a federation that has just its root, name and policy; what an interrupted attempt left is written over.

    The timestamp comes last: before it, there is no federation.
    """
    place, keys = coordinator.place, coordinator.keys
    targets = Targets(1)
    set_ours(targets, about)
    days = policy_of(targets).days
    data = sign(targets, signers(keys, "targets"), days["targets"])
    snapshot = Snapshot(1, meta={"targets.json": described(targets, data)})
    set_ours(snapshot, {"history": append(place, None, events), "refused": {}})
    snapshot_data = sign(snapshot, signers(keys, "snapshot"), days["snapshot"])
    for role, version in (("targets", data), ("snapshot", snapshot_data), ("root", root_data)):
        place.replace(name_of(role, 1), version)
    coordinator.stamp(root, snapshot, snapshot_data, 0, days["timestamp"])


def resign(coordinator: Coordinator) -> None:
    """A new targets, snapshot and timestamp with the signature of every key in the folder."""

    def change(draft: Draft) -> None:
        draft.set(signed=draft.about.get("signed", 0) + 1)
        draft.stamp = True

    coordinator.commit(change)
