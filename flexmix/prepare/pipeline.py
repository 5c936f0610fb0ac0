"""From an owner's documents to token shards: `flexo-data prepare SOURCE... -o prepared --tokenizer anchor`.

    prepared/train/, test/       token shards (see `flexmix.tokens.shard`)
    prepared/statistics.json     what became of every document; statistics.png if matplotlib is there

The input is cut into tasks once; any number of processes, SLURM or Ray jobs do them, in any order; then their results
are put together in the order of the tasks. So the result depends on the input and the settings alone. Until it is
complete it is `.prepared.preparing` beside the output, from where the same command goes on after any interruption:
tasks that are done are not done again, and one that was cut off is done anew as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from flexmix.documents.corpus import HELD_OUT
from flexmix.documents.filters import filter_names, load_filter
from flexmix.documents.reading import left_out, plan
from flexmix.documents.source import TASK, Source
from flexmix.prepare.statistics import PLOT, Statistics, draw, read_statistics
from flexmix.tokens.encoder import load_encoder
from flexo.atomic_files import FULL, refuse_occupied
from flexo.errors import InputError

VERSION = 1
SETTINGS, TASKS, RESULT, JOBS, FAILED = "settings.json", "tasks.jsonl", "result", "slurm-jobs", "ray-failed"
MODEL = ("tokenizer.json", "config.json")

Duplicates = Literal["keep", "exact", "near"]


@dataclass(frozen=True)
class Options:
    """What decides about the result, beside the sources and the tokenizer."""

    duplicates: Duplicates = "exact"  # leave out: none, exact copies, or near ones too
    held_out: float = 1 / HELD_OUT  # share of documents for the test split, chosen by their hash
    scrub: bool = False  # blot out e-mail addresses and phone numbers
    task_bytes: int = TASK  # of input for one task, about

    def __post_init__(self) -> None:
        if not 0 <= self.held_out < 1:
            raise InputError(f"the held-out share is {self.held_out}, expected from 0 up to 1.")
        if self.task_bytes < 1:
            raise InputError(f"the size of a task is {self.task_bytes} bytes, expected at least 1.")


def prepare(
    sources: list[Source],
    output: Path,
    model: Path,
    options: Options = Options(),
    *,
    workers: int = 1,
    slurm: Any = None,
    ray: Any = None,
    say: Callable[[str], None] = print,
) -> Statistics | None:
    """Makes the prepared folder `output`, or goes on making it.

    Args:
        sources: read in this order; of equal documents the first is kept.
        output: the folder to make.
        model: the anchor's folder, for `tokenizer.json` and `config.json`.
        options: what else decides about the result.
        workers: processes, or SLURM or Ray jobs at a time; they do not change the result.
        slurm: an `executors.Slurm` to run the tasks there.
        ray: a `ray_cluster.Ray` to run the tasks there.
        say: told in a line each what goes on.

    Returns:
        The statistics; None after submitting to SLURM without waiting.

    Raises:
        InputError: input, settings or place are unusable, or another preparation works on `output`.
    """
    if workers < 1:
        raise InputError(f"{workers} workers, expected at least 1.")
    sources = [_absolute(source) for source in sources]
    output = output.resolve()
    settings = _settings(sources, model, options)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if _finished(output, digest):
        say(f"{output} was prepared before, with these settings; nothing to do")
        return read_statistics(output)
    refuse_occupied(output)
    state = output.with_name(f".{output.name}.preparing")
    with _refusals(output), _alone(state, output):
        tasks = _begin(state, sources, settings, options, say)
        for name in MODEL:
            shutil.copyfile(model / name, state / name)
        if (said := _uneven(tasks, workers)) is not None:
            say(said)
        stages = _stages(state, sources, options, tasks)
        if slurm is not None:
            from flexmix.prepare.executors import run_slurm

            if not run_slurm(stages, slurm, workers, state / JOBS, say):
                return None
        elif ray is not None:
            from flexmix.prepare.ray_executor import run_ray

            run_ray(stages, ray, workers, state / FAILED)
        else:
            from flexmix.prepare.executors import run_local

            for stage in stages:
                run_local(stage, workers)
        found = _finish(state, sources, options, len(tasks), digest)
        if found.train.documents < 2:
            shutil.rmtree(state)  # there is nothing to go on with
            raise InputError(_too_few(found))
        if not draw(found, state / RESULT / PLOT):
            say("no plot: matplotlib is not installed (pip install 'flexo[plot]')")
        (state / RESULT).rename(output)
        shutil.rmtree(state)
    return found


def is_prepared(folder: Path) -> bool:
    """Whether a folder was made by `prepare`."""
    return (folder / "statistics.json").is_file() and (folder / "train" / "shard.json").is_file()


def _absolute(source: Source) -> Source:
    place = Path(source.hub_id if source.hub_id is not None else source.place)
    if not place.exists():
        return source
    return replace(source, place=("hub:" if source.hub_id is not None else "") + str(place.resolve()))


def _settings(sources: list[Source], model: Path, options: Options) -> dict[str, Any]:
    encoder = load_encoder(model)
    for source in sources:
        for name in source.keep:
            load_filter(name)
    settings = {
        "version": VERSION,
        "sources": [asdict(source) for source in sources],
        "tokenizer": encoder.digest,
        "end of text": encoder.end_of_text,
        "options": asdict(options),
    }
    same: dict[str, Any] = json.loads(json.dumps(settings))
    return same


def _finished(output: Path, digest: str) -> bool:
    return is_prepared(output) and read_statistics(output).settings_digest == digest


@contextmanager
def _alone(state: Path, output: Path) -> Iterator[None]:
    """Holds the lock of a preparation; one that fails before anything is done leaves nothing behind."""
    lock = FileLock(state.with_name(state.name + ".lock"))
    state.parent.mkdir(parents=True, exist_ok=True)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(f"{output}: another preparation is at work on this folder. Wait for it, or stop it.") from None
    try:
        state.mkdir(exist_ok=True)
        yield
    except BaseException:
        if state.is_dir() and not _begun(state):
            shutil.rmtree(state)
        raise
    finally:
        if not state.exists():
            Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _begun(state: Path) -> bool:
    """Whether there is anything to go on with: a task that is done, jobs that were submitted, a log to look into."""
    return (state / SETTINGS).is_file() and (
        any((state / "stage-read" / "completions").glob("*"))
        or any((state / name).is_file() for name in (JOBS, FAILED))
    )


@contextmanager
def _refusals(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise InputError(
                f"{output}: the disk is full. What is done is kept; free some room and run the same command again, or "
                f"delete {output.with_name(f'.{output.name}.preparing')} to give up."
            ) from None
        raise


def _begin(
    state: Path, sources: list[Source], settings: dict[str, Any], options: Options, say: Callable[[str], None]
) -> list[int]:
    """Plans the tasks, or finds them planned; returns the bytes that each reads."""
    written = state / SETTINGS
    if _begun(state):
        before = json.loads(written.read_text(encoding="utf-8"))
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
        done = len(list((state / "stage-read" / "completions").glob("*")))
        say(f"going on: {done} of {len(sizes)} tasks were done before")
        return sizes
    from flexmix.prepare.steps import write_tasks

    shutil.rmtree(state)  # what a killed run began with other settings must not be taken for ours
    state.mkdir()
    tasks = [(number, pieces) for number, source in enumerate(sources) for pieces in plan(source, options.task_bytes)]
    write_tasks(state / TASKS, tasks)
    paths = sorted({piece.path for _, pieces in tasks for piece in pieces if Path(piece.path).is_file()})
    sizes = [sum(piece.size for piece in pieces) for _, pieces in tasks]
    about = {"settings": settings, "sizes": sizes, "files": {path: _stamp(path) for path in paths}}
    partial = state / f"{SETTINGS}.partial"
    partial.write_text(json.dumps(about), encoding="utf-8")
    partial.rename(written)
    return sizes


def _uneven(sizes: list[int], workers: int) -> str | None:
    """A word on a task so large that other workers will wait for it: a compressed file is read from end to end."""
    largest, total = max(sizes, default=0), sum(sizes)
    if workers == 1 or largest <= max(TASK, 2 * total / workers):
        return None
    return (
        f"one file makes up {largest / total:.0%} of the input, and a single worker reads it; others will have nothing "
        "to do. Cut it into several files to use them."
    )


def _stamp(path: str) -> list[int] | None:
    """Size and time of change; None for a file that is gone."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]


def _stages(state: Path, sources: list[Source], options: Options, sizes: list[int]) -> list[Any]:
    from flexmix.prepare.deduplication import Signatures, near_stages
    from flexmix.prepare.executors import Stage
    from flexmix.prepare.steps import ReadStep, TokeniseStep

    counts: Counter[str] = Counter()
    steps: list[Any] = [
        ReadStep(sources, state / TASKS, counts, options.scrub),
        TokeniseStep(state, state / "tasks", counts, options.held_out),
    ]
    near = options.duplicates == "near"
    if near:
        steps.append(Signatures(state / "signatures"))
    known = sizes if all(sizes) else []
    read = Stage("read", "reading and tokenising", steps, len(sizes), state / "stage-read", known)
    return [read, *(near_stages(state) if near else [])]


def _finish(state: Path, sources: list[Source], options: Options, tasks: int, digest: str) -> Statistics:
    """Puts the tasks' tokens together in `state/result`, in the order of the tasks."""
    from flexmix.prepare.gather import gather

    result = state / RESULT
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    found = gather(
        state,
        result,
        load_encoder(state),
        tasks,
        options.duplicates,
        filters=[name for source in sources for name in filter_names(source)],
        files_left_out=dict(sum((Counter(left_out(source)) for source in sources), Counter())),
        settings_digest=digest,
    )
    found.write(result)
    return found


def _too_few(found: Statistics) -> str:
    filtered = ", ".join(f"{count} by {name!r}" for name, count in found.filtered.items()) or "0"
    return (
        f"{found.train.documents} documents are left to train on, expected at least two. Of {found.read} read, "
        f"{found.empty} were empty, filtered {filtered}, {found.duplicates_exact + found.duplicates_near} duplicates, "
        f"{found.test.documents} held out. Split long texts into their parts, or loosen the filters."
    )
