"""Who is in a federation, with what, and in which models it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from federation.history.commit import policy_of
from federation.history.events import Event, models, read_events
from federation.history.notice import left_digests, models_with
from federation.owner.submit import refuse_forgotten
from federation.roles.home import Home
from federation.roles.keys import TOP_ROLES
from federation.roles.owners import Owner, domains_of, read_owners
from federation.roles.signed import ours
from federation.roles.trust import State, follow


@dataclass(frozen=True)
class Federation:
    """All that `status`, `log`, `verify` and `assemble` look at."""

    home: Home
    state: State
    owners: list[Owner]
    events: list[Event]

    @property
    def about(self) -> dict[str, Any]:
        return ours(self.state.targets)

    @property
    def left(self) -> dict[str, str]:
        """Digest -> domain of experts that are out for good."""
        pending: dict[str, str] = {}
        for owner in self.owners:
            if owner.withdrawal:
                pending |= {one.digest: owner.domain for one in owner.submissions.values()}
        return left_digests(self.state, self.events) | pending


def read_federation(home: Home) -> Federation:
    """Everything that anyone can know of a federation now; raises `TrustError` if the store is not to be believed."""
    state = follow(home)
    return Federation(home, state, read_owners(home, state), read_events(home, state.snapshot))


def status_of(found: Federation) -> dict[str, Any]:
    """What `flexo-federation status` shows, as plain values."""
    state, about = found.state, found.about
    return {
        "name": about["name"],
        "store": found.home.url,
        "root": state.root.version,
        "policy": policy_of(state.targets).version,
        "anchors": [one["digest"] for one in about["anchors"]],
        "expires": {role: getattr(state, role).expires.isoformat() for role in TOP_ROLES},
        "owners": [entry for owner in found.owners for entry in _entries(found, owner)],
        "models": [{name: one[name] for name in ("name", "model", "when")} for one in models(found.events)],
        "warnings": [note for owner in found.owners for note in refuse_forgotten(found.home, owner)],
    }


def standing(owner: Owner) -> str:
    """In a few words, where an owner stands."""
    if found := owner.withdrawal:
        return f"withdrawn by {'its owner' if found['by'] == 'owner' else 'the coordinator'}"
    if owner.pending:
        return f"serial {owner.pending.version} waits for the coordinator's refresh"
    if owner.problem:
        return owner.problem
    return "in force" if owner.in_force else "nothing submitted"


def domain_names(found: Federation) -> dict[str, str]:
    """Role -> domain, also of those who are out; roles of those who are forgotten are not in it."""
    return {one["role"]: one["domain"] for one in found.events if "role" in one and "domain" in one} | domains_of(
        found.state
    )


def _entries(found: Federation, owner: Owner) -> list[dict[str, Any]]:
    """One entry for each expert of an owner, or one without an expert."""
    base: dict[str, Any] = {
        "domain": owner.domain,
        "serial": owner.serial,
        "standing": standing(owner),
        "signed_by": list(owner.keys),
        "expires": owner.signed.expires.isoformat() if owner.signed else None,
    }
    entries = []
    for anchor, one in owner.submissions.items():
        held = dict.fromkeys(model["name"] for model in models_with(found.events, [one.digest]))
        expert = {
            "digest": one.digest,
            "anchor": anchor,
            "bytes": one.target.length,
            "licence": one.header.licence,
            "tokens": one.header.data.tokens,
            "epsilon": one.header.privacy.epsilon if one.header.privacy else None,
            "models": list(held),
        }
        entries.append(base | expert)
    return entries or [base]
