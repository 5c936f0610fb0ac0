"""What of a store is to be believed: TUF's client for everybody, and a second look for the coordinator.

`follow` is the client workflow of TUF, to the letter: root, timestamp, snapshot, targets, nothing expired, nothing
older than what was seen here before. `latest` is for those who write: it also reads what has expired, since they are
to renew it, and takes up a snapshot that a killed coordinator had signed and not yet stamped.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice

from tuf.api import exceptions as tuf_errors
from tuf.api.metadata import Metadata, MetaFile, Root, Signed, Snapshot, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from federation.roles.home import Home, root_digest
from federation.roles.signed import (
    MOST,
    S,
    name_of,
    read_if_there,
    read_or_nothing,
    signed_versions,
    verified,
)
from federation.store.place import ANY, SMALL_FILE, NotThereError, Place, watched
from flexo.errors import InputError

BASE = "store:"
PATIENCE = (0.1, 0.3, 0.9)  # seconds between attempts


class TrustError(InputError):
    """What a store shows is not what the federation's keys have signed, is too old, or older than what was seen."""


@dataclass(frozen=True)
class State:
    """A federation as its signed metadata shows it."""

    root: Root
    timestamp: Timestamp
    snapshot: Snapshot
    targets: Targets

    def meta(self, role: str) -> MetaFile | None:
        """What the snapshot says of a role's metadata."""
        return self.snapshot.meta.get(f"{role}.json")


class StoreFetcher(FetcherInterface):
    """How TUF's client reads a `Place`, in bounded time."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def _fetch(self, url: str) -> Iterator[bytes]:
        name = url.removeprefix(BASE).lstrip("/")
        try:
            yield from watched(self.place.chunks(name), f"{self.place.url}: {name}", ANY, SMALL_FILE)
        except NotThereError as error:
            raise tuf_errors.DownloadHTTPError(str(error), 404) from None


def follow(home: Home) -> State:
    """The state that is in force; raises `TrustError` in the words of what is wrong with the store."""
    with home.locked(), _explained(home):
        _refresh(home)
        return _kept(home)


def latest(home: Home) -> State:
    """The newest state that the federation's keys have signed, expired or not; raises `TrustError`."""
    with home.locked():
        seen = True
        try:
            with _explained(home):
                _refresh(home)
        except TrustError as error:
            seen = not isinstance(error.__cause__, tuf_errors.ExpiredMetadataError)
            if seen:
                raise
        place, root = home.writable, _load(home, "root", Root)
        stamp, snapshot = _load(home, "timestamp", Timestamp), _load(home, "snapshot", Snapshot)
        assert root, "TUF's client keeps it"
        if not seen or not stamp or not snapshot:
            stamp = _read(place, "timestamp", None, Timestamp, root, stamp)
            snapshot = _read(place, "snapshot", stamp.snapshot_meta.version, Snapshot, root, snapshot)
        snapshot, _ = newest_snapshot(place, root, snapshot, b"")
        targets = _read(place, "targets", snapshot.meta["targets.json"].version, Targets, root, None)
        return State(root, stamp, snapshot, targets)


def newest_snapshot(place: Place, root: Root, snapshot: Snapshot, data: bytes) -> tuple[Snapshot, bytes]:
    """The last of the signed snapshots that follow one another in the store, whether stamped or not, and its bytes."""
    while found := read_if_there(place, name_of("snapshot", snapshot.version + 1), MOST["snapshot"]):
        newer = verified(found, Snapshot, "snapshot", root)
        if not newer or newer.version != snapshot.version + 1:
            break
        snapshot, data = newer, found
    return snapshot, data


def restore(home: Home) -> list[str]:
    """Writes what this machine has verified to a store that has lost or altered it; returns the names.

    TUF's client keeps what it verified, and keeps nothing older in its place. The timestamp that everybody follows is
    the newest one that is signed, whatever was put there.
    """
    root, place, written = root_now(home), home.writable, []
    with home.locked():
        files = [(f"metadata/{path.name}", path) for path in (home.metadata / "root_history").glob("*.root.json")]
        for role in ("targets", "snapshot", "timestamp"):
            path = home.metadata / f"{role}.json"
            if path.exists():
                files.append((name_of(role, Metadata.from_bytes(path.read_bytes()).signed.version), path))
        for name, path in files:
            if read_or_nothing(place, name, max(MOST.values())) != (data := path.read_bytes()):
                place.replace(name, data)
                written.append(name)
        name = name_of("timestamp", None)
        shown = verified(read_or_nothing(place, name, MOST["timestamp"]), Timestamp, "timestamp", root)
        newest = signed_versions(place, "timestamp", Timestamp, root, shown.version if shown else 0)
        for _, data in islice(newest, 1):
            place.replace(name, data)
            written.append(name)
    return written


def root_now(home: Home) -> Root:
    """The newest root of the chain that begins with the one that was handed over, expired or not."""
    with home.locked(), suppress(TrustError), _explained(home):
        _refresh(home)
    root = _load(home, "root", Root)
    assert root, "TUF's client keeps it"
    return root


def expired(signed: Signed) -> bool:
    return bool(signed.is_expired(datetime.now(UTC)))


def _refresh(home: Home) -> None:
    """TUF's client workflow. Two who stamp at once may show an older timestamp for a moment: that is waited for."""
    for pause in (*PATIENCE, None):
        try:
            _updater(home).refresh()
            return
        except tuf_errors.BadVersionNumberError:
            if pause is None:
                raise
            time.sleep(pause)


def _updater(home: Home) -> Updater:
    """TUF's client on this store, with what it has verified before; raises `TrustError` for a root that is none."""
    config = UpdaterConfig(
        max_root_rotations=1024,
        root_max_length=MOST["root"],
        timestamp_max_length=MOST["timestamp"],
        snapshot_max_length=MOST["snapshot"],
        targets_max_length=MOST["targets"],
    )
    home.metadata.mkdir(parents=True, exist_ok=True)
    return Updater(
        str(home.metadata), f"{BASE}/metadata/", fetcher=StoreFetcher(home.place), config=config, bootstrap=home.root
    )


def _kept(home: Home) -> State:
    """What TUF's client has just verified and kept."""
    root, stamp = _load(home, "root", Root), _load(home, "timestamp", Timestamp)
    snapshot, targets = _load(home, "snapshot", Snapshot), _load(home, "targets", Targets)
    assert root and stamp and snapshot and targets, "kept by TUF's client"
    return State(root, stamp, snapshot, targets)


def _load(home: Home, role: str, kind: type[S]) -> S | None:
    path = home.metadata / f"{role}.json"
    if not path.exists():
        return None
    metadata: Metadata[S] = Metadata.from_bytes(path.read_bytes())
    assert isinstance(metadata.signed, kind), path
    return metadata.signed


def _read(place: Place, role: str, version: int | None, kind: type[S], root: Root, seen: S | None) -> S:
    """A top-level role's metadata as the store shows it, signed and not older than what was seen, if expired."""
    data = place.read(name_of(role, version), MOST[role])
    signed = verified(data, kind, role, root)
    if not signed or version not in (None, signed.version):
        raise TrustError(f"{place.url}: {name_of(role, version)} is not signed by the federation's keys.")
    if seen and signed.version < seen.version:
        raise TrustError(_rolled_back(place, f"{role} {signed.version}, this machine has seen {seen.version}"))
    return signed


def _rolled_back(place: Place, what: str) -> str:
    return (
        f"{place.url}: older than what was seen before ({what}). The store was rolled back, or has forgotten its last "
        "write. Do not use it until the coordinator has looked; flexo-federation refresh writes it anew."
    )


@contextmanager
def _explained(home: Home) -> Iterator[None]:
    """Turns what TUF's client refuses into one message that says what the store is doing."""
    url = home.place.url
    try:
        yield
    except tuf_errors.ExpiredMetadataError as error:
        raise TrustError(
            f"{url}: has expired ({error}). Either the store is frozen and hides what is newer, or the coordinator's "
            "flexo-federation refresh has not run. Nothing is believed until it has."
        ) from error
    except tuf_errors.BadVersionNumberError as error:
        raise TrustError(_rolled_back(home.place, str(error))) from error
    except tuf_errors.UnsignedMetadataError as error:
        raise TrustError(
            f"{url}: not signed by the keys of this federation ({error}). It was altered, signed with a key that "
            f"was taken away, or root.json (sha256 {root_digest(home.root)[:16]}) is the root of another federation. "
            "The coordinator's flexo-federation refresh writes anew what was altered."
        ) from error
    except tuf_errors.LengthOrHashMismatchError as error:
        raise TrustError(
            f"{url}: files of two versions are mixed there ({str(error)[:200]}). Each is signed, but not together."
        ) from error
    except tuf_errors.DownloadLengthMismatchError as error:
        raise TrustError(
            f"{url}: metadata larger than it may be ({error}). The store hands out something else."
        ) from error
    except tuf_errors.DownloadHTTPError as error:
        raise TrustError(
            f"{error} It is part of every federation: is the address right? Or the store has lost it."
        ) from error
    except (tuf_errors.RepositoryError, tuf_errors.DownloadError) as error:
        raise TrustError(f"{url}: not the metadata of a federation ({str(error)[:300]}).") from error
