"""Which files a place has: those that are read, each with its format, and those that are not, each with the reason.

A folder is read with all that is below it, behind links too. Tables are read where there are any, and text files
beside them are their description; a folder of text files is read as documents. What is hidden is left alone.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

from flexmix.documents.formats import FORMATS, json_lines, json_records, plain_text
from flexmix.documents.formats.format import Format, Head, encoding_of, size_of
from flexmix.documents.formats.unpacking import HEAD, ZIP, BrokenContentError, Stored, archive
from flexmix.documents.formats.unreadable import UNKNOWN, Unreadable, judge, judge_archive
from flexmix.documents.source import HUB, Source
from flexmix.documents.source.columns import text_column
from flexo.errors import InputError

DATA = tuple(
    suffix for form in FORMATS if form is not plain_text.FORMAT for suffix in form.suffixes if suffix != ".json"
)
PARTITION = re.compile(r"(\w[\w.-]*)=(.*)")
NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
HIDDEN_IN_ZIP = "__MACOSX"
SEEN = 20  # lines that are looked at
NAMED = 20  # files that are named one by one
SHOWN = 6  # files in a message


class NotRead(NamedTuple):
    """A file that is not read."""

    file: str
    why: str


class Readable(NamedTuple):
    """A file that is read."""

    stored: Stored
    format: Format
    columns: dict[str, str | None]  # that the names of its folders add


class Found(NamedTuple):
    """The files of a place."""

    read: list[Readable]
    not_read: list[NotRead]


def find_files(source: Source) -> Found:
    """The files of a place on this machine, in the order of their names.

    Raises:
        InputError: there is no such place or nothing in it that can be read, or a file that stands for documents is
            something else.
    """
    place = Path(source.place)
    if not place.exists():
        raise InputError(f"{place}: {_missing(place, source.place)}")
    encoding_of(b"", source.encoding)  # refused once, and not for each file
    not_read: list[NotRead] = []
    paths = _walk(place, not_read) if place.is_dir() else [place]
    text: list[Readable] = []
    tables: list[Readable] = []
    for stored in _with_members(paths, place, not_read):
        head, named = read_head(stored, source), stored == Stored(place)
        found = _recognised(head, source)
        if found is plain_text.FORMAT and (named or head.suffix in plain_text.SUFFIXES):
            text.append(Readable(stored, plain_text.FORMAT, _partition(stored.path, place)))
        elif isinstance(found, Format) and found is not plain_text.FORMAT:
            tables.append(Readable(stored, found, _partition(stored.path, place)))
        elif isinstance(found, Unreadable) and (found.data or named or head.suffix in DATA):
            raise InputError(f"{stored}: {found.name}. {found.remedy}")
        else:
            not_read.append(NotRead(str(stored), _why(found)))
    read = _documents(tables, text, source, not_read)
    if not read:
        raise InputError(f"{place}: {_nothing(not_read)}")
    return Found(read, sorted(not_read))


def named(not_read: list[NotRead]) -> list[str]:
    """What is said of files that are not read: their number, and the first of them by name."""
    if not not_read:
        return []
    lines = [f"not read: {len(not_read):,} files or folders"]
    for file, why in not_read[:NAMED]:
        lines.append(f"  {file.encode('utf-8', 'backslashreplace').decode()} ({why})")
    return [*lines, f"  and {len(not_read) - NAMED:,} more"] if len(not_read) > NAMED else lines


def _missing(place: Path, given: str) -> str:
    if place.is_symlink():
        return f"a link to {place.readlink()}, which is not there. Copy what it points to."
    hint = ""
    if given.count("/") == 1 and not given.startswith((".", "/")):
        hint = f" If it is a dataset on the hub, write {HUB}{given}."
    return f"no such file or folder.{hint}"


def _walk(place: Path, not_read: list[NotRead]) -> list[Path]:
    """All files below a folder, each real folder once, sorted by name; links are followed after all that is no link."""
    files: list[Path] = []
    seen = {_identity(place)}
    links: list[Path] = []
    folders = [place]
    while folders or links:
        if folders:
            folder = folders.pop()
        else:
            folder = links.pop(0)
            if _identity(folder) in seen:
                not_read.append(NotRead(f"{folder}/", f"a link to {folder.readlink()}, which is read already"))
                continue
            seen.add(_identity(folder))
        new: list[Path] = []
        for path in sorted(folder.iterdir()):
            if path.name.startswith("."):
                not_read.append(NotRead(f"{path}/" if path.is_dir() else str(path), "hidden"))
            elif path.is_dir():
                if path.is_symlink():
                    new.append(path)
                elif _identity(path) in seen:
                    not_read.append(NotRead(f"{path}/", "read already, by another path"))
                else:
                    seen.add(_identity(path))
                    folders.append(path)
            elif path.is_file():
                files.append(path)
            else:
                not_read.append(NotRead(str(path), _no_file(path)))
        links = sorted([*links, *new])
    return sorted(files, key=lambda path: path.relative_to(place).as_posix())


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _no_file(path: Path) -> str:
    if path.is_symlink():
        return f"a link to {path.readlink()}, which is not there"
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(path.lstat().st_mode), "no file")


def _with_members(paths: list[Path], place: Path, not_read: list[NotRead]) -> Iterator[Stored]:
    """Every file, and the files in every zip archive in the archive's place."""
    for path in paths:
        with path.open("rb") as file:
            if not file.read(4).startswith(ZIP):
                yield Stored(path)
                continue
        names = [info.filename for info in archive(path).infolist() if not info.is_dir()]
        if (found := judge_archive(names)) is not None:
            if path == place:
                raise InputError(f"{path}: {found.name}. {found.remedy}")
            not_read.append(NotRead(str(path), _why(found)))
            continue
        for name in sorted(names):
            if any(part.startswith(".") or part == HIDDEN_IN_ZIP for part in name.split("/")):
                not_read.append(NotRead(f"{path}/{name}", "hidden"))
            else:
                yield Stored(path, name)


def read_head(stored: Stored, source: Source) -> Head:
    """The beginning of a file; raises `InputError` if nothing of it can be unpacked."""
    try:
        with stored.open() as content:
            data, packed = content.head, content.packed
            try:
                content.stream.read(len(data))
                whole = len(data) < HEAD and not content.stream.read(1)
            except BrokenContentError:  # behind the beginning: told when it is read, with how far
                whole = False
    except BrokenContentError as error:
        raise InputError(error.said(str(stored), "at the beginning", size_of(stored))) from None
    return Head(stored.name, data, packed, source.encoding, whole)


def _recognised(head: Head, source: Source) -> Format | Unreadable | None:
    """The format of a file, or what else it is; None for an empty file whose name does not say what it would be."""
    by_name = next((form for form in FORMATS if head.suffix in form.suffixes), None)
    if not head.data or (head.is_text and not head.text.strip()):
        return by_name
    tables = (form for form in FORMATS if form is not plain_text.FORMAT and form.recognise(head, source))
    if (found := judge(head, source) or next(tables, None)) is not None:
        return found
    if by_name in (None, plain_text.FORMAT) or not head.is_text:
        return plain_text.FORMAT if head.is_text else UNKNOWN
    if by_name is json_lines.FORMAT and _some_json(head):
        return by_name
    if by_name is json_records.FORMAT and head.text.lstrip().startswith(("{", "[")):
        return by_name  # whose reader says where it is broken
    return Unreadable(
        f"plain text, and not {by_name.name if by_name else ''}",
        "Copy the file again; if it is one document, rename it to end in .txt.",
        True,
    )


def _some_json(head: Head) -> bool:
    """Whether one of the first lines looks like JSON, so that the others are damaged lines rather than text."""
    return any(line.lstrip().startswith(("{", "[", '"')) for line in head.text.split("\n")[:SEEN])


def _documents(tables: list[Readable], text: list[Readable], source: Source, not_read: list[NotRead]) -> list[Readable]:
    """Of the files of a folder those that hold its documents; the others are added to `not_read`."""
    if not (tables and text):
        return tables or text
    if any(_has_text(one, source) for one in tables):
        not_read += [NotRead(str(one.stored), "text beside data, which it describes") for one in text]
        return tables
    why = f"{{}} without the column {source.text!r}, beside text"
    not_read += [NotRead(str(one.stored), why.format(one.format.name)) for one in tables]
    return text


def _has_text(one: Readable, source: Source) -> bool:
    names = one.format.columns(one.stored, read_head(one.stored, source), source)
    return text_column(names, source).partition(".")[0] in names


def _why(found: Format | Unreadable | None) -> str:
    if found is None:
        return "empty"
    if isinstance(found, Unreadable):
        return f"{found.name}"
    return f"plain text; in a folder documents are {', '.join(plain_text.SUFFIXES)} alone; name it to read it"


def _nothing(not_read: list[NotRead]) -> str:
    names = [f"{Path(one.file).name} ({one.why})" for one in not_read]
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return (
        f"no text in a form that can be read (found {', '.join(names[:SHOWN]) or 'nothing'}{more}). Expected "
        "JSON lines, JSON, CSV, Parquet, Arrow or text files, plain or packed, or a folder of such files."
    )


def _partition(path: Path, place: Path) -> dict[str, str | None]:
    """Columns that folder names hold, as in `year=2024/lang=en`: those below the place, and its own last ones."""
    inside = path.relative_to(place).parts[:-1] if path != place else ()
    own = (place if path != place else place.parent).parts
    last = len(own)
    while last and PARTITION.fullmatch(own[last - 1]):
        last -= 1
    found: dict[str, str | None] = {}
    for part in (*own[last:], *inside):
        if match := PARTITION.fullmatch(part):
            found[match[1]] = None if match[2] == NO_VALUE else unquote(match[2])
    return found
