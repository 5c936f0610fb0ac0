"""The owner's side of `merge.formats.signatures`: a private key, made and read, and expert files signed with it."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from flexo.atomic_files import new_file
from flexo.console import Progress, no_progress
from merge.formats.expert_file import ExpertFile, open_expert
from merge.formats.signatures import (
    FORMAT,
    VERSION,
    SignatureError,
    fingerprint_of,
    header_digest,
    read_small,
    require_cryptography,
    signature_path,
    statement,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


@dataclass(frozen=True)
class Signed:
    """A signature that was written."""

    path: Path  # beside the expert file
    domain: str
    header: str  # sha256 of the header that was signed, hex
    key: str  # fingerprint of the public key


def sign(
    experts: Sequence[Path | str],
    key: Path | str,
    *,
    passphrase: Callable[[], str] | None = None,
    progress: Progress = no_progress,
) -> list[Signed]:
    """What `flexo-sign` does: reads every tensor of expert files, and writes FILE.sig beside each.

    Args:
        experts: expert files.
        key: an Ed25519 private key in PEM.
        passphrase: asked for if the key is encrypted; None refuses such a key.
        progress: shows how far it is.

    Raises:
        InputError: a file is damaged, and then none is signed; or the key cannot be used.
    """
    private = read_private_key(Path(key), passphrase)
    opened = [open_expert(Path(path)) for path in experts]
    with progress("reading", sum(expert.nbytes for expert in opened)) as advance:
        for expert in opened:  # nobody should vouch for a damaged file
            expert.verify(advance)
    fingerprint = fingerprint_of(private.public_key())
    return [
        Signed(write_signature(expert, private), expert.domain, header_digest(expert.header), fingerprint)
        for expert in opened
    ]


def write_signature(expert: ExpertFile, key: Ed25519PrivateKey) -> Path:
    """Writes the signature beside an expert file, in the place of an earlier one, and returns where."""
    digest = header_digest(expert.header)
    signature = base64.b64encode(key.sign(statement(digest))).decode("ascii")
    return write_signature_file(expert.path, digest, fingerprint_of(key.public_key()), signature)


def write_signature_file(expert: Path, header: str, key: str, signature: str) -> Path:
    """Writes a signature that was made already beside an expert file, and returns where.

    Args:
        expert: the file.
        header: the digest that was signed, hex.
        key: the fingerprint of the public key.
        signature: in base64.
    """
    content = {"format": FORMAT, "version": VERSION, "header": header, "key": key, "signature": signature}
    path = signature_path(expert)
    with new_file(path, replace=True) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")
    return path


def read_private_key(path: Path, passphrase: Callable[[], str] | None = None) -> Ed25519PrivateKey:
    """An Ed25519 private key in PEM.

    Args:
        path: the file, as `openssl genpkey -algorithm ed25519` writes it.
        passphrase: asked for if the key is encrypted; None refuses such a key.

    Raises:
        SignatureError: not such a key, or the passphrase is wrong or cannot be asked for.
    """
    require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    data = read_small(path, "a private key")
    secret: bytes | None = None
    if b"ENCRYPTED" in data:
        if passphrase is None:
            raise SignatureError(
                f"{path}: encrypted, and there is no terminal to ask for its passphrase. Run it on one."
            )
        secret = passphrase().encode()
    try:
        key = load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        reason = "the passphrase is wrong, or it is damaged" if secret is not None else "expected one in PEM"
        raise SignatureError(
            f"{path}: cannot be read as a private key ({reason}). Make one: flexo-sign --generate --key {path}"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise SignatureError(
            f"{path}: a private key of another kind than Ed25519. Make one: openssl genpkey -algorithm ed25519"
        )
    return key


def make_key(key: Path | str) -> tuple[Path, str]:
    """What `flexo-sign --generate` does: a new private key, readable by its owner alone, and its public key beside it.

    Returns:
        The path of the public key, and its fingerprint.

    Raises:
        InputError: one of the two files is there already, or `key` ends in `.pub`.
    """
    require_cryptography()
    path = Path(key)
    from cryptography.hazmat.primitives import serialization as s
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    public = path.with_suffix(".pub")
    if public == path:
        raise SignatureError(f"{path}: .pub is for public keys. Name the private one, for instance {path.stem}.pem.")
    private = Ed25519PrivateKey.generate()
    private_pem = private.private_bytes(s.Encoding.PEM, s.PrivateFormat.PKCS8, s.NoEncryption())
    public_pem = private.public_key().public_bytes(s.Encoding.PEM, s.PublicFormat.SubjectPublicKeyInfo)
    with new_file(path) as partial_private, new_file(public) as partial_public:
        with os.fdopen(os.open(partial_private, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(private_pem)
        partial_public.write_bytes(public_pem)
    return public, fingerprint_of(private.public_key())
