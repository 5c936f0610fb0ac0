"""A study's folder: links to text and anchor, what they were when the study began, and one study at a time in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from evals.scoring.held_out import find_domains
from evals.study.plan import CORPORA, PUBLIC, Place
from flexmix.documents.corpus import find_split
from flexmix.tokens.shard import text_digest
from flexo.atomic_files import new_file
from flexo.errors import InputError
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_header import check_domain
from merge.tensor_io.json_file import read_json, write_json

TEXT = "text.json"  # digests of all text that the study reads


@dataclass(frozen=True)
class Text:
    """A folder of corpora: the domains in it, and the file or token shard of every split."""

    folder: Path
    domains: tuple[str, ...]  # public not among them
    files: dict[str, Path]  # domain/split -> file

    def place(self, split: str, anchor_given: bool) -> Place:
        relative = {name: str(Path(CORPORA) / path.relative_to(self.folder)) for name, path in self.files.items()}
        return Place(self.domains, relative, split, anchor_given)


def find_text(folder: Path, domains: Sequence[str] | None, split: str) -> Text:
    """What a folder of corpora holds: public text and the domains named, or all that are there.

    Raises `InputError` if there is no public text, no domain beside it, or a domain lacks training or held-out text.
    """
    there = [name for name in find_domains(folder, None, []) if (folder / name).is_dir()]
    if PUBLIC not in there:
        raise InputError(f"{folder}: no {PUBLIC}/ in it. Owners share an anchor, and it is trained on public text.")
    names = [name for name in there if name != PUBLIC] if domains is None else list(domains)
    if not names:
        raise InputError(f"{folder}: no domain in it but {PUBLIC}. Expected a folder with train and test for each.")
    files: dict[str, Path] = {}
    for name in (PUBLIC, *names):
        if name not in there:
            raise InputError(f"{folder}: no domain {name!r} in it. There are {', '.join(there)}.")
        if name != PUBLIC:
            check_domain(name, str(folder / name))
        files |= {f"{name}/{part}": find_split(folder / name, part) for part in ("train", "test")}
        if (valid := find_domains(folder, [name], [], "valid")[name]) != files[f"{name}/test"]:
            files[f"{name}/valid"] = valid
    find_domains(folder, None, [], split)  # refuses a split that there is not
    return Text(folder, tuple(names), files)


def text_to_come(domains: Sequence[str]) -> Text:
    """The sample corpora before they are built."""
    folder = Path(CORPORA)
    parts = [(name, part) for name in (PUBLIC, *domains) for part in ("train", "test")]
    return Text(folder, tuple(domains), {f"{name}/{part}": folder / name / f"{part}.jsonl.gz" for name, part in parts})


@contextmanager
def study_folder(folder: Path) -> Iterator[Path]:
    """Makes the folder and holds it for this study alone."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{folder}: another study is running here. Wait for it, or choose another output.") from None
    try:
        yield folder
    finally:
        lock.release()


def link(folder: Path, name: str, target: Path) -> None:
    """Lets the study know text or anchor under a name of its own; it must be the same when the study goes on."""
    path = folder / name
    if path.is_symlink() and path.resolve() == target.resolve():
        return
    if path.is_symlink() or path.exists():
        known = path.resolve() if path.is_symlink() else f"made here, in {path}"
        raise InputError(
            f"{target}: this study was begun with another {name} ({known}). Choose another folder with output=."
        )
    path.symlink_to(target.resolve(), target_is_directory=True)


def keep_text(folder: Path, text: Text) -> None:
    """Writes down what the text is, and refuses text that has changed since the study began."""
    path = folder / TEXT
    before = read_json(path) if path.exists() else {}
    now = {name: text_digest(file) for name, file in text.files.items()}
    for name, digest in now.items():
        if before.get(name, digest) != digest:
            raise InputError(
                f"{text.files[name]}: not the text that this study was begun with. Put it back, or choose another "
                "folder with output=."
            )
    with new_file(path, replace=True) as partial:
        write_json(partial, before | now)


def check_anchor(path: Path) -> None:
    """Refuses at once what is no anchor, before hours are spent on the way to it."""
    open_anchor(path)
