"""A study's folder: links to its text and anchor, digests of that text, and a lock for one study at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from evals.scoring.held_out import PUBLIC, find_domains
from flexmix.documents.corpus import find_split
from flexmix.tokens.shard import text_digest
from flexo.atomic_files import new_file
from flexo.errors import InputError
from flexo.locks import hold
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_header import check_domain
from merge.tensor_io.json_file import read_json, write_json

CORPORA = "corpora"
TEXT = "text.json"  # digests of all text that the study reads


@dataclass(frozen=True)
class StudyText:
    """The text of a study: a folder of corpora, the domains in it, and the file or token shard of every split."""

    folder: Path
    domains: tuple[str, ...]  # without public
    files: dict[str, Path]  # domain/split -> file, public too; splits are train, test and perhaps valid

    def inside(self, domain: str, split: str) -> str:
        """The path of a file from the study's folder."""
        return str(Path(CORPORA) / self.files[f"{domain}/{split}"].relative_to(self.folder))


def find_text(folder: Path, domains: Sequence[str] | None, split: str) -> StudyText:
    """The text in a folder of corpora: public text, and the domains named or all that are there.

    Raises:
        InputError: there is no public text, no domain beside it, or a domain lacks training or held-out text.
    """
    there = [name for name in find_domains(folder, None, []) if (folder / name).is_dir()]
    if PUBLIC not in there:
        raise InputError(f"{folder}: no {PUBLIC}/ in it. The anchor that owners share is trained on public text.")
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
    return StudyText(folder, tuple(names), files)


def text_to_come(domains: Sequence[str]) -> StudyText:
    """The text of the sample corpora before they are built."""
    folder = Path(CORPORA)
    parts = [(name, part) for name in (PUBLIC, *domains) for part in ("train", "test")]
    return StudyText(
        folder, tuple(domains), {f"{name}/{part}": folder / name / f"{part}.jsonl.gz" for name, part in parts}
    )


@contextmanager
def study_folder(folder: Path) -> Iterator[Path]:
    """Makes the folder and locks it; raises `InputError` if another study has it."""
    folder.mkdir(parents=True, exist_ok=True)
    busy = f"{folder}: another study is running here. Wait for it, or choose another output."
    with hold(folder / "lock", busy):
        yield folder


def link(folder: Path, name: str, target: Path) -> None:
    """Links text or anchor into the folder; raises `InputError` if the study was begun with another one."""
    path = folder / name
    if path.is_symlink() and path.resolve() == target.resolve():
        return
    if path.is_symlink() or path.exists():
        known = path.resolve() if path.is_symlink() else f"made here, in {path}"
        raise InputError(
            f"{target}: this study was begun with another {name} ({known}). Choose another folder with output=."
        )
    path.symlink_to(target.resolve(), target_is_directory=True)


def keep_text(folder: Path, text: StudyText) -> None:
    """Writes the digests of the text; raises `InputError` if a text has changed since the study began."""
    path = folder / TEXT
    before = read_json(path) if path.exists() else {}
    now = {name: text_digest(file) for name, file in text.files.items()}
    for name, digest in now.items():
        if before.get(name, digest) != digest:
            raise InputError(
                f"{text.files[name]}: not the text that this study was begun with. Put that back, or choose another "
                "folder with output=."
            )
    with new_file(path, replace=True) as partial:
        write_json(partial, before | now)


def check_anchor(path: Path) -> None:
    """Raises `InputError` if the folder is no anchor, before hours are spent on other steps."""
    open_anchor(path)
