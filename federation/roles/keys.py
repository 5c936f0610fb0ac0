"""The Ed25519 keys of `flexo-sign` as keys of TUF, and the folder of a coordinator's keys.

    keys/root.pem  targets.pem  snapshot.pem  timestamp.pem        one file a key; the name's first word is its role
    keys/root.bob.pem                                              a further root key
    keys/timestamp.next.pem                                        the key that takes over, during a rotation

Whoever signs for a role signs with all its keys in the folder, so that during a rotation old and new roots both find
the signature that they ask for.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from securesystemslib.signer import CryptoSigner, SSlibKey

from merge.formats.signatures import SignatureError, fingerprint_of, read_public_key
from merge.formats.signing import make_key, read_private_key

TOP_ROLES = ("root", "targets", "snapshot", "timestamp")


def public_key(path: Path) -> SSlibKey:
    """The key in a `.pub` or `.pem` file of `flexo-sign`; its id is the fingerprint that `flexo-sign` shows."""
    key = read_public_key(path)
    return SSlibKey.from_crypto(key, fingerprint_of(key))


def signer(path: Path) -> CryptoSigner:
    """What signs with a private key in PEM."""
    private = read_private_key(path)
    public = private.public_key()
    return CryptoSigner(private, SSlibKey.from_crypto(public, fingerprint_of(public)))


def signers(folder: Path, role: str) -> list[CryptoSigner]:
    """Everything in a folder of keys that signs for `role`; raises `SignatureError` for none."""
    found = [signer(path) for path in key_files(folder, role)]
    if not found:
        raise SignatureError(
            f"{folder}: no {role}.pem in it, and this needs the federation's key for {role!r}. Give the folder of the "
            "coordinator's keys with --keys."
        )
    return found


def key_files(folder: Path, role: str) -> list[Path]:
    """The private keys of a role, `role.pem` first."""
    found = sorted(path for path in folder.glob(f"{role}*.pem") if path.name.split(".")[0] == role)
    return sorted(found, key=lambda path: path.stem != role)


def make_keys(folder: Path) -> dict[str, CryptoSigner]:
    """One key for each top-level role, made where it is not there yet; those of the root may be any number."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for role in TOP_ROLES:
        if not key_files(folder, role):
            _make(folder / f"{role}.pem")
    return {role: signers(folder, role)[0] for role in TOP_ROLES}


def start_rotation(folder: Path, role: str) -> CryptoSigner:
    """The key that takes over from the role's present one; made once, however often a rotation is begun."""
    path = folder / f"{role}.next.pem"
    if not path.exists():
        _make(path)
    return signer(path)


def _make(path: Path) -> None:
    """A new key, also where a killed process left just its public half."""
    path.with_suffix(".pub").unlink(missing_ok=True)
    make_key(path)


def finish_rotation(folder: Path, role: str, current: Collection[str]) -> None:
    """Renames `role.next.pem` to `role.pem` once the federation names its key and no more the old one's."""
    following, old = folder / f"{role}.next.pem", folder / f"{role}.pem"
    if not following.exists() or signer(following).public_key.keyid not in current:
        return
    if old.exists() and (keyid := signer(old).public_key.keyid) not in current:
        _rename(folder, role, f"retired.{role}.{keyid[:8]}")  # kept, but under a name that signs nothing
    _rename(folder, f"{role}.next", role)


def _rename(folder: Path, name: str, to: str) -> None:
    for suffix in (".pub", ".pem"):  # the private one last: where it is missing, this starts again
        if (file := folder / f"{name}{suffix}").exists():
            file.rename(folder / f"{to}{suffix}")
