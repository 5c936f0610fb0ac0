"""The folder of an unfinished preparation: its lock, its settings, its tasks, and what went into them.

.prepared.preparing/settings.json    settings, bytes of each task, size and time of each file
                    tasks.jsonl      the pieces of each task
                    not_read.jsonl   the files that are not read, and why
                    tasks/, stage-*  what tasks have made, and which are done
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from flexmix.documents.files import NotRead, named
from flexmix.documents.reading import cut_into_tasks
from flexmix.documents.source import Piece, Source
from flexo.errors import InputError
from flexo.locks import hold

SETTINGS, TASKS, NOT_READ = "settings.json", "tasks.jsonl", "not_read.jsonl"
JOBS, FAILED = "slurm-jobs", "ray-failed"


@contextmanager
def alone(state: Path, output: Path) -> Iterator[None]:
    """Holds the lock of a preparation; one that fails before anything is done leaves nothing behind."""
    lock = state.with_name(state.name + ".lock")
    state.parent.mkdir(parents=True, exist_ok=True)
    with hold(lock, f"{output}: another preparation is at work on this folder. Wait for it, or stop it."):
        try:
            state.mkdir(exist_ok=True)
            yield
        except BaseException:
            if state.is_dir() and not _begun(state):
                shutil.rmtree(state)
            raise
        finally:
            if not state.exists():
                lock.unlink(missing_ok=True)


def begin(
    state: Path, sources: list[Source], settings: dict[str, Any], task_bytes: int, say: Callable[[str], None]
) -> list[int]:
    """Cuts the sources into tasks, or finds them cut; returns the bytes that each task reads."""
    if _begun(state):
        sizes = _go_on(state, settings)
        say(f"going on: {_done(state)} of {len(sizes)} tasks were done before")
        return sizes
    shutil.rmtree(state)  # what a killed run began with other settings must not be taken for ours
    state.mkdir()
    tasks: list[tuple[int, list[Piece]]] = []
    not_read: list[NotRead] = []
    for number, source in enumerate(sources):
        cut = cut_into_tasks(source, task_bytes)
        tasks += [(number, pieces) for pieces in cut.tasks]
        not_read += cut.not_read
    for line in named(not_read):
        say(line)
    write_tasks(state / TASKS, tasks)
    lines = (json.dumps(one._asdict(), ensure_ascii=False) + "\n" for one in not_read)
    (state / NOT_READ).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    paths = sorted({piece.path for _, pieces in tasks for piece in pieces if Path(piece.path).is_file()})
    sizes = [sum(piece.size for piece in pieces) for _, pieces in tasks]
    about = {"settings": settings, "sizes": sizes, "files": {path: _stamp(path) for path in paths}}
    partial = state / f"{SETTINGS}.partial"
    partial.write_text(json.dumps(about), encoding="utf-8")
    partial.rename(state / SETTINGS)
    return sizes


def write_tasks(path: Path, tasks: list[tuple[int, list[Piece]]]) -> None:
    """Writes down the tasks, a line each: the number of the source and its pieces."""
    lines = (
        json.dumps([number, [list(asdict(piece).values()) for piece in pieces]]) + "\n" for number, pieces in tasks
    )
    path.write_text("".join(lines), encoding="utf-8")


def read_task(path: Path, sources: list[Source], rank: int) -> tuple[Source, list[Piece]]:
    """Task `rank` as `write_tasks` wrote it."""
    with path.open(encoding="utf-8") as lines:
        number, pieces = json.loads(next(islice(lines, rank, None)))
    return sources[number], [Piece(*values) for values in pieces]


def _go_on(state: Path, settings: dict[str, Any]) -> list[int]:
    before = json.loads((state / SETTINGS).read_text(encoding="utf-8"))
    if before["settings"] != settings:
        changed = [name for name in settings if before["settings"].get(name) != settings[name]]
        raise InputError(
            f"{state}: an unfinished preparation with other settings ({', '.join(changed)} differ). Go on with the "
            "settings it had, delete this folder, or choose another output."
        )
    for path, stamp in before["files"].items():
        if _stamp(path) != stamp:
            raise InputError(
                f"{path}: changed since the preparation began. Delete {state} to begin again with the file as it "
                "is now."
            )
    sizes: list[int] = before["sizes"]
    return sizes


def _begun(state: Path) -> bool:
    """Whether there is anything to go on with: a task that is done, jobs that were submitted, a log to look into."""
    return (state / SETTINGS).is_file() and (
        _done(state) > 0 or any((state / name).is_file() for name in (JOBS, FAILED))
    )


def _done(state: Path) -> int:
    return sum(1 for _ in (state / "stage-read" / "completions").glob("*"))


def _stamp(path: str) -> list[int] | None:
    """Size and time of change; None for a file that is gone."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
