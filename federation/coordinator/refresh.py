"""What the coordinator does from cron: take up what owners signed, refuse what the policy forbids, date it anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuf.api.metadata import Targets

from federation.coordinator.found import finish_forgetting, remove_owner
from federation.history.commit import Coordinator, Draft, policy_of
from federation.history.events import Event, event, read_events
from federation.history.notice import left_digests, models_with, submitted_digests, withdrawal
from federation.policy.admission import objections
from federation.roles.keys import key_files
from federation.roles.owners import Owner, Submission, networks, read_owners, read_submissions, role_of, withdrawal_of
from federation.roles.signed import MOST_OWNER, described, name_of, ours
from federation.roles.trust import restore
from flexo.errors import InputError


def refresh(coordinator: Coordinator) -> list[str]:
    """Takes up what is new, writes a new snapshot and timestamp, and returns what happened, a line each."""
    report: list[str] = []
    leaving: list[str] = []

    def change(draft: Draft) -> None:
        report.clear()
        leaving.clear()
        events = read_events(coordinator.home, draft.state.snapshot)
        owners = read_owners(coordinator.home, draft.state, coordinator.place)
        held = networks(owners)
        for owner in owners:
            if owner.pending:
                report.extend(_take_up(coordinator, draft, events, owner, owner.pending, held))
            counts = owner.signed if owner.role in draft.refused else owner.newest
            if counts and (withdrawal_of(counts) or {}).get("forget"):
                leaving.append(owner.domain)
        draft.stamp = True

    lost = restore(coordinator.home)
    state = coordinator.commit(change).state
    report += [f"the store had lost or altered {name}; it is there again" for name in lost]
    coordinator.settle_keys(state.root)
    for one in read_events(coordinator.home, state.snapshot):
        if one["what"] == "forgot":
            finish_forgetting(coordinator, one["role"], one["events"])
    for domain in leaving:
        if key_files(coordinator.keys, "targets"):
            remove_owner(coordinator, domain, "", forget=True)
            report.append(f"{domain}: forgotten, as its owner asked")
        else:
            report.append(
                f"{domain}: its owner asks to be forgotten, which takes the key targets.pem: "
                f"flexo-federation remove-owner {domain} --forget"
            )
    return report


def _take_up(
    coordinator: Coordinator, draft: Draft, events: Sequence[Event], owner: Owner, signed: Targets, held: dict[str, str]
) -> list[str]:
    """Puts a newer version of an owner's metadata in force, and its networks into `held`, or refuses it; says which."""
    serial, domain = signed.version, owner.domain
    in_force = described(signed, coordinator.place.read(name_of(owner.role, serial), MOST_OWNER))
    if left := withdrawal_of(signed):
        draft.meta[owner.role] = in_force
        out = withdrawal(events, owner, serial, "owner", str(left.get("reason", ""))[:500])
        draft.events.append(out)
        names = ", ".join(one["name"] for one in models_with(events, out["digests"])) or "none"
        return [f"{domain}: withdrawn by its owner; models that hold it: {names}"]
    again = str(ours(signed).get("readmit", ""))[:500]
    left_out = left_digests(draft.state, events, domain if again else "")
    submissions: Mapping[str, Submission] = {}
    try:
        submissions = read_submissions(signed, owner.role, domain)
        why = []
    except InputError as error:
        why = [str(error)]
    for one in submissions.values():  # a store that does not answer ends this: it is no fault of the owner's
        why += _objections(coordinator, draft, one, left_out, held)
    if why:
        text = "; ".join(why)
        draft.refused[owner.role] = {"serial": serial, "why": text}
        draft.events.append(event("refused", domain=domain, serial=serial, why=text))
        return [f"{domain}: serial {serial} refused: {text}"]
    draft.meta[owner.role] = in_force
    report = []
    for anchor, one in submissions.items():
        held[one.header.network] = domain
        before = owner.submissions.get(anchor) if not (owner.signed and withdrawal_of(owner.signed)) else None
        new = before is None or before.digest != one.digest
        about = {"replaces": before.digest} if before and new else {}
        about |= {"readmitted": again} if again else {}
        draft.events.append(
            event(
                "submitted" if new else "renewed", domain=domain, role=owner.role, serial=serial, digest=one.digest,
                anchor=anchor, **about,
            )
        )  # fmt: skip
        report.append(f"{domain}: serial {serial} in force" + ("" if new else ", the same expert as before"))
    return report


def _objections(
    coordinator: Coordinator, draft: Draft, one: Submission, left: Mapping[str, str], held: Mapping[str, str]
) -> list[str]:
    """What speaks against a submission: the policy, or that its file is not whole in the store."""
    policy, anchors = policy_of(draft.targets), [entry["digest"] for entry in draft.about["anchors"]]
    found = objections(one.header, policy, anchors, left, held)
    if policy.signatures and not one.signature:
        found.append("the policy asks for its owner's flexo-sign signature. Submit it with a newer flexo-federation")
    if coordinator.place.size(one.stored_as) != one.target.length:
        found.append("its file is not whole in the store. Submit it again")
    return found


def withdraw_by_coordinator(coordinator: Coordinator, domain: str, reason: str) -> None:
    """Takes an owner's experts out of force without the owner."""

    def change(draft: Draft) -> None:
        role = role_of(draft.state, domain)
        events = read_events(coordinator.home, draft.state.snapshot)
        (owner,) = [one for one in read_owners(coordinator.home, draft.state, coordinator.place) if one.role == role]
        if not (digests := submitted_digests(events, owner)):
            raise InputError(f"{domain!r} has submitted nothing that could be withdrawn.")
        serial = owner.newest.version if owner.newest else owner.serial
        revoked, suspended = draft.about["revoked"], draft.about.get("suspended", {})
        draft.set(
            suspended=suspended | {role: {"serial": serial, "reason": reason}},
            revoked=revoked | {"digests": sorted({*revoked["digests"], *digests})},
        )
        draft.events.append(withdrawal(events, owner, serial, "coordinator", reason))

    coordinator.commit(change)
