"""Every kind of place makes files whole, exclusively where asked, goes on after interruptions, and reads in bounds."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import uuid
from pathlib import Path

import pytest

from federation.store import place as place_module
from federation.store.folder import FolderPlace
from federation.store.opening import open_place
from federation.store.place import NotThereError, Place, StoreError, watched
from federation.store.transfer import fetch, holds, send
from flexo.errors import InputError
from tests.federation.web import hostile, served


@pytest.fixture(params=["folder", "memory", "sftp", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "s3":
        return open_place(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")
    if request.param == "memory":
        return open_place(f"memory://{uuid.uuid4().hex}")
    if request.param == "sftp":
        return open_place(request.getfixturevalue("sftp") + str(tmp_path / "store"))
    return open_place(str(tmp_path / "store"))


def test_a_file_is_created_once(place: Place) -> None:
    assert place.create("metadata/1.root.json", b"one")
    assert not place.create("metadata/1.root.json", b"two")
    assert place.read("metadata/1.root.json", 10) == b"one"
    place.replace("metadata/1.root.json", b"three")
    assert place.read("metadata/1.root.json", 10) == b"three"
    assert place.names("metadata") == ["1.root.json"]
    assert place.size("metadata/1.root.json") == 5
    place.remove("metadata/1.root.json")
    place.remove("metadata/1.root.json")
    assert place.size("metadata/1.root.json") is None


def test_what_is_not_there_is_said(place: Place) -> None:
    with pytest.raises(NotThereError, match=r"no such file in this store"):
        place.read("metadata/1.root.json", 10)
    assert place.names("metadata") == []


def test_of_many_that_create_a_file_one_does(place: Place) -> None:
    made = []
    writers = [
        threading.Thread(target=lambda data=bytes([n]) * 9: made.append((place.create("x.json", data), data)))
        for n in range(8)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    ((_, data),) = [one for one in made if one[0]]
    assert place.read("x.json", 9) == data


def test_more_than_it_may_have_is_refused(place: Place) -> None:
    place.replace("big.json", bytes(5000))
    with pytest.raises(StoreError, match=r"more than the 4999 bytes that it may have"):
        place.read("big.json", 4999)


def test_a_large_file_goes_there_and_back(place: Place, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(9_000_001))
    sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
    assert not holds(place, "targets/x/y.pt", 9_000_001, sha256)
    assert send(place, "this", source, lambda found: f"targets/x/{found[:1]}.pt") == sha256
    place.move(f"targets/x/{sha256[:1]}.pt", "targets/x/y.pt")
    assert holds(place, "targets/x/y.pt", 9_000_001, sha256)
    assert place.names("incoming") == []
    with pytest.raises(NotThereError):
        place.move("targets/x/z.pt", "targets/x/y.pt")
    moved: list[float] = []
    fetch(place, "targets/x/y.pt", target, 9_000_001, sha256, moved.append)
    assert target.read_bytes() == source.read_bytes()
    assert sum(moved) == 9_000_001
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith(".")) == []


def test_a_file_that_was_exchanged_on_the_store_is_sent_again(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"right")
    sha256 = hashlib.sha256(b"right").hexdigest()
    place.replace("targets/y.pt", b"wrong")
    assert not holds(place, "targets/y.pt", 5, sha256)
    send(place, "this", source, lambda _sha256: "targets/y.pt")
    assert place.read("targets/y.pt", 5) == b"right"


def test_a_check_that_fails_ends_the_upload_and_leaves_nothing(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(9_000_000))

    def refuse() -> None:
        raise InputError("bad values")

    with pytest.raises(InputError, match="bad values"):
        send(place, "this", source, lambda _sha256: "targets/y.pt", refuse)
    assert place.names("incoming") == [] and place.names("targets") == []


def test_a_file_that_changes_while_it_is_sent_is_not_believed(place: Place, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(bytes(1000))
    with pytest.raises(InputError, match="was written to while it was sent"):
        send(place, "this", source, lambda _sha256: "targets/y.pt", lambda: os.utime(source, (1, 1)))
    assert place.names("incoming") == [] and place.names("targets") == []


@pytest.mark.parametrize("kind", ["folder", "sftp"])
def test_an_upload_goes_on_where_it_was_interrupted(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    root = tmp_path / "store"
    place = open_place((request.getfixturevalue("sftp") if kind == "sftp" else "") + str(root))
    source, data = tmp_path / "source", os.urandom(20_000_000)
    source.write_bytes(data)
    root.mkdir()
    for before in (data[:17_000_000], b"rubbish" * 2_000_000, data + b"more"):
        (root / "y.pt").write_bytes(before)
        seen: list[float] = []
        place.upload("y.pt", source, seen.append)
        assert (root / "y.pt").read_bytes() == data
        assert sum(seen) >= len(data) - 1
        (root / "y.pt").unlink()
    assert list(root.iterdir()) == []


def test_a_fetch_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "y.pt").write_bytes(data)
    sha256 = hashlib.sha256(data).hexdigest()
    target = tmp_path / "there" / "y.pt"
    target.parent.mkdir()
    with served(tmp_path) as url:  # this server knows no ranges, and sends all of it again
        for place in (open_place(url), FolderPlace(tmp_path)):
            (target.parent / ".y.pt.partial").write_bytes(data[:1_234_567])
            fetch(place, "y.pt", target, len(data), sha256)
            assert target.read_bytes() == data
        (target.parent / ".y.pt.partial").write_bytes(b"x" * 1_234_567)
        with pytest.raises(StoreError, match=r"exchanged or damaged on the store"):
            fetch(place, "y.pt", target, len(data), sha256)
        assert not (target.parent / ".y.pt.partial").exists(), "what is wrong is not kept"
        fetch(place, "y.pt", target, len(data), sha256)


def test_a_web_address_is_read_only(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    with served(tmp_path) as url:
        place = open_place(url)
        assert place.read("x.json", 10) == b"{}"
        assert place.size("x.json") == 2
        assert place.size("y.json") is None
        assert place.names("metadata") is None
        with pytest.raises(NotThereError):
            place.read("y.json", 10)
        with pytest.raises(StoreError, match=r"can only be read.*--write sftp://"):
            place.create("y.json", b"")
    with pytest.raises(StoreError, match=r"cannot be fetched"):
        place.read("x.json", 10)


def test_a_server_that_never_ends_is_left(tmp_path: Path) -> None:
    with hostile(tmp_path, endless="x.json") as url, pytest.raises(StoreError, match=r"more than the 1000000 bytes"):
        open_place(url).read("x.json", 1_000_000)


def test_a_server_that_drips_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_module, "WINDOW", 0.3)
    with hostile(tmp_path, slow="x.json") as url, pytest.raises(StoreError, match=r"expected 2 kB/s or more"):
        open_place(url).read("x.json", 1_000_000)


def test_a_small_file_has_an_end_in_time() -> None:
    with pytest.raises(StoreError, match=r"not complete after 0 seconds"):
        list(watched(iter([b"x"] * 9), "x", 100, seconds=1e-9))


def test_a_pipe_in_a_store_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(StoreError, match=r"not a plain file"):
        open_place(str(tmp_path)).read("x.json", 10)


def test_a_link_in_the_way_of_an_upload_is_not_followed(tmp_path: Path) -> None:
    """Whoever may write to a store could else have other writers' own files overwritten."""
    source, mine = tmp_path / "source", tmp_path / "mine"
    source.write_bytes(b"an expert")
    mine.write_bytes(b"precious")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "y.pt").symlink_to(mine)
    with pytest.raises(StoreError, match=r"cannot be written \(Too many levels of symbolic links\)"):
        FolderPlace(tmp_path / "store").upload("y.pt", source, lambda _amount: None)
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize("kind", ["folder", "sftp"])
def test_a_full_disk_keeps_what_was_whole(
    kind: str, small_disk: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = open_place((request.getfixturevalue("sftp") if kind == "sftp" else "") + str(small_disk))
    assert place.create("metadata/1.root.json", bytes(1000))
    source = tmp_path / "source"
    source.write_bytes(bytes(100_000))
    for write in (
        lambda: place.create("metadata/2.root.json", bytes(100_000)),
        lambda: place.replace("metadata/1.root.json", bytes(100_000)),
        lambda: place.upload("incoming/y.pt", source, lambda _amount: None),
    ):
        with pytest.raises(InputError, match=r"disk"):
            write()
        place.remove("incoming/y.pt")
    assert place.names("metadata") == ["1.root.json"]
    assert place.read("metadata/1.root.json", 1000) == bytes(1000)


def test_a_fetch_to_a_full_disk_keeps_what_arrived(small_disk: Path, tmp_path: Path) -> None:
    data = os.urandom(100_000)
    (tmp_path / "y.pt").write_bytes(data)
    with pytest.raises(InputError, match=r"the disk is full. What has arrived is kept"):
        fetch(FolderPlace(tmp_path), "y.pt", small_disk / "y.pt", len(data), hashlib.sha256(data).hexdigest())
    (kept,) = small_disk.iterdir()
    assert kept.name == ".y.pt.partial" and data.startswith(kept.read_bytes()) and kept.stat().st_size


@pytest.mark.parametrize("refusal", [PermissionError("Access Denied"), RuntimeError("Unable to locate credentials")])
def test_a_cloud_that_refuses_is_said_in_a_sentence(refusal: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec.implementations.memory as memory

    place = open_place(f"memory://{uuid.uuid4().hex}")
    place.replace("x.json", b"{}")

    def refuse(*_about: object, **_more: object) -> None:
        raise refusal

    for name in ("ls", "info", "rm_file", "pipe_file"):
        monkeypatch.setattr(memory.MemoryFileSystem, name, refuse)
    for ask in (
        lambda: place.names("metadata"), lambda: place.size("x.json"), lambda: place.remove("x.json"),
        lambda: place.create("y.json", b""), lambda: place.replace("y.json", b""),
    ):  # fmt: skip
        with pytest.raises(StoreError, match=rf"the store refuses \({refusal}\)"):
            ask()


def test_a_file_that_is_replaced_while_it_is_opened_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 refuses to read on in a file that has been replaced since."""
    import fsspec.implementations.memory as memory

    place = open_place(f"memory://{uuid.uuid4().hex}")
    place.replace("x.json", b"new")
    read, refusals = memory.MemoryFile.read, [OSError(errno.EBUSY, "no longer exists")]

    def replaced(self: memory.MemoryFile, size: int = -1) -> bytes:
        if refusals:
            raise refusals.pop()
        return bytes(read(self, size))

    monkeypatch.setattr(memory.MemoryFile, "read", replaced, raising=False)
    assert place.read("x.json", 100) == b"new"
    refusals += [OSError(errno.EBUSY, "no longer exists")] * 100
    with pytest.raises(StoreError, match="no longer exists"):
        place.read("x.json", 100)


def test_another_kind_of_store_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no such kind of store here"):
        open_place("nowhere://bucket/x")


def test_a_server_that_cannot_keep_what_it_took_is_said(
    sftp: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may turn out to be full when a file is synced, not when it is written."""
    import asyncssh

    async def full(_file: object) -> None:
        raise asyncssh.SFTPFailure("no space left")

    place = open_place(sftp + str(tmp_path / "store"))
    monkeypatch.setattr(asyncssh.SFTPClientFile, "fsync", full)
    with pytest.raises(StoreError, match=r"the server refuses \(no space left\)"):
        place.replace("x.json", b"{}")
    assert place.names("") == []
