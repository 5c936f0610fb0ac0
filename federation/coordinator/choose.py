"""Which experts go into the next model: what is in force, under the policy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from federation.coordinator.refresh import refresh
from federation.history.commit import Coordinator, policy_of
from federation.policy.admission import objections
from federation.policy.policy import Policy
from federation.reader.fetch import anchor_entry
from federation.reader.status import Federation, read_federation, standing
from federation.roles.owners import Owner, Submission
from flexo.errors import InputError


@dataclass(frozen=True)
class Chosen:
    """What goes into a model: owners with their experts, by domain, and the anchor they fit."""

    found: Federation
    anchor: dict[str, Any]
    experts: list[tuple[Owner, Submission]]
    policy: Policy


def choose(coordinator: Coordinator, following: bool = False) -> tuple[Chosen, list[str]]:
    """Takes up what is new and chooses what to merge; returns that, and what was taken up.

    Raises `InputError` where fewer are in force than the policy's quorum.
    """
    report = refresh(coordinator)
    found = read_federation(coordinator.home)
    anchor, policy = anchor_entry(found.state, following), policy_of(found.state.targets)
    experts = []
    for owner in found.owners:
        if one := owner.in_force.get(anchor["digest"]):
            why = objections(one.header, policy, [anchor["digest"]], found.left, {})
            if why:  # the policy may be newer than the submission
                report.append(f"{owner.domain}: left out: {'; '.join(why)}")
            else:
                experts.append((owner, one))
        else:
            said = "its expert is for another anchor" if owner.in_force else standing(owner)
            report.append(f"{owner.domain}: left out: {said}")
    if len(experts) < policy.quorum:
        raise InputError(
            f"{len(experts)} owners are in force, the policy's quorum is {policy.quorum}. No model is made of so few. "
            + "; ".join(report)
        )
    return Chosen(found, anchor, experts, policy), report
