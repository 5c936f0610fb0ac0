"""What happened in a federation, as a chain: the signed snapshot names the last entry, each entry the one before it.

    history/<sha256>.json     {"format": "flexo.history", "version": 1, "number": 7, "previous": sha256,
                               "events": [sha256]}
    events/<sha256>.json      {"what": "submitted", "when": ..., "salt": ..., "domain": "math", ...}

Files are named by their sha256, so writers cannot collide, and what a killed one leaves behind is in nobody's way. An
event can be forgotten: its file is deleted, its digest stays in the chain, and its salt keeps anyone from guessing what
the digest was of. A later event says which were forgotten; one that is missing otherwise is withheld by the store.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tuf.api.metadata import Snapshot

from federation.roles.home import Home
from federation.roles.signed import ours
from federation.store.place import NotThereError, Place, StoreError
from flexo.errors import InputError
from merge.formats.manifest import made_at
from merge.tensor_io.json_file import parse_json

MOST_EVENT = 2_000_000  # bytes
Event = dict[str, Any]


def event(what: str, **about: Any) -> Event:
    """Something that happened, now."""
    return {"what": what, "when": made_at(), "salt": secrets.token_hex(16)} | about


def append(place: Place, head: Mapping[str, Any] | None, events: Sequence[Event]) -> dict[str, Any]:
    """Writes events behind `head` and returns the new head, which a snapshot is to name."""
    digests = [_write(place, "events", one) for one in events]
    entry = {
        "format": "flexo.history",
        "version": 1,
        "number": head["number"] + 1 if head else 1,
        "previous": head["entry"] if head else None,
        "events": digests,
    }
    return {"entry": _write(place, "history", entry), "number": entry["number"]}


def read_events(home: Home, snapshot: Snapshot) -> list[Event]:
    """Everything that happened, oldest first; raises `StoreError` where the chain is broken or something is withheld.

    What was forgotten is an event {"what": "forgotten", "digest": sha256}.
    """
    head = ours(snapshot).get("history") or {"entry": None, "number": 0}
    sha256, number = head["entry"], head["number"]
    entries: list[dict[str, Any]] = []
    while sha256 is not None:
        entry = _read(home, "history", sha256)
        if entry.get("format") != "flexo.history" or entry.get("number") != number:
            raise StoreError(f"{home.place.url}: entry {number} of the history is not what the next one says.")
        entries.append(entry)
        sha256, number = entry["previous"], number - 1
    events: list[Event] = []
    missing: set[str] = set()
    for entry in reversed(entries):
        for digest in entry["events"]:
            try:
                one = _read(home, "events", digest)
            except NotThereError:
                missing.add(digest)
                one = {"what": "forgotten", "digest": digest}
            events.append(one | {"number": entry["number"]})
    forgotten = {digest for one in events if one["what"] == "forgot" for digest in one["events"]}
    for digest in missing - forgotten:
        raise StoreError(f"{home.place.url}: event {digest[:12]} of the history is withheld, and nobody forgot it.")
    return [_forgotten(home, one) if digest_of(one) in forgotten else one for one in events]


def about(events: Iterable[Event], domain: str) -> list[Event]:
    """The events that name a domain."""
    return [one for one in events if one.get("domain") == domain]


def digest_of(one: Event) -> str:
    """The name of an event's file."""
    return hashlib.sha256(_bytes({name: value for name, value in one.items() if name != "number"})).hexdigest()


def withdrawn(events: Iterable[Event]) -> dict[str, str]:
    """Digest -> domain of experts that were withdrawn and not taken back since."""
    left: dict[str, str] = {}
    for one in events:
        if one["what"] == "withdrawn":
            left |= dict.fromkeys(one["digests"], one["domain"])
        elif one["what"] == "submitted" and one.get("readmitted"):
            left.pop(one["digest"], None)
    return left


def models(events: Iterable[Event]) -> list[Event]:
    """The models that the federation assembled, oldest first."""
    return [one for one in events if one["what"] == "assembled"]


def _forgotten(home: Home, one: Event) -> Event:
    """What remains of an event that was forgotten after it was read here."""
    digest = digest_of(one)
    home.drop(digest)
    return {"what": "forgotten", "digest": digest, "number": one["number"]}


def _write(place: Place, folder: str, value: Mapping[str, Any]) -> str:
    data = _bytes(value)
    sha256 = hashlib.sha256(data).hexdigest()
    place.create(f"{folder}/{sha256}.json", data)
    return sha256


def _bytes(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")) + "\n").encode()


def _read(home: Home, folder: str, sha256: str) -> dict[str, Any]:
    found = parse_json(home.cached(f"{folder}/{sha256}.json", sha256, MOST_EVENT).decode())
    if not isinstance(found, dict):
        raise InputError(f"{home.place.url}: {folder}/{sha256}.json is no JSON object.")
    return found
