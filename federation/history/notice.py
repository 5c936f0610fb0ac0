"""Who has left, and which models hold them still: what a notice of withdrawal says."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

from federation.history.events import Event, about, models, withdrawn
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


def left_digests(state: State, events: Iterable[Event]) -> dict[str, str]:
    """Digest -> domain of all that may not come back; the domain is empty for those who were forgotten or removed."""
    return withdrawn(events) | dict.fromkeys(ours(state.targets)["revoked"]["digests"], "")


def sketches_of(events: Iterable[Event], digests: Collection[str]) -> dict[str, str]:
    """Digest -> sketch of those of some experts that were ever in a model, by which they are known when changed."""
    return {
        one["digest"]: one["sketch"]
        for model in models(events)
        for one in model["experts"]
        if one["digest"] in digests and one.get("sketch")
    }


def since(events: Iterable[Event], digest: str) -> int:
    """When an expert was first seen: the place in the history of the first event that names it, or its end."""
    events = list(events)
    for place, one in enumerate(events):
        experts = one.get("experts", []) if one["what"] == "assembled" else []
        if one.get("digest") == digest or any(expert["digest"] == digest for expert in experts):
            return place
    return len(events)


def notice_of(events: Iterable[Event], domain: str, digests: Collection[str], by: str, reason: str) -> dict[str, Any]:
    """The notice of withdrawal of a domain's experts."""
    events = list(events)
    sketches = sketches_of(events, digests).values()
    return notice(domain, digests, sketches, by, reason, (one["model"] for one in models_with(events, digests)))
