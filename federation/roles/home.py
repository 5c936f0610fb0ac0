"""The folder in which a member remembers a federation: where it is, the root that was handed over, what was seen.

.flexo-federation/member.json     where the store is read and written
.flexo-federation/root.json           the root that was handed over, never changed
.flexo-federation/metadata/           what TUF's client has verified, so that nothing older is believed later
.flexo-federation/written.json        serial numbers that were signed here
.flexo-federation/cache/              events and owners' metadata, by sha256
.flexo-federation/experts/            expert files that were fetched, by sha256
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from federation.store.opening import open_place
from federation.store.place import Place, StoreError
from flexo.atomic_files import new_file, partial_of
from flexo.errors import InputError
from flexo.locks import hold


@dataclass(frozen=True)
class Home:
    folder: Path
    url: str
    write_url: str

    @cached_property
    def place(self) -> Place:
        """The store to read."""
        return open_place(self.url)

    @cached_property
    def writable(self) -> Place:
        """The store to write, which may be reached another way."""
        return self.place if self.write_url == self.url else open_place(self.write_url)

    @property
    def metadata(self) -> Path:
        return self.folder / "metadata"

    @property
    def root(self) -> bytes:
        return (self.folder / "root.json").read_bytes()

    def locked(self) -> AbstractContextManager[None]:
        """One process at a time: TUF's client asks for that."""
        return hold(self.folder / ".lock")

    def cached(self, name: str, sha256: str, most: int) -> bytes:
        """A file of the store that is known by its sha256; raises `StoreError` for another.

        It is kept here from then on, unless the store is a folder of this machine.
        """
        path = self._cache(sha256)
        if not self.place.near and path.is_file():
            data = path.read_bytes()
            if hashlib.sha256(data).hexdigest() == sha256:
                return data
        data = self.place.read(name, most)
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(
                f"{self.place.url}: {name} is not the file that was signed (sha256 {sha256[:12]}). It was exchanged on "
                "the store, or two versions are mixed there."
            )
        if not self.place.near:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = partial_of(path)
            partial.write_bytes(data)  # not synced: what a crash leaves of it is fetched again
            partial.replace(path)
        return data

    def drop(self, sha256: str) -> None:
        """Keeps a cached file no longer."""
        self._cache(sha256).unlink(missing_ok=True)

    def written(self) -> dict[str, int]:
        """Role -> the serial number that was last signed here."""
        path = self.folder / "written.json"
        return dict(json.loads(path.read_text())) if path.exists() else {}

    def remember(self, role: str, serial: int) -> None:
        """Notes a serial number that was signed here: a store that shows less has forgotten it."""
        with self.locked():
            self._write("written.json", self.written() | {role: serial})

    def _cache(self, sha256: str) -> Path:
        return self.folder / "cache" / sha256[:2] / sha256

    def _write(self, name: str, value: Any) -> None:
        with new_file(self.folder / name, replace=True) as partial:
            partial.write_text(json.dumps(value, indent=2) + "\n")


def make_home(folder: Path, url: str, write_url: str, root: bytes) -> Home:
    """Notes which federation this folder belongs to; raises `InputError` if it is that of another one."""
    home = Home(folder, url, write_url)
    if (folder / "root.json").exists() and home.root != root:
        raise InputError(
            f"{folder}: belongs to a federation with another root (sha256 {root_digest(home.root)[:16]}; this one has "
            f"{root_digest(root)[:16]}). One folder is for one federation: choose another with --home."
        )
    folder.mkdir(parents=True, exist_ok=True)
    with new_file(folder / "root.json", replace=True) as partial:
        partial.write_bytes(root)
    home._write("member.json", {"format": "flexo.federation", "version": 1, "url": url, "write": write_url})
    return home


def open_home(folder: Path) -> Home:
    """The federation that was joined from here; raises `InputError` if none was."""
    try:
        about = json.loads((folder / "member.json").read_text())
        return Home(folder, about["url"], about["write"])
    except FileNotFoundError:
        raise InputError(
            f"{folder}: no federation was joined here. Owners: flexo-federation join URL --root root.json; "
            "coordinators: flexo-federation init STORE --keys keys/. Or say with --home where it was."
        ) from None
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{folder}/member.json: damaged ({type(error).__name__}). Join again.") from None


def root_digest(root: bytes) -> str:
    """What members compare with each other before they trust a root."""
    return hashlib.sha256(root).hexdigest()
