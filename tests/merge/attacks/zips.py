"""Attacks with the zip around the pickle: bombs, repeated and hidden entries, truncated and displaced storages."""

from __future__ import annotations

import struct
import warnings
import zipfile
from pathlib import Path

from tests.merge.attacks.attack import Attack, Forge
from tests.merge.tools import rewrite_zip

GB = 1 << 30
END_64, LOCATOR, END = b"PK\x06\x06", b"PK\x06\x07", b"PK\x05\x06"


def _bomb(f: Forge, path: Path) -> None:
    rewrite_zip(f.good, path, lambda n, d: bytes(200_000_000) if n == "data.pkl" else d, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1_000_000


def _other(f: Forge, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


def _twice(f: Forge, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rewrite_zip(f.good, path, extra={"archive/data/0": b"x"})


def _comment(f: Forge, path: Path) -> None:
    with zipfile.ZipFile(rewrite_zip(f.good, path), "a") as archive:
        archive.comment = b"private"


def _long_list(f: Forge, path: Path, long: bool) -> None:
    """A list of entries of 1 GB: a sparse file, which a reader would take into memory whole."""
    with path.open("wb") as file:
        file.write(b"PK\x03\x04")
        file.seek(GB)
        if long:
            file.write(END_64 + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 1, 1, GB - 4, 4))
            file.write(LOCATOR + struct.pack("<IQI", 0, GB, 1))
        file.write(END + struct.pack("<HHHHIIH", 0, 0, 1, 1, 0xFFFFFFFF if long else GB - 4, 4, 0))


def _claims(f: Forge, path: Path) -> None:
    """A small entry that is said to come from 4 GB of the file, for which a reader would make room."""
    data = bytearray(f.good.read_bytes())
    entry = data.index(b"archive/byteorder", data.index(b"PK\x01\x02")) - 46
    data[entry + 20 : entry + 24] = b"\xf0\xff\xff\xff"
    path.write_bytes(data)


def _encrypted(f: Forge, path: Path) -> None:
    data = bytearray(f.good.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)


def _local(f: Forge, path: Path, at: int, value: int) -> None:
    """The local header of a storage says something else than the list of entries does."""
    data = bytearray(f.good.read_bytes())
    start = data.index(b"archive/data/3") - 30
    data[start + at : start + at + 2] = value.to_bytes(2, "little")
    path.write_bytes(data)


def _overlap(f: Forge, path: Path) -> None:
    """Two entries of the list are the same bytes of the file."""
    data = bytearray(f.good.read_bytes())
    lists = data.index(b"PK\x01\x02")
    first, second = (data.index(b"archive/data/" + n, lists) - 46 for n in (b"2", b"6"))
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    path.write_bytes(data)


ATTACKS = [
    Attack("a bomb of zeros", "a compressed zip", _bomb),
    Attack(
        "compressed entries", "a compressed zip", lambda f, p: rewrite_zip(f.good, p, compression=zipfile.ZIP_DEFLATED)
    ),
    Attack("an entry that claims 4 GB", "a compressed zip", _claims),
    Attack("a list of entries of 1 GB", "lists its entries in 1073741820 bytes", lambda f, p: _long_list(f, p, False)),
    Attack("the same in a long zip", "lists its entries in 1073741820 bytes", lambda f, p: _long_list(f, p, True)),
    Attack("no pickle", "a zip with 0 entries named data.pkl", _other),
    Attack("nothing in it", "neither a PyTorch zip", lambda f, p: zipfile.ZipFile(p, "w").close()),
    Attack("two pickles", "2 entries named data.pkl", lambda f, p: rewrite_zip(f.good, p, extra={"b/data.pkl": b""})),
    Attack("an entry twice", "a repeated entry", _twice),
    Attack(
        "an entry more", "bytes, expected", lambda f, p: rewrite_zip(f.good, p, extra={"archive/note": bytes(100_000)})
    ),
    Attack(
        "an entry with a path",
        "bytes, expected",
        lambda f, p: rewrite_zip(f.good, p, extra={"../../escaped": bytes(100_000)}),
    ),
    Attack("a comment", "something after its end", _comment),
    Attack(
        "bytes after its end", "something after its end", lambda f, p: p.write_bytes(f.good.read_bytes() + bytes(9))
    ),
    Attack(
        "a pickle of 40 MB",
        "MB beside the tensors",
        lambda f, p: rewrite_zip(f.good, p, lambda n, d: d + bytes(40_000_000) if n == "data.pkl" else d),
    ),
    Attack(
        "a truncated storage",
        "should own exactly its 128",
        lambda f, p: rewrite_zip(f.good, p, lambda n, d: d[:-4] if n == "data/3" else d),
    ),
    Attack("a missing storage", "a damaged|no values in the zip|own exactly", lambda f, p: _local(f, p, 0, 0)),
    Attack("a storage that is displaced", "does not match the sha256|damaged", lambda f, p: _local(f, p, 28, 4)),
    Attack("storages that overlap", "share their bytes|own exactly|does not match", _overlap),
    Attack("an encrypted entry", "damaged or cut-off zip", _encrypted),
    Attack(
        "big-endian values",
        "big-endian",
        lambda f, p: rewrite_zip(f.good, p, lambda n, d: b"big" if n == "byteorder" else d),
    ),
]
