"""API keys: a YAML file with what each key may use, and hashes in place of the keys.

    roles:
      clinic: [public, medicine]
    keys:
      - name: alice
        sha256: 5c1e...              # of the key, which nobody can read back
        experts: [public, math]      # or role: clinic
        requests_per_minute: 60
        tokens_per_day: 100000
        at_once: 8
        expires: 2027-01-01

The file is read again whenever it has changed, so `flexo-serve keys` takes effect on a server that runs.
"""

from __future__ import annotations

import datetime
import hashlib
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flexo.atomic_files import new_file
from flexo.errors import InputError
from flexo.locks import hold
from merge.formats.expert_header import DOMAIN

PREFIX = "flexo-"
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._@-]{0,63}$")]
Domain = Annotated[str, Field(pattern=DOMAIN.pattern)]
Count = Annotated[int, Field(ge=1)]


class Key(BaseModel):
    """One key and what it allows."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    experts: list[Domain] = []
    role: Name | None = None
    requests_per_minute: Count = 60
    tokens_per_day: Count = 1_000_000
    at_once: Count = 8
    expires: datetime.date | None = None  # the first day on which it is not taken any more, UTC

    def expired(self) -> bool:
        return self.expires is not None and datetime.datetime.now(datetime.UTC).date() >= self.expires


class KeyFile(BaseModel):
    """All keys. Every one names at least one expert: an empty set never means all."""

    model_config = ConfigDict(extra="forbid")
    roles: dict[Name, Annotated[list[Domain], Field(min_length=1)]] = {}
    keys: list[Key] = []

    @model_validator(mode="after")
    def consistent(self) -> KeyFile:
        for field in ("name", "sha256"):
            found = [getattr(key, field) for key in self.keys]
            if twice := {value for value in found if found.count(value) > 1}:
                raise ValueError(f"the {field} {min(twice)[:16]!r} is there twice; each key has its own")
        for key in self.keys:
            if bool(key.experts) == bool(key.role):
                raise ValueError(f"key {key.name!r}: expected either experts or a role")
            if key.role and key.role not in self.roles:
                raise ValueError(f"key {key.name!r}: no role {key.role!r} in roles")
        return self

    def experts(self, key: Key) -> list[str]:
        """What a key may use, in every model."""
        return list(dict.fromkeys(self.roles[key.role] if key.role else key.experts))


class KeyStore:
    """A key file, read when it changes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stamp: tuple[int, ...] = ()
        self._file = KeyFile()
        self._by_hash: dict[str, Key] = {}
        self.read()

    def read(self) -> KeyFile:
        """The keys as they are now; raises `InputError` if the file cannot be read or says something unknown."""
        try:
            status = self._path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
            if stamp != self._stamp:
                self._file = parsed(self._path)
                self._by_hash = {key.sha256: key for key in self._file.keys}
                self._stamp = stamp
        except OSError as error:
            raise InputError(
                f"{self._path}: cannot be read ({error.strerror}). Make it: flexo-serve keys add"
            ) from None
        return self._file

    def find(self, secret: str) -> tuple[Key, list[str]] | None:
        """The key of that secret and its experts; None for no such key, or one that has expired."""
        file = self.read()
        key = self._by_hash.get(digest(secret))
        return (key, file.experts(key)) if key and not key.expired() else None


def parsed(path: Path) -> KeyFile:
    """A key file; raises `InputError` for one that is not wholly understood."""
    try:
        return KeyFile.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")) or {})
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {where or 'keys'}: {first['msg'].removeprefix('Value error, ')}.") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(f"{path}: not readable as YAML ({str(error).splitlines()[0]}).") from None


def add_key(path: Path, name: str, **allowed: Any) -> str:
    """Adds a key to the file, which may be new, and returns the secret; it is shown this once."""
    secret = PREFIX + secrets.token_urlsafe(32)
    with changing(path) as file:
        if any(key.name == name for key in file.keys):
            raise InputError(f"{path}: there is a key {name!r} already. Choose another name or revoke it first.")
        given = {field: value for field, value in allowed.items() if value is not None}
        content = file.model_dump()
        content["keys"].append({"name": name, "sha256": digest(secret)} | given)
        write(path, content)
    return secret


def revoke_key(path: Path, name: str) -> None:
    """Takes a key out of the file."""
    with changing(path) as file:
        kept = [key for key in file.keys if key.name != name]
        if len(kept) == len(file.keys):
            known = ", ".join(key.name for key in kept) or "none"
            raise InputError(f"{path}: no key {name!r}. It has {known}.")
        write(path, file.model_copy(update={"keys": kept}).model_dump())


@contextmanager
def changing(path: Path) -> Iterator[KeyFile]:
    """Holds the key file for one who changes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with hold(path.with_name(f"{path.name}.lock")):
        yield parsed(path) if path.exists() else KeyFile()


def write(path: Path, content: dict[str, Any]) -> None:
    """Writes a key file, for its owner's eyes alone."""
    try:
        checked = KeyFile.model_validate(content)
    except ValidationError as error:
        raise InputError(f"{error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
    kept = checked.model_dump(exclude_defaults=True)
    with new_file(path, replace=True) as partial:
        partial.touch(0o600)
        partial.write_text(yaml.safe_dump(kept, sort_keys=False), encoding="utf-8")


def digest(secret: str) -> str:
    """Of a key with 256 random bits, which nobody can guess; a slow hash would add nothing."""
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
