"""What the coordinator does from cron: take up what owners signed, refuse what the policy forbids, date it anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tuf.api.metadata import Targets

from federation.coordinator.found import finish_forgetting, remove_owner
from federation.history.commit import Coordinator, Draft, policy_of
from federation.history.events import Event, event, read_events
from federation.history.notice import left_digests, models_with, submitted_digests
from federation.policy.admission import objections
from federation.roles.keys import key_files
from federation.roles.owners import (
    Owner,
    Submission,
    networks,
    read_owners,
    read_submissions,
    role_of,
    withdrawal_of,
)
from federation.roles.signed import MOST_OWNER, described, name_of, ours
from federation.roles.trust import State, restore
from flexo.errors import InputError


def refresh(coordinator: Coordinator) -> list[str]:
    """Takes up what is new, writes a new snapshot and timestamp, and returns what happened, a line each."""
    report: list[str] = []

    def change(draft: Draft) -> None:
        report.clear()
        events = read_events(coordinator.home, ours(draft.state.snapshot).get("history"))
        owners = read_owners(coordinator.home, draft.state, coordinator.place)
        held = networks(owners)
        for owner in owners:
            if owner.pending:
                report.extend(_take_up(coordinator, draft, events, owner, owner.pending, held))
        draft.stamp = True

    lost = restore(coordinator.home)
    state = coordinator.commit(change)
    report += [f"the store had lost or altered {name}; it is there again" for name in lost]
    coordinator.settle_keys(state.root)
    for one in read_events(coordinator.home, ours(state.snapshot).get("history")):
        if one["what"] == "forgot":
            finish_forgetting(coordinator, one["role"], one["events"])
    for owner in read_owners(coordinator.home, state, coordinator.place):
        if owner.withdrawal and owner.withdrawal.get("forget"):
            if key_files(coordinator.keys, "targets"):
                remove_owner(coordinator, owner.domain, "", forget=True)
                report.append(f"{owner.domain}: forgotten, as its owner asked")
            else:
                report.append(
                    f"{owner.domain}: its owner asks to be forgotten, which takes the key targets.pem: "
                    f"flexo-federation remove-owner {owner.domain} --forget"
                )
    return report


def _take_up(
    coordinator: Coordinator, draft: Draft, events: list[Event], owner: Owner, signed: Targets, held: dict[str, str]
) -> list[str]:
    """Puts a newer version of an owner's metadata in force, and its networks into `held`, or refuses it; says which."""
    data = coordinator.place.read(name_of(owner.role, signed.version), MOST_OWNER)
    if withdrawal := withdrawal_of(signed):
        digests = submitted_digests(events, owner)
        affected = models_with(events, digests)
        draft.meta[owner.role] = described(signed, data)
        draft.events.append(
            event(
                "withdrawn", domain=owner.domain, role=owner.role, serial=signed.version, by="owner", digests=digests,
                reason=str(withdrawal.get("reason", ""))[:500], models=[one["model"] for one in affected],
            )
        )  # fmt: skip
        names = ", ".join(one["name"] for one in affected) or "none"
        return [f"{owner.domain}: withdrawn by its owner; models that hold it: {names}"]
    try:
        submissions = read_submissions(signed, owner.role, owner.domain)
        again = str(ours(signed).get("readmit", ""))[:500]
        why = [
            text
            for one in submissions.values()
            for text in _objections(coordinator, draft, events, owner, one, again, held)
        ]
    except InputError as error:
        submissions, why, again = {}, [str(error)], ""
    if why:
        text = "; ".join(why)
        draft.refused[owner.role] = {"serial": signed.version, "why": text}
        draft.events.append(event("refused", domain=owner.domain, serial=signed.version, why=text))
        return [f"{owner.domain}: serial {signed.version} refused: {text}"]
    draft.meta[owner.role] = described(signed, data)
    report = []
    for anchor, one in submissions.items():
        held[one.header.network] = owner.domain
        before = owner.submissions.get(anchor) if not (owner.signed and withdrawal_of(owner.signed)) else None
        new = before is None or before.digest != one.digest
        about: Mapping[str, Any] = {"replaces": before.digest} if before and new else {}
        about = dict(about) | ({"readmitted": again} if again else {})
        draft.events.append(
            event(
                "submitted" if new else "renewed", domain=owner.domain, role=owner.role, serial=signed.version,
                digest=one.digest, anchor=anchor, **about,
            )
        )  # fmt: skip
        report.append(
            f"{owner.domain}: serial {signed.version} in force" + ("" if new else ", the same expert as before")
        )
    return report


def _objections(
    coordinator: Coordinator, draft: Draft, events: list[Event], owner: Owner, one: Submission, again: str,
    held: Mapping[str, str],
) -> list[str]:  # fmt: skip
    """What speaks against a submission: the policy, or that its file is not whole in the store."""
    left = allowed_left(draft.state, events, owner.domain, again)
    anchors = [entry["digest"] for entry in draft.about["anchors"]]
    found = objections(one.header, policy_of(draft.targets), anchors, left, held)
    if policy_of(draft.targets).signatures and not one.signature:
        found.append("the policy asks for its owner's flexo-sign signature. Submit it with a newer flexo-federation")
    if coordinator.place.size(one.stored_as) != one.target.length:
        found.append("its file is not whole in the store. Submit it again")
    return found


def allowed_left(state: State, events: list[Event], domain: str, again: str) -> dict[str, str]:
    """Digests that may not be submitted; an owner who withdrew may take that back, saying why."""
    return {digest: name for digest, name in left_digests(state, events).items() if not (again and name == domain)}


def withdraw_by_coordinator(coordinator: Coordinator, domain: str, reason: str) -> list[Event]:
    """Takes an owner's experts out of force without the owner; returns the models that hold them."""
    held: list[Event] = []

    def change(draft: Draft) -> None:
        role = role_of(draft.state, domain)
        events = read_events(coordinator.home, ours(draft.state.snapshot).get("history"))
        (owner,) = [one for one in read_owners(coordinator.home, draft.state, coordinator.place) if one.role == role]
        digests = submitted_digests(events, owner)
        if not digests:
            raise InputError(f"{domain!r} has submitted nothing that could be withdrawn.")
        held[:] = models_with(events, digests)
        newest = owner.newest.version if owner.newest else owner.serial
        revoked, suspended = draft.about["revoked"], draft.about.get("suspended", {})
        draft.set(
            suspended=suspended | {role: {"serial": newest, "reason": reason}},
            revoked=revoked | {"digests": sorted({*revoked["digests"], *digests})},
        )
        draft.events.append(
            event(
                "withdrawn", domain=domain, role=role, serial=newest, by="coordinator", digests=digests, reason=reason,
                models=[one["model"] for one in held],
            )
        )  # fmt: skip

    coordinator.commit(change)
    return held
