"""What an expert file, a merged folder or an anchor says about itself, and whether an expert file is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flexo.console import Progress, no_progress
from merge.formats.expert_file import ExpertFile, open_expert
from merge.formats.signatures import Voucher, read_signature, read_trusted_keys, signature_path


def inspect(
    path: Path | str,
    *,
    verify: bool = False,
    trusted_keys: Path | str | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """What `flexo-inspect` shows: all that an expert file, a merged folder or an anchor says about itself.

    Args:
        path: an expert file, or a folder.
        verify: whether every tensor of an expert file is read and compared with its sha256.
        trusted_keys: a folder of public keys to check an expert's signature with.
        progress: shows how far it is.

    Raises:
        InputError: it is none of the three, or damaged, or the signature does not hold.
    """
    path = Path(path)
    if path.is_dir():  # what an expert file has no use for is imported here
        from merge.formats.anchor_folder import SHARED
        from merge.formats.anchor_folder import about as about_anchor
        from merge.formats.manifest import read_manifest

        return about_anchor(path) if (path / SHARED).is_dir() else read_manifest(path)
    expert = open_expert(path)
    if verify:
        with progress("verifying", expert.nbytes) as advance:
            expert.verify(advance)
    about = {"file": str(path), "bytes": path.stat().st_size, "verified": verify} | expert.header.to_dict()
    return about | {"signature": _signature(expert, None if trusted_keys is None else Path(trusted_keys))}


def verify(
    path: Path | str, *, trusted_keys: Path | str | None = None, progress: Progress = no_progress
) -> Voucher | None:
    """Reads a whole expert file and compares every tensor with its sha256, and the signature with trusted keys.

    Returns:
        The verified signature; None without `trusted_keys`.

    Raises:
        InputError: the file is damaged, or, where `trusted_keys` are given, not signed by one of them.
    """
    expert = open_expert(Path(path))
    voucher = None if trusted_keys is None else read_trusted_keys(Path(trusted_keys)).verify(expert)
    with progress("verifying", expert.nbytes) as advance:
        expert.verify(advance)
    return voucher


def _signature(expert: ExpertFile, trusted: Path | None) -> dict[str, str] | str | None:
    """Who signed an expert, or what its signature claims where no key is given to check it with."""
    if trusted is not None:
        voucher = read_trusted_keys(trusted).verify(expert, required=False)
        return voucher.to_dict() if voucher else None
    if not (path := signature_path(expert.path)).exists():
        return None
    return f"by the key {read_signature(path).key}, not checked; --trusted-keys FOLDER checks it"
