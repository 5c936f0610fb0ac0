"""Who has left, and which models hold them still: what a notice of withdrawal says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

from federation.history.events import Event, about, event, models, withdrawn
from federation.roles.owners import Owner
from federation.roles.signed import ours
from federation.roles.trust import State
from merge.planning.revocation import notice


def submitted_digests(events: Iterable[Event], owner: Owner) -> list[str]:
    """The digests of every expert that an owner ever had in force, or has signed."""
    found = [one["digest"] for one in about(events, owner.domain) if one["what"] == "submitted"]
    return list(dict.fromkeys([*found, *(one.digest for one in owner.submissions.values())]))


def models_with(events: Iterable[Event], digests: Collection[str]) -> list[Event]:
    """The assembled models that hold one of these experts."""
    return [one for one in models(events) if any(expert["digest"] in digests for expert in one["experts"])]


def withdrawal(events: Sequence[Event], owner: Owner, serial: int, by: str, reason: str) -> Event:
    """What happens when an owner is withdrawn: the experts that are out, and the models that hold them."""
    digests = submitted_digests(events, owner)
    return event(
        "withdrawn", domain=owner.domain, role=owner.role, serial=serial, by=by, digests=digests, reason=reason,
        models=[one["model"] for one in models_with(events, digests)],
    )  # fmt: skip


def left_digests(state: State, events: Iterable[Event], readmitting: str = "") -> dict[str, str]:
    """Digest -> domain of all that may not come back; the domain is empty for those who were forgotten or removed.

    An owner who withdrew may take that back, saying why: what the domain `readmitting` withdrew is left out.
    """
    left = withdrawn(events) | dict.fromkeys(ours(state.targets)["revoked"]["digests"], "")
    return {digest: domain for digest, domain in left.items() if not domain or domain != readmitting}


def sketches_of(events: Iterable[Event], digests: Collection[str]) -> dict[str, str]:
    """Digest -> sketch of those of some experts that were ever in a model, by which they are known when changed."""
    return {
        one["digest"]: one["sketch"]
        for model in models(events)
        for one in model["experts"]
        if one["digest"] in digests and one.get("sketch")
    }


def since(events: Sequence[Event], digest: str) -> int:
    """When an expert was first seen: the place in the history of the first event that names it, or its end."""
    for place, one in enumerate(events):
        if any(named.get("digest") == digest for named in (one, *one.get("experts", []))):
            return place
    return len(events)


def notice_of(events: Sequence[Event], domain: str, digests: Collection[str], by: str, reason: str) -> dict[str, Any]:
    """The notice of withdrawal of a domain's experts."""
    sketches = sketches_of(events, digests).values()
    return notice(domain, digests, sketches, by, reason, (one["model"] for one in models_with(events, digests)))
