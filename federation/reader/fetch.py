"""Fetching what is in force: the anchor, and experts, each verified against signed metadata on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tuf.api.metadata import TargetFile

from federation.roles.home import Home
from federation.roles.owners import Submission
from federation.roles.signed import ours, stored_as
from federation.roles.trust import State
from federation.store.place import Advance
from federation.store.transfer import fetch
from flexo.atomic_files import refuse_occupied, sha256_file
from flexo.errors import InputError
from merge.tensor_io.stored_tensor import combined_digest


def anchor_entry(state: State, following: bool = False) -> dict[str, Any]:
    """The anchor in force, or the `following` one; raises `InputError` if there is none."""
    anchors = ours(state.targets)["anchors"]
    if len(anchors) <= following:
        what = "a next anchor" if following else "an anchor"
        raise InputError(f"this federation has not {what} yet. The coordinator publishes it with publish-anchor.")
    return dict(anchors[int(following)])


def anchor_files(state: State, entry: dict[str, Any]) -> dict[str, TargetFile]:
    """The files of an anchor by their names in its folder."""
    start = f"{entry['where']}/"
    found = {path.removeprefix(start): one for path, one in state.targets.targets.items() if path.startswith(start)}
    if foreign := [name for name in found if any(part in ("", ".", "..") for part in name.split("/"))]:
        raise InputError(f"the anchor has a file {foreign[0][:80]!r}, which is no plain name. Tell the coordinator.")
    return found


def fetch_anchor(
    home: Home, state: State, output: Path, entry: dict[str, Any], advance: Advance = lambda _amount: None
) -> None:
    """Makes `output` the anchor, whole or not at all; what has arrived before an interruption is kept beside it.

    Raises `InputError` for an `output` that holds anything else than this anchor.
    """
    files = anchor_files(state, entry)
    if output.is_dir() and any(output.iterdir()):
        there = {path.relative_to(output).as_posix(): path for path in output.rglob("*") if path.is_file()}
        if there.keys() != files.keys() or not all(_is(path, files[name]) for name, path in there.items()):
            refuse_occupied(output)
        return
    incoming = output.with_name(f".{output.name}.incoming")
    for name, target in files.items():
        if _is(incoming / name, target):
            advance(target.length)
        else:
            fetch(home.place, stored_as(target), incoming / name, target.length, target.hashes["sha256"], advance)
    for path in [path for path in incoming.rglob("*") if path.is_file()]:
        if path.relative_to(incoming).as_posix() not in files:  # of another version of it
            path.unlink()
    incoming.rename(output)


def kept_anchor(home: Home, state: State, entry: dict[str, Any], advance: Advance = lambda _amount: None) -> Path:
    """The anchor in the home folder, fetched once for each version of it."""
    files = anchor_files(state, entry)
    version = combined_digest((name, target.hashes["sha256"]) for name, target in files.items())
    path = home.folder / "anchors" / version[:16]
    if not path.is_dir():  # a folder there is whole, and nobody else writes in a home
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch_anchor(home, state, path, entry, advance)
    return path


def fetch_expert(home: Home, one: Submission, advance: Advance = lambda _amount: None) -> Path:
    """An expert file, fetched once and kept in the home folder under its sha256."""
    path = home.folder / "experts" / one.sha256 / f"{one.header.domain}{Path(one.target.path).suffix}"
    if _is(path, one.target):
        advance(one.target.length)
        return path
    fetch(home.place, one.stored_as, path, one.target.length, one.sha256, advance)
    return path


def _is(path: Path, target: TargetFile) -> bool:
    """Whether a file is the one that was signed."""
    if not path.is_file() or path.stat().st_size != target.length:
        return False
    return sha256_file(path) == target.hashes["sha256"]
