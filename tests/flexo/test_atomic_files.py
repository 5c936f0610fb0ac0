from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from flexo.atomic_files import LOCK, new_file, new_folder, partial_of, refuse_occupied, sha256_file
from flexo.errors import InputError
from tests.merge.tools import listing

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "inside"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    "target", ["model", "model/", "./model", "new/deep/model", "../inside/model", "{absolute}/model"]
)
def test_a_folder_appears_whole_wherever_it_is_named(inside: Path, target: str) -> None:
    path = Path(target.format(absolute=inside))
    with new_folder(path) as partial:
        assert partial.is_dir() and not path.exists()
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_text("a")
    assert (path / "sub" / "a").read_text() == "a"
    assert listing(path.resolve().parent) == {"model"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_nothing_stays_after_an_exception_not_even_new_parents(inside: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(Path("new/deep/model")) as partial:
        (partial / "a").write_text("a")
        raise error
    with pytest.raises(error), new_file(Path("new/deep/file")) as partial:
        partial.write_text("a")
        raise error
    assert listing(inside) == set()


def test_an_empty_folder_is_taken_over_and_keeps_the_link_to_it(inside: Path) -> None:
    Path("real").mkdir()
    Path("link").symlink_to("real")
    with new_folder(Path("link")) as partial:
        (partial / "a").write_text("a")
    assert Path("link").is_symlink() and Path("real/a").read_text() == "a" and listing(inside) == {"link", "real"}


def test_what_appears_meanwhile_is_not_overwritten(inside: Path) -> None:
    with pytest.raises(InputError, match="model: cannot be written"), new_folder(Path("model")):
        Path("model").mkdir()
        Path("model/theirs").write_text("theirs")
    assert listing(inside) == {"model"} and Path("model/theirs").read_text() == "theirs"


def test_occupied_outputs_are_refused(inside: Path) -> None:
    Path("full").mkdir()
    Path("full/a").write_text("a")
    with pytest.raises(InputError, match="full: this folder is not empty"):
        refuse_occupied(Path("full"))
    with pytest.raises(InputError, match="a file stands where"):
        refuse_occupied(Path("full/a"))
    for new in (new_folder, new_file):
        with pytest.raises(InputError, match=r"cannot be written .File exists, at .*full/a\)"), new(Path("full/a/b")):
            raise AssertionError("never begun")
    with pytest.raises(InputError, match="exists already"), new_file(Path("full/a")):
        pass
    with pytest.raises(InputError, match="a folder stands where"), new_file(Path("full"), replace=True):
        pass
    assert listing(inside) == {"full"} and listing(inside / "full") == {"a"}


@pytest.mark.parametrize("target", [".", "", "/", "..", "/proc"])
def test_folders_that_nothing_can_be_renamed_to_are_refused(inside: Path, target: str) -> None:
    with pytest.raises(InputError), new_folder(Path(target)):
        raise AssertionError("never begun")


@pytest.mark.parametrize("target", ["/proc/new", "/proc/new/deep", "/proc/self/new"])
def test_a_place_where_nothing_can_be_made_is_refused_before_the_work(target: str) -> None:
    for new in (new_folder, new_file):
        with (
            pytest.raises(InputError, match=rf"{target}: cannot be written .No such file.* at /proc"),
            new(Path(target)),
        ):
            raise AssertionError("never begun")


def test_what_else_is_missing_is_no_refusal_of_the_output(inside: Path) -> None:
    with pytest.raises(FileNotFoundError), new_file(Path("file")):
        Path("source").read_bytes()
    assert listing(inside) == set()


def test_a_name_that_no_disk_takes_is_refused(inside: Path) -> None:
    for new in (new_folder, new_file):
        with pytest.raises(InputError, match=r"'a.x00b': a name with a zero byte"), new(Path("a\0b")):
            raise AssertionError("never begun")
    with pytest.raises(InputError, match="File name too long"), new_folder(Path("m" * 300)):
        pass
    with pytest.raises(InputError, match="File name too long"), new_file(Path("m" * 250)) as partial:
        partial.write_text("a")
    assert listing(inside) == set()


def test_a_file_is_replaced_only_on_request(inside: Path) -> None:
    for text, replace in [("one", False), ("two", True)]:
        with new_file(Path("file"), replace) as partial:
            partial.write_text(text)
    assert Path("file").read_text() == "two" and listing(inside) == {"file"}


def left_behind(partial: Path) -> Path:
    """What a process that was killed leaves of its work."""
    partial.mkdir()
    (partial / "a").write_text("a")
    partial.with_name(partial.name + LOCK).touch()
    return partial


def test_leftovers_of_dead_processes_go_and_others_stay(inside: Path) -> None:
    model, odd = Path("model"), Path("[m]odel")
    left_behind(partial_of(model)), left_behind(partial_of(model))
    partial_of(model).with_name(partial_of(model).name + LOCK).touch()  # killed before it began
    others = [left_behind(partial_of(Path("model2"))), left_behind(Path(".model.partial-another-host-5f3a91c2"))]
    left_odd = left_behind(partial_of(odd))
    stay = {name for path in others for name in (path.name, path.name + LOCK)}
    with new_folder(model) as partial:
        assert listing(inside) == {partial.name, partial.name + LOCK, left_odd.name, left_odd.name + LOCK, *stay}
    assert listing(inside) == {"model", left_odd.name, left_odd.name + LOCK, *stay}
    with new_file(odd) as partial:
        partial.write_text("a")
    assert listing(inside) == {"model", "[m]odel", *stay}


CONTAINER = """
import os, sys
from pathlib import Path
from flexo.atomic_files import new_folder
os.getpid = lambda: 2**22 + 1  # a number that means nothing to other containers
with new_folder(Path("model")) as partial:
    (partial / "theirs").write_text("theirs")
    print(flush=True)
    sys.stdin.read()
"""


def test_what_another_container_works_on_is_left_alone(inside: Path) -> None:
    """Containers of one host name, whose processes have numbers of their own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-c", CONTAINER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == b"\n"
        with new_file(Path("file")) as partial:
            partial.write_text("ours")
        with pytest.raises(ValueError), new_folder(Path("model")):
            raise ValueError
        other.communicate()
    assert other.returncode == 0 and listing(inside) == {"file", "model"}
    assert Path("model/theirs").read_text() == "theirs"


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_work_appears_whole_and_leftovers_stay(
    inside: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    left = left_behind(partial_of(Path("model")))

    def flock(_descriptor: int, _how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", flock)
    with new_folder(Path("model")) as partial:
        (partial / "a").write_text("a")
    assert listing(inside) == {"model", left.name, left.name + LOCK} and listing(Path("model")) == {"a"}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.EOPNOTSUPP, errno.EACCES])
def test_a_file_system_that_cannot_sync_folders_is_no_failure(
    inside: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fsync = os.fsync

    def files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", files_alone)
    with new_folder(Path("model")) as partial:
        (partial / "a").write_text("a")
    with new_file(Path("file")) as partial:
        partial.write_text("a")
    assert listing(inside) == {"model", "file"}


def test_a_disk_that_fails_is_a_refusal(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", broken)
    with (
        pytest.raises(InputError, match=r"file: cannot be written \(Input/output error"),
        new_file(Path("file")) as made,
    ):
        made.write_text("a")
    assert listing(inside) == set()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_a_refusal_that_leaves_nothing(inside: Path, code: int) -> None:
    with pytest.raises(InputError, match="model: the disk is full"), new_folder(Path("a/model")) as partial:
        (partial / "a").write_text("a")
        raise OSError(code, os.strerror(code))
    assert listing(inside) == set()


def test_errors_that_are_no_refusal_pass_unchanged(inside: Path) -> None:
    with pytest.raises(ConnectionResetError), new_folder(Path("model")):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert listing(inside) == set()


def test_a_disk_that_really_fills_up(small_disk: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"), new_folder(small_disk / "model") as partial:
        (partial / "a").write_bytes(bytes(100_000))
    assert listing(small_disk) == set()


def test_a_read_only_place_is_refused(small_disk: Path, tmp_path: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for new in (new_folder, new_file):
        with pytest.raises(InputError, match=r"cannot be written .Read-only file system"), new(small_disk / "a/model"):
            raise AssertionError("never begun")
    with pytest.raises(InputError, match="mount point"):
        refuse_occupied(small_disk)


def test_a_folder_without_permission_is_refused(locked: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written .Permission denied"), new_folder(locked / "model"):
        pass
    with pytest.raises(InputError, match=r"cannot be written .Permission denied"), new_file(locked / "a" / "file"):
        pass


def test_sha256_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_full_disk_is_recognised_behind_the_error_of_torch(inside: Path) -> None:
    with pytest.raises(InputError, match="the disk is full"), new_file(Path("file")) as partial:
        partial.write_text("half")
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 2895104 vs 2894992")
    with pytest.raises(RuntimeError, match="of our own"), new_file(Path("file")):
        raise RuntimeError("of our own")
    assert listing(inside) == set()
