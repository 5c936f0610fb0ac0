"""The log of a server: one line for every answer, without its text, each line bound to the one before it.

    log/000001.jsonl        {"previous": sha256 of the line before, "what": "answer", "at": ..., ...}
    log/000001.jsonl.sig    {"format": "flexo.serving-log", "version": 1, "file": sha256, "key": fingerprint,
                             "signature": base64}

A file is closed when it has reached a size or when a new day begins, and then signed with Ed25519. The first line of a
file names the last one of the file before. So a line that is changed, moved or taken out shows; lines cut from the end
of the file that is not closed yet show only to who has receipts of them.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexo.atomic_files import new_file, sha256_file, sync
from flexo.errors import InputError
from flexo.locks import hold
from merge.formats.manifest import made_at
from merge.formats.signatures import fingerprint_of, read_public_key
from merge.formats.signing import read_private_key
from merge.tensor_io.json_file import parse_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

FORMAT, START = "flexo.serving-log", "0" * 64
Line = dict[str, Any]


class LogError(InputError):
    """A log is not as it was written, or cannot be written."""


class Log:
    """A log that is written by this process alone; any of its threads may append.

    Args:
        folder: where the files are; the chain that is there is gone on with.
        key: an Ed25519 private key in PEM that closed files are signed with; None signs none.
        most: bytes of a file.

    Raises:
        LogError: what is there is broken.
    """

    def __init__(self, folder: Path, key: Path | None = None, most: int = 64 << 20) -> None:
        self.folder, self._most = folder, most
        self._key: Ed25519PrivateKey | None = read_private_key(key) if key else None
        self._writing = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        self._hold()
        files = log_files(folder)
        self._path = files[-1] if files else folder / "000001.jsonl"
        self._last, torn = _tail(files)
        for path in files[:-1]:
            if self._key and not signature_of(path).exists():
                sign_file(path, self._key)
        self._file = self._path.open("ab")
        if torn:  # the power failed while a line was written, so its answer was never sent
            os.ftruncate(self._file.fileno(), self._path.stat().st_size - torn)
        self._size = self._path.stat().st_size
        self._day = made_at()[:10] if not self._size else ""

    def append(self, what: str, **about: Any) -> str:
        """Writes a line and returns its sha256; raises `LogError` if it cannot be written, and then nothing was."""
        with self._writing:
            if self._size >= self._most or (self._size and self._day and made_at()[:10] != self._day):
                self._rotate()
            self._day = made_at()[:10]
            line = json.dumps({"previous": self._last, "what": what, "at": made_at()} | about, ensure_ascii=False)
            data = line.encode() + b"\n"
            try:
                self._file.write(data)
                self._file.flush()
            except (OSError, ValueError) as error:
                raise LogError(f"{self._path}: cannot be written ({error}). Make room on its disk.") from error
            self._size += len(data)
            self._last = line_digest(data)
            return self._last

    def close(self, rotate: bool = False) -> None:
        """Ends the writing; `rotate` closes and signs the file, too."""
        with self._writing:
            if rotate and self._size:
                self._rotate()
            os.fsync(self._file.fileno())
            self._file.close()
            self._lock.close()

    def _rotate(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        if self._key:
            sign_file(self._path, self._key)
        self._path = self.folder / f"{int(self._path.stem) + 1:06d}.jsonl"
        self._file, self._size = self._path.open("ab"), 0
        sync(self.folder)

    def _hold(self) -> None:
        """Two servers that write one chain would break it."""
        self._lock, busy = ExitStack(), f"{self.folder}: another server writes this log. Give each its own folder."
        try:
            self._lock.enter_context(hold(self.folder / "lock", busy))
        except InputError as error:
            raise LogError(str(error)) from None


def log_files(folder: Path) -> list[Path]:
    """The files of a log in their order; raises `LogError` where one is missing."""
    files = sorted(folder.glob("[0-9]*.jsonl"))
    for number, path in enumerate(files, 1):
        if path.name != f"{number:06d}.jsonl":
            raise LogError(f"{folder}: expected {number:06d}.jsonl, found {path.name}. A file of the log is missing.")
    return files


def read_log(folder: Path, public: Path | None = None) -> Iterator[tuple[str, Line]]:
    """Every line with its sha256; raises `LogError` where the chain is broken or a closed file's signature is not good.

    Args:
        folder: of the log.
        public: the server's public key in PEM; None checks the chain alone.
    """
    previous, files = START, log_files(folder)
    if not files:
        raise LogError(f"{folder}: no log there. Expected files such as 000001.jsonl.")
    for path in files:
        if public and path != files[-1]:
            check_signature(path, public)
        with path.open("rb") as file:
            for number, data in enumerate(file, 1):
                try:
                    line = parse_json(data.decode())
                    broken = not data.endswith(b"\n") or line["previous"] != previous
                except (ValueError, TypeError, KeyError):
                    broken = True
                if broken:
                    raise LogError(f"{path}:{number}: the chain is broken here. The log was changed or cut.")
                previous = line_digest(data)
                yield previous, line


def line_digest(data: bytes) -> str:
    return hashlib.sha256(data.rstrip(b"\n")).hexdigest()


def signature_of(path: Path) -> Path:
    return path.with_name(path.name + ".sig")


def statement(path: Path, sha256: str) -> bytes:
    """The bytes that are signed: a title, which no other use of the key shares, and the file's name and sha256."""
    return f"flexo serving log, version 1\n{path.name} sha256 {sha256}\n".encode("ascii")


def sign_file(path: Path, key: Ed25519PrivateKey) -> None:
    """Writes the signature beside a file of a log."""
    sha256 = sha256_file(path)
    content = {
        "format": FORMAT,
        "version": 1,
        "file": sha256,
        "key": fingerprint_of(key.public_key()),
        "signature": base64.b64encode(key.sign(statement(path, sha256))).decode("ascii"),
    }
    with new_file(signature_of(path), replace=True) as partial:
        partial.write_text(json.dumps(content, indent=2) + "\n", encoding="ascii")


def check_signature(path: Path, public: Path) -> None:
    """Raises `LogError` unless a file of a log was signed with the key whose public half is given."""
    from cryptography.exceptions import InvalidSignature

    try:
        content: Mapping[str, Any] = parse_json(signature_of(path).read_text(encoding="ascii"))
        signature = base64.b64decode(content["signature"])
        read_public_key(public).verify(signature, statement(path, sha256_file(path)))
    except (OSError, ValueError, KeyError, TypeError, InvalidSignature) as error:
        raise LogError(
            f"{signature_of(path)}: not this file's signature by {public} ({type(error).__name__}). Ask for both again."
        ) from None


def _tail(files: list[Path]) -> tuple[str, int]:
    """The sha256 of the last whole line, and how many bytes behind it are torn; the last file's chain is checked."""
    last, torn = START, 0
    for path in reversed(files):
        for data in path.open("rb"):
            if data.endswith(b"\n"):
                last = line_digest(data)
            else:
                torn = len(data)
        if last != START:
            break
    return last, torn
