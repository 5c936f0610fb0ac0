"""Signatures beside expert files: whose key signed which expert. Ed25519, keys in PEM as openssl makes them.

    experts/math.pt        the expert
    experts/math.pt.sig    {"format": "flexo.signature", "version": 1, "header": sha256, "key": fingerprint,
                            "signature": base64}

What is signed is two lines of ASCII, `statement` below: a title, which no other use of the key shares, and the sha256
of the header. The header holds the sha256 of every tensor, so the signature covers every value, is checked before a
tensor is read, and stays true when the expert moves between `.pt` and `.safetensors`. The tensors are compared with the
header as they are read; a merge that asks for signatures always does that. `merge.formats.signing` makes them.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.errors import InputError
from merge.formats.expert_file import ExpertFile
from merge.formats.expert_header import DOMAIN, SHA256, Header
from merge.tensor_io.json_file import parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

FORMAT = "flexo.signature"
VERSION = 1
KEY_SUFFIXES = (".pem", ".pub")
MAX_FILE = 10_000  # bytes of a signature or a key
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")


class SignatureError(InputError):
    """A signature is missing, malformed, of another file or by a key that is not trusted, or a key cannot be used."""


@dataclass(frozen=True)
class Signature:
    """What a signature file claims, before `TrustedKeys.verify`."""

    header: str  # sha256 of the header that was signed, hex
    key: str  # fingerprint, see `fingerprint_of`
    signature: str  # base64 of 64 bytes


@dataclass(frozen=True)
class Voucher:
    """A signature that was verified, as the manifest keeps it."""

    name: str  # of the key, in the folder of trusted keys
    key: str
    header: str
    signature: str

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class TrustedKeys:
    """The public keys of a folder, by fingerprint; a key's name is its file's name without the suffix."""

    folder: Path
    keys: dict[str, tuple[str, Ed25519PublicKey]]
    bound: dict[str, frozenset[str]] = field(default_factory=dict)  # fingerprint -> the domains it may sign; else any

    def verify(self, expert: ExpertFile, required: bool = True) -> Voucher | None:
        """The verified signature of an expert; None if it has none and none is `required`.

        Raises `SignatureError` for a missing signature that is required, and for any other that does not hold.
        """
        from cryptography.exceptions import InvalidSignature

        path = signature_path(expert.path)
        if not path.exists():
            if not required:
                return None
            raise SignatureError(
                f"{path}: no such file, and a signature is required. Ask the owner of {expert.domain!r} for it; it is "
                f"made with: flexo-sign {expert.path.name} --key KEY"
            )
        found = read_signature(path)
        if found.key not in self.keys:
            raise SignatureError(
                f"{path}: signed by the key {found.key[:16]}, which is not among the {len(self.keys)} in "
                f"{self.folder}. If you trust its owner, put their public key there."
            )
        name, key = self.keys[found.key]
        if not self.may_sign(found.key, expert.domain):
            domains = ", ".join(sorted(self.bound[found.key]))
            raise SignatureError(
                f"{path}: signed by {name!r}, whose key is in {self.folder} for {domains} alone, "
                f"not for {expert.domain!r}. Ask the owner of {expert.domain!r} for their signature."
            )
        if found.header != (ours := header_digest(expert.header)):
            raise SignatureError(
                f"{path}: signs the header {found.header[:16]}, {expert.path.name} has {ours[:16]}. The expert was "
                "changed after it was signed, or this is the signature of another file. Ask its owner for both again."
            )
        try:
            key.verify(base64.b64decode(found.signature), statement(ours))
        except InvalidSignature:
            raise SignatureError(
                f"{path}: not made by the key {name!r} that it names. The signature was altered; do not use the file."
            ) from None
        return Voucher(name, found.key, ours, found.signature)

    def may_sign(self, key: str, domain: str) -> bool:
        """Whether the key called `key` may sign for `domain`: a key that is bound to domains signs for no other."""
        return domain in self.bound.get(key, (domain,))

    def vouched(self, entry: Any, domain: str) -> bool:
        """Whether `entry`, of a manifest, is a signature of an expert of `domain` by one of these keys.

        The header that the entry names is taken as it is.
        """
        from cryptography.exceptions import InvalidSignature

        try:
            _, key = self.keys[entry["key"]]
            key.verify(base64.b64decode(entry["signature"]), statement(entry["header"]))
        except (InvalidSignature, KeyError, TypeError, ValueError):
            return False
        return self.may_sign(entry["key"], domain)


def signature_path(expert: Path) -> Path:
    return expert.with_name(expert.name + ".sig")


def header_digest(header: Header) -> str:
    """The sha256 of the header's JSON, UTF-8, as flexo writes it into expert files."""
    return hashlib.sha256(header.to_json().encode()).hexdigest()


def statement(header_sha256: str) -> bytes:
    """The bytes that are signed."""
    return f"flexo expert signature, version {VERSION}\nheader sha256 {header_sha256}\n".encode("ascii")


def read_signature(path: Path) -> Signature:
    """A signature file; raises `SignatureError` for anything that is not exactly one."""
    try:
        content: Any = parse_json(read_small(path, "a signature").decode("ascii"))
    except ValueError as error:
        raise SignatureError(f"{path}: not a signature by flexo-sign ({type(error).__name__}).") from None
    names = {"format", "version", "header", "key", "signature"}
    if not isinstance(content, dict) or content.keys() != names or content["format"] != FORMAT:
        raise SignatureError(f"{path}: not a signature by flexo-sign. Expected exactly the fields {sorted(names)}.")
    if type(content["version"]) is not int or content["version"] != VERSION:
        raise SignatureError(
            f"{path}: signature version {str(content['version'])[:20]!r}, this flexo reads {VERSION}. Update flexo."
        )
    for name in ("header", "key"):
        if not isinstance(content[name], str) or not SHA256.fullmatch(content[name]):
            raise SignatureError(f"{path}: {name} is {str(content[name])[:80]!r}, expected a sha256 in hex.")
    try:
        size = len(base64.b64decode(content["signature"], validate=True))
    except (binascii.Error, TypeError, ValueError):
        size = 0
    if size != 64:
        raise SignatureError(
            f"{path}: the signature is not 64 bytes in base64. The file was damaged; ask for it again."
        )
    return Signature(content["header"], content["key"], content["signature"])


def read_trusted_keys(folder: Path) -> TrustedKeys:
    """The public keys `*.pem` and `*.pub` of a folder; raises `SignatureError` if one is no Ed25519 public key.

    A key that lies in the folder itself may sign any domain; one in a folder `math` in it may sign that domain alone,
    wherever else it lies.
    """
    require_cryptography()
    if not folder.is_dir():
        raise SignatureError(f"{folder}: no such folder. Expected one with the public keys that you trust, in PEM.")
    keys: dict[str, tuple[str, Ed25519PublicKey]] = {}
    bound: dict[str, set[str]] = {}
    for path in sorted([*folder.iterdir(), *folder.glob("*/*")]):
        if path.is_file() and path.suffix in KEY_SUFFIXES and not path.name.startswith("."):
            if not NAME.fullmatch(path.stem):
                raise SignatureError(f"{path}: the name of a key is its owner's name. Use letters, digits, '.@_-'.")
            key = read_public_key(path)
            keys.setdefault(fingerprint_of(key), (path.stem, key))
            if path.parent != folder:
                if not DOMAIN.fullmatch(path.parent.name):
                    raise SignatureError(
                        f"{path.parent}: expected the name of a domain, whose keys are in this folder."
                    )
                bound.setdefault(fingerprint_of(key), set()).add(path.parent.name)
    if not keys:
        raise SignatureError(f"{folder}: no public key in it. Expected files like alice.pub or math/alice.pub, in PEM.")
    return TrustedKeys(folder, keys, {key: frozenset(domains) for key, domains in bound.items()})


def fingerprint_of(key: Ed25519PublicKey) -> str:
    """The sha256, in hex, of a public key in DER: `openssl pkey -pubin -in KEY -outform DER | sha256sum`."""
    from cryptography.hazmat.primitives import serialization as s

    return hashlib.sha256(key.public_bytes(s.Encoding.DER, s.PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def read_public_key(path: Path) -> Ed25519PublicKey:
    """An Ed25519 public key in PEM; raises `SignatureError` for anything else, and for a private key."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    data = read_small(path, "a public key")
    if b"PRIVATE KEY" in data:
        raise SignatureError(
            f"{path}: a private key, where only public keys belong. Move it to a place that only its owner can read."
        )
    try:
        key: Any = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise SignatureError(
            f"{path}: not an Ed25519 public key in PEM. Remove it, or ask its owner for the right file."
        )
    return key


def read_small(path: Path, what: str) -> bytes:
    """A signature or a key; raises `SignatureError` for anything larger, or that cannot be read."""
    try:
        if not path.is_file():
            raise SignatureError(f"{path}: {'not a file' if path.exists() else 'no such file'}, expected {what}.")
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as error:
        raise SignatureError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) > MAX_FILE:
        raise SignatureError(f"{path}: more than {MAX_FILE} bytes, expected {what}.")
    return data


def require_cryptography() -> None:
    """Raises `SignatureError` where the package is not installed."""
    try:
        import cryptography.hazmat.primitives.asymmetric.ed25519  # noqa: F401
    except ImportError:
        raise SignatureError(
            "signatures need the package cryptography. Install it: pip install -c constraints.txt 'flexo[sign]'"
        ) from None
