"""What is found in place of documents and cannot be read: what it is, and what to do about it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from flexmix.documents.formats.format import Head
from flexmix.documents.formats.json_text import kind_of
from flexmix.documents.source import Source

LFS = re.compile(rb"version https://git-lfs\.github\.com/spec/v\d+\s.*?size (\d+)", re.S)
HTML = re.compile(r"\s*(?:<\?xml[^>]*\?>\s*)?(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html[\s>])", re.I | re.S)
XML = re.compile(r"\s*<\?xml\s")
TO_TEXT = "Turn it into text first, and give the text."
UNPACK = "Unpack it first, and name what comes out."
AS_TABLE = "Export it as CSV, Parquet or JSON lines first."


@dataclass(frozen=True)
class Unreadable:
    """A kind of file that holds no documents in a form that can be read."""

    name: str
    remedy: str
    data: bool = False  # whether it stands for documents whatever it is called, and so may not be left out of a folder


Test = Callable[[bytes], bool]


def _begins(*magic: bytes) -> Test:
    return lambda data: data.startswith(magic)


def _has(magic: bytes, at: int) -> Test:
    return lambda data: data[at : at + len(magic)] == magic


BY_BYTES: tuple[tuple[Test, str, str], ...] = (
    (_begins(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"), "a document of an old Microsoft Office", TO_TEXT),
    (_begins(b"AT&TFORM"), "a DjVu document", TO_TEXT),
    (_begins(b"BOOKMOBI"), "an e-book", TO_TEXT),
    (_begins(b"SQLite format 3\0"), "a SQLite database", AS_TABLE),
    (_begins(b"\x89HDF\r\n\x1a\n"), "an HDF5 file", AS_TABLE),
    (_begins(b"ORC"), "an ORC table", AS_TABLE),
    (_begins(b"Obj\x01"), "an Avro file", AS_TABLE),
    (_begins(b"PARE"), "an encrypted Parquet file", "Decrypt it first."),
    (_begins(b"FEA1"), "a Feather file of version 1", AS_TABLE),
    (_begins(b"\x93NUMPY"), "a numpy array", AS_TABLE),
    (_begins(*(b"\x80" + bytes([n]) for n in range(2, 6))), "a Python pickle", AS_TABLE),
    (_has(b"ustar", 257), "a tar archive", UNPACK),
    (_begins(b"7z\xbc\xaf\x27\x1c"), "a 7z archive", UNPACK),
    (_begins(b"Rar!\x1a\x07"), "a RAR archive", UNPACK),
    (_begins(b"\x04\x22\x4d\x18"), "an lz4 file", UNPACK),
    (_begins(b"\x1f\x9d"), "a file of compress (.Z)", UNPACK),
    (_begins(b"\xff\x06\x00\x00sNaPpY"), "a snappy file", UNPACK),
    (_begins(b"\x5d\x00\x00"), "an old LZMA file", UNPACK),
    (_begins(b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"II*\0", b"MM\0*", b"BM"), "a picture", TO_TEXT),
    (_begins(b"ID3", b"OggS", b"fLaC", b"RIFF"), "a recording", TO_TEXT),
    (_has(b"ftyp", 4), "a recording", TO_TEXT),
    (_begins(b"\x7fELF", b"MZ\x90\0", b"\xca\xfe\xba\xbe"), "a program", "Give files with text."),
)
LIKE_TEXT: tuple[tuple[Test, str, str], ...] = (  # which begin like text and go on in other ways
    (_begins(b"%PDF"), "a PDF document", TO_TEXT),
    (_begins(b"%!PS"), "a PostScript document", TO_TEXT),
    (_begins(b"{\\rtf"), "a document in Rich Text Format", TO_TEXT),
    (_begins(b"-----BEGIN PGP MESSAGE", b"age-encryption.org", b"Salted__"), "an encrypted file", "Decrypt it first."),
)
IN_ZIP: tuple[tuple[str, str, str], ...] = (  # the beginning of a member's name
    ("word/", "a Word document", TO_TEXT),
    ("xl/", "an Excel workbook", "Save its sheet as CSV first."),
    ("ppt/", "a PowerPoint presentation", TO_TEXT),
    ("META-INF/container.xml", "an EPUB book", TO_TEXT),
    ("mimetype", "a document of LibreOffice or its like", TO_TEXT),
    ("META-INF/MANIFEST.MF", "a Java archive", "Give files with text."),
)


def judge(head: Head, source: Source) -> Unreadable | None:
    """What a file is whose content is known and is no text to train on; None for anything else."""
    data = head.data
    for test, name, remedy in LIKE_TEXT if head.is_text else (*LIKE_TEXT, *BY_BYTES):
        if test(data):
            return Unreadable(name, remedy)
    if data and not data.strip(b"\0"):
        return Unreadable(
            "zero bytes and nothing else, as a copy that was interrupted leaves them", "Copy the file again.", True
        )
    if match := LFS.match(data):
        return Unreadable(
            f"a Git LFS pointer to a file of {int(match[1]):,} bytes, not the file itself",
            "Fetch it with git lfs pull, or copy it from where it is.",
            True,
        )
    if len(data) < 1024 and b"/annex/objects/" in data and not data.startswith(b"{"):
        return Unreadable("a git-annex pointer, not the file itself", "Fetch it with git annex get.", True)
    if HTML.match(head.text):
        return Unreadable(
            "an HTML page, perhaps of a login or an error in place of a download",
            "Download the file again, or turn the page into text.",
        )
    if XML.match(head.text):
        return Unreadable("an XML file, perhaps an error in place of a download", TO_TEXT)
    return _json(head, source)


UNKNOWN = Unreadable("of a kind that is not known here", "Turn it into text or a table first.")


def judge_archive(names: list[str]) -> Unreadable | None:
    """What a zip archive with these members is, if not an archive of files."""
    for beginning, name, remedy in IN_ZIP:
        if any(member.startswith(beginning) for member in names):
            return Unreadable(name, remedy)
    if any(name.endswith("/data.pkl") for name in names):
        return Unreadable("a file of PyTorch", "Give files with text.")
    if names and all(name.endswith(".npy") for name in names):
        return Unreadable("numpy arrays", AS_TABLE)
    return None


def _json(head: Head, source: Source) -> Unreadable | None:
    kind = kind_of(head, source)
    if kind == "by columns":
        return Unreadable(
            "JSON by columns, as pandas writes it unless told otherwise",
            'Write it with frame.to_json(PATH, orient="records", lines=True).',
            True,
        )
    if kind == "record":
        return Unreadable(
            "JSON objects that are not one a line",
            "Write one object a line, for example with jq -c . FILE > lines.jsonl.",
            True,
        )
    if kind == "object":
        return Unreadable(
            f"a JSON object, and neither it nor the lists in it have the column {source.text!r}",
            "Name the column that holds the text with --text.",
        )
    return None
