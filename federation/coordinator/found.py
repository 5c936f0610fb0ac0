"""Founding a federation, and who is in it: `init`, `add-owner`, `remove-owner`, a new policy."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Role, Root
from tuf.api.serialization import DeserializationError

from federation.history.commit import Coordinator, Draft, first_state, policy_of
from federation.history.events import about, digest_of, event, read_events, withdrawn
from federation.policy.policy import Policy
from federation.roles.home import Home, make_home, root_digest
from federation.roles.keys import TOP_ROLES, make_keys, public_key, signers
from federation.roles.owners import role_of
from federation.roles.signed import MOST, name_of, sign, verified, versions_there
from federation.roles.trust import latest
from federation.store.opening import open_place
from federation.store.transfer import INCOMING
from flexo.errors import InputError
from merge.formats.expert_header import check_domain


def init(
    store: str, keys: Path, home: Path, policy: Policy, name: str, root_keys: Sequence[Path], threshold: int
) -> Home:
    """Makes a federation in an empty store; the root goes to `home/root.json`, to be handed over to everybody.

    Args:
        store: folder or URL.
        keys: folder of the coordinator's keys, made if they are not there.
        home: folder in which the coordinator remembers the federation.
        policy: the first one.
        name: of the federation, for people.
        root_keys: public keys of others who hold the root, too.
        threshold: how many of the root's keys it takes to change keys.
    """
    place = open_place(store)
    if place.size(name_of("timestamp", None)) is not None:
        raise InputError(f"{store}: there is a federation already. Join it, or choose an empty store.")
    firsts = make_keys(keys)
    roles = {role: Role([signer.public_key.keyid], 1) for role, signer in firsts.items()}
    root = Root(1, roles=roles, keys={one.public_key.keyid: one.public_key for one in firsts.values()})
    holders = signers(keys, "root")
    for key in [*(one.public_key for one in holders), *map(public_key, root_keys)]:
        root.add_key(key, "root")
    if not 1 <= threshold <= len(roles["root"].keyids):
        raise InputError(f"--threshold {threshold}: this root has {len(roles['root'].keyids)} keys. Give 1 to as many.")
    roles["root"].threshold = threshold
    if len(holders) < threshold:
        raise InputError(
            f"{keys}: {len(holders)} root keys, and {threshold} have to sign the first root. Found it "
            "where they are together, as root.pem, root.bob.pem and so on, and hand them over afterwards."
        )
    data = sign(root, holders, policy.days["root"])
    if (home / "root.json").exists():  # an interrupted attempt; who has this root already can keep it
        kept = (home / "root.json").read_bytes()
        if kept_root := verified(kept, Root, "root", root):
            data, root = kept, kept_root
    made = make_home(home, store, store, data)
    revoked: dict[str, list[str]] = {"digests": [], "keys": []}
    first = {"name": name, "policy": policy.to_yaml(), "owners": {}, "anchors": [], "revoked": revoked}
    first_state(Coordinator(made, keys), root, data, first, [event("founded", name=name, root=root_digest(data))])
    return made


def add_owner(coordinator: Coordinator, domain: str, key: Path) -> None:
    """Gives a domain a role of its own, with this key and no other."""
    check_domain(domain, "--key")
    offered = public_key(key)

    def change(draft: Draft) -> None:
        owners = draft.about["owners"]
        if domain in owners.values():
            if draft.targets.get_delegated_role(role_of(draft.state, domain)).keyids == [offered.keyid]:
                return  # added before the command was stopped
            raise InputError(f"{domain!r} is in already. For another key: flexo-federation rotate {domain} --key {key}")
        refuse_used(draft, offered.keyid, domain, key)
        role = f"owner-{secrets.token_hex(6)}"
        delegations = draft.targets.delegations or Delegations({}, {})
        assert delegations.roles is not None
        delegations.roles[role] = DelegatedRole(role, [], 1, True, paths=[f"experts/{role}/*"])
        draft.targets.delegations = delegations
        draft.targets.add_key(offered, role)
        draft.set(owners=owners | {role: domain})
        draft.events.append(event("owner added", domain=domain, key=offered.keyid))

    coordinator.commit(change)


def remove_owner(coordinator: Coordinator, domain: str, reason: str, forget: bool = False) -> None:
    """Takes a domain's role away, and everything in force with it.

    With `forget`, what names the domain is deleted from the store: metadata, expert files, events. Digests remain.
    """

    def change(draft: Draft) -> None:
        role = role_of(draft.state, domain)
        events = read_events(coordinator.home, draft.state.snapshot)
        revoked = draft.about["revoked"]
        delegated = draft.targets.get_delegated_role(role)
        left = {one["digest"] for one in about(events, domain) if one["what"] == "submitted"}
        left |= {digest for digest, name in withdrawn(events).items() if name == domain}
        keys = sorted({*revoked["keys"], *delegated.keyids})
        draft.set(
            owners={name: other for name, other in draft.about["owners"].items() if name != role},
            revoked={"digests": sorted({*revoked["digests"], *left}), "keys": keys},
        )
        for keyid in list(delegated.keyids):
            draft.targets.revoke_key(keyid, role)
        assert draft.targets.delegations and draft.targets.delegations.roles is not None
        del draft.targets.delegations.roles[role]
        if forget:
            forgotten = [digest_of(one) for one in about(events, domain)]
            draft.events.append(event("forgot", events=forgotten, role=role, digests=sorted(left)))
        else:
            draft.events.append(event("owner removed", domain=domain, reason=reason, digests=sorted(left)))

    (done,) = coordinator.commit(change).events
    if forget:
        for folder in {path.parent for path in coordinator.home.folder.glob(f"experts/*/{domain}.*")}:
            shutil.rmtree(folder)
        with suppress(FileNotFoundError):
            shutil.rmtree(coordinator.home.folder / "trusted" / domain)
        sweep(coordinator, done["role"], done["events"])


def sweep(coordinator: Coordinator, role: str, events: Sequence[str]) -> None:
    """Deletes from the store what names somebody who is to be forgotten; doing it twice does no harm."""
    place, state = coordinator.place, latest(coordinator.home)
    for one in events:
        place.remove(f"events/{one}.json")
    for folder in (f"targets/experts/{role}", f"{INCOMING}/{role}"):
        for name in place.names(folder) or []:
            place.remove(f"{folder}/{name}")
    kept = {name_of("targets", state.targets.version), name_of("snapshot", state.snapshot.version)}
    names = [(name.partition(".")[2], f"metadata/{name}") for name in place.names("metadata") or []]
    gone = [path for rest, path in names if rest in ("targets.json", "snapshot.json") and path not in kept]
    for path in [*gone, *(path for rest, path in names if rest == f"{role}.json")]:  # the role's last: see below
        place.remove(path)


def finish_forgetting(coordinator: Coordinator, role: str, events: Sequence[str]) -> None:
    """Goes on where a process that forgot somebody was killed."""
    place = coordinator.place
    if versions_there(place, role, 0) or any(place.size(f"events/{one}.json") is not None for one in events):
        sweep(coordinator, role, events)


def set_policy(coordinator: Coordinator, policy: Policy) -> None:
    """Puts a policy in force; its version has to be higher than that of the one before."""

    def change(draft: Draft) -> None:
        before = policy_of(draft.state.targets)
        if policy.to_yaml() == before.to_yaml():
            return
        if policy.version <= before.version:
            raise InputError(
                f"the policy in force has version {before.version}, the new one {policy.version}. Set version: "
                f"{before.version + 1} in it, so that nobody takes one for the other."
            )
        draft.set(policy=policy.to_yaml())
        draft.events.append(event("policy", version=policy.version))

    coordinator.commit(change)


def refuse_no_root(path: Path) -> bytes:
    """A root that was handed over; raises `InputError` for a file that is none."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MOST["root"] else b""
        root: Metadata[Root] = Metadata.from_bytes(data)
    except (OSError, ValueError, DeserializationError) as error:
        raise InputError(f"{path}: cannot be read as the root of a federation ({str(error)[:200]}).") from None
    if not verified(data, Root, "root", root.signed):
        raise InputError(f"{path}: not the root of a federation, or not signed by itself. Ask for it again.")
    return data


def refuse_used(draft: Draft, keyid: str, domain: str, path: Path) -> None:
    """Raises `InputError` for a key that somebody else uses, or that was taken away."""
    if keyid in draft.about["revoked"]["keys"]:
        raise InputError(f"{path}: the key {keyid[:16]} was taken away from its owner before. Ask for a new one.")
    for role, other in draft.about["owners"].items():
        if keyid in draft.targets.get_delegated_role(role).keyids:
            raise InputError(
                f"{path}: this is the key of {other!r}. A key signs for one domain; make {domain!r} another."
            )
    for role in TOP_ROLES:
        if keyid in draft.state.root.roles[role].keyids:
            raise InputError(f"{path}: this is the coordinator's key for {role!r}. Ask the owner for theirs.")
