"""Signed metadata of TUF: made, signed and read back, without deciding what to believe."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.api.serialization.json import JSONSerializer

from federation.store.place import NotThereError, Place, UnfitError

FIELD = "flexo"  # what is ours in a piece of metadata
MOST = {"root": 500_000, "timestamp": 16_000, "snapshot": 2_000_000, "targets": 20_000_000}  # bytes
MOST_OWNER = 9_000_000  # bytes; a header is at most 8 MB
S = TypeVar("S", Root, Timestamp, Snapshot, Targets)
Listed = dict[str, list[int]]  # role -> versions


def name_of(role: str, version: int | None) -> str:
    """Where a version of a role's metadata lies; None for the newest timestamp."""
    return f"metadata/{role}.json" if version is None else f"metadata/{version}.{role}.json"


def most(role: str) -> int:
    """The bytes that a role's metadata may have."""
    return MOST.get(role, MOST_OWNER)


def stored_as(target: TargetFile) -> str:
    """Where a signed file lies in the store, its sha256 before its name, as TUF's clients look for it."""
    return f"targets/{target.get_prefixed_paths()[0]}"


def sign(signed: Root | Timestamp | Snapshot | Targets, signers: Iterable[CryptoSigner], days: float) -> bytes:
    """A piece of metadata, valid for so many days from now, with everybody's signature."""
    signed.expires = (datetime.now(UTC) + timedelta(days=days)).replace(microsecond=0)
    metadata: Metadata[Any] = Metadata(signed)
    for one in signers:
        metadata.sign(one, append=True)
    return metadata.to_bytes(JSONSerializer(compact=True))


def verified(data: bytes, kind: type[S], role: str, delegator: Root | Targets) -> S | None:
    """The metadata in `data` if `delegator` has a role of this name whose keys signed it; its age is not looked at."""
    try:
        metadata: Metadata[S] = Metadata.from_bytes(data)
        if not isinstance(metadata.signed, kind):
            return None
        delegator.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
    except (RepositoryError, DeserializationError, UnverifiedSignatureError, ValueError):
        return None
    return metadata.signed


def described(signed: Signed, data: bytes) -> MetaFile:
    """What a snapshot or timestamp says of a piece of metadata."""
    return MetaFile.from_data(signed.version, data, ["sha256"])


def ours(signed: Signed) -> dict[str, Any]:
    """Our own part of a piece of metadata; empty if it has none."""
    found = signed.unrecognized_fields.get(FIELD)
    return dict(found) if isinstance(found, Mapping) else {}


def set_ours(signed: Signed, value: Mapping[str, Any]) -> None:
    signed.unrecognized_fields[FIELD] = dict(value)


def read_if_there(place: Place, name: str, most: int) -> bytes | None:
    try:
        return place.read(name, most)
    except NotThereError:
        return None


def listed_versions(place: Place) -> Listed | None:
    """Role -> versions of its metadata that a store shows; None where it cannot list."""
    names = place.names("metadata")
    if names is None:
        return None
    found: Listed = {}
    for name in names:
        number, _, rest = name.partition(".")
        if number.isdecimal() and len(number) < 10 and rest.endswith(".json"):
            found.setdefault(rest.removesuffix(".json"), []).append(int(number))
    return found


def versions_there(place: Place, role: str, known: int, listed: Listed | None = None) -> list[int]:
    """The versions of a role's metadata after `known` that a store has, in order.

    `listed` is what the store was seen to show; without, it is listed now, or asked one by one where it cannot be.
    """
    listed = listed_versions(place) if listed is None else listed
    if listed is not None:
        return sorted(version for version in listed.get(role, []) if version > known)
    following = itertools.count(known + 1)
    return list(itertools.takewhile(lambda version: place.size(name_of(role, version)) is not None, following))


def signed_versions(
    place: Place, role: str, kind: type[S], delegator: Root | Targets, known: int, listed: Listed | None = None
) -> Iterator[tuple[S, bytes]]:
    """What a store has of a role after version `known`, newest first, with its bytes; the unsigned is left out."""
    for version in reversed(versions_there(place, role, known, listed)):
        data = read_or_nothing(place, name_of(role, version), most(role))
        found = verified(data, kind, role, delegator)
        if found and found.version == version:
            yield found, data


def create_signed(place: Place, role: str, signed: S, data: bytes, delegator: Root | Targets) -> bool:
    """Creates a version of a role's metadata; one that is there without its signature is no obstacle."""
    name = name_of(role, signed.version)
    if place.create(name, data):
        return True
    found = read_or_nothing(place, name, most(role))
    if verified(found, type(signed), role, delegator):
        return found == data
    place.replace(name, data)
    return True


def read_or_nothing(place: Place, name: str, most: int) -> bytes:
    """A file of a store, or nothing where it is not there or cannot be what it is called."""
    try:
        return place.read(name, most)
    except (NotThereError, UnfitError):
        return b""
