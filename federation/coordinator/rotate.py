"""New keys for the coordinator's roles, for owners and for the root, without new owners.

A change of keys is a new root, signed by as many of the old root keys and of the new ones as their thresholds ask.
Where those are with several people, the new root waits in the store, and each adds a signature. The rest of the
metadata is signed with old and new keys before, so that at every moment some root fits what is there.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

from tuf.api.metadata import Metadata, Root
from tuf.api.serialization.json import JSONSerializer

from federation.coordinator.found import refuse_used
from federation.coordinator.refresh import refresh
from federation.history.commit import Coordinator, Draft, policy_of, resign
from federation.history.events import event
from federation.roles.keys import TOP_ROLES, public_key, signers, start_rotation
from federation.roles.owners import read_owner, role_of
from federation.roles.signed import MOST, name_of, read_if_there, sign
from federation.roles.trust import latest, root_now
from flexo.errors import InputError


def rotate(
    coordinator: Coordinator,
    role: str,
    add: Sequence[Path] = (),
    drop: Sequence[str] = (),
    threshold: int | None = None,
) -> str:
    """Changes a role's keys, or adds a signature to a root that waits for one; says what is still missing.

    Args:
        coordinator: with a folder of keys.
        role: `targets`, `snapshot` or `timestamp`, which get a new key; or `root`, which is only signed anew, unless
            keys are added or dropped.
        add: public keys of people who hold the root from now on.
        drop: fingerprints, or their beginnings, of root keys that go.
        threshold: how many root keys a change takes from now on; None keeps that.
    """
    home, place = coordinator.home, coordinator.place
    state = latest(home)
    if role not in TOP_ROLES:
        raise InputError(f"{role!r}: no role of the coordinator. Expected one of {', '.join(TOP_ROLES)}, or a domain.")
    waiting = f"metadata/{state.root.version + 1}.root.waiting.json"
    data = read_if_there(place, waiting, MOST["root"])
    fresh = not data
    if data:
        metadata: Metadata[Root] = Metadata.from_bytes(data)
    else:
        root = copy.deepcopy(state.root)
        root.version += 1
        if role == "root":
            _change_root_keys(root, add, drop, threshold)
        else:
            new = start_rotation(coordinator.keys, role)
            resign(coordinator)
            for keyid in list(root.roles[role].keyids):
                root.revoke_key(keyid, role)
            root.add_key(new.public_key, role)
        days = policy_of(state.targets).days["root"]
        metadata = Metadata.from_bytes(sign(root, signers(coordinator.keys, "root"), days))
    for one in signers(coordinator.keys, "root"):
        metadata.sign(one, append=True)
    result = metadata.signed.get_root_verification_result(state.root, metadata.signed_bytes, metadata.signatures)
    data = metadata.to_bytes(JSONSerializer(compact=True))
    if not result:
        if fresh and not place.create(waiting, data):
            raise InputError("another change of keys began meanwhile. Look at it first: flexo-federation rotate root")
        place.replace(waiting, data)
        missing = max(result.first.missing, result.second.missing)
        return (
            f"root {metadata.signed.version} waits for {missing} more signature{'s' if missing > 1 else ''}. Its other "
            "holders: flexo-federation rotate root --keys THEIR_KEYS/"
        )
    if not place.create(name_of("root", metadata.signed.version), data):
        raise InputError(f"root {metadata.signed.version} was published meanwhile. Look with status, and begin again.")
    place.remove(waiting)
    root = root_now(home)
    coordinator.settle_keys(root)
    resign(coordinator)
    return f"root {metadata.signed.version} is in force"


def change_key(coordinator: Coordinator, domain: str, key: Path) -> bool:
    """Puts another key in the place of an owner's; says whether what is in force has been signed with it, too.

    What the owner has submitted is taken up first: it may be what was signed with both keys.
    """
    offered = public_key(key)
    refresh(coordinator)

    def change(draft: Draft) -> None:
        role = role_of(draft.state, domain)
        delegated = draft.targets.get_delegated_role(role)
        if delegated.keyids == [offered.keyid]:
            return
        refuse_used(draft, offered.keyid, domain, key)
        old = list(delegated.keyids)
        for keyid in old:
            draft.targets.revoke_key(keyid, role)
        draft.targets.add_key(offered, role)
        revoked = draft.about["revoked"]
        draft.set(revoked=revoked | {"keys": sorted({*revoked["keys"], *old})})
        draft.events.append(event("key changed", domain=domain, old=old, key=offered.keyid))

    state = coordinator.commit(change).state
    owner = read_owner(coordinator.home, state, role_of(state, domain), domain, coordinator.place)
    return owner.serial == 0 or owner.signed is not None


def _change_root_keys(root: Root, add: Sequence[Path], drop: Sequence[str], threshold: int | None) -> None:
    for path in add:
        root.add_key(public_key(path), "root")
    for start in drop:
        found = [keyid for keyid in root.roles["root"].keyids if keyid.startswith(start)]
        if len(found) != 1:
            raise InputError(f"--drop {start}: {len(found)} root keys begin so, expected one. Give its fingerprint.")
        root.revoke_key(found[0], "root")
    count = len(root.roles["root"].keyids)
    wanted = threshold or root.roles["root"].threshold
    if not 1 <= wanted <= count:
        raise InputError(
            f"a threshold of {wanted} and {count} root keys: nobody could change anything. Set --threshold."
        )
    root.roles["root"].threshold = wanted
