"""From an owner's documents to token shards: `flexo-data prepare SOURCE... -o prepared --tokenizer anchor`.

    prepared/train/, test/       token shards (see `flexmix.tokens.shard`)
    prepared/statistics.json     what became of every document; statistics.png if matplotlib is there
    prepared/not_read.jsonl      files that were not read, and why, if there were any
    prepared/damaged.jsonl       damaged lines that were set aside, if there were any

The input is cut into tasks once; any number of processes, SLURM or Ray jobs do them, in any order; then their results
are put together in the order of the tasks. So the result depends on the input and the settings alone. Until it is
complete it is `.prepared.preparing` beside the output, from where the same command goes on after any interruption:
tasks that are done are not done again, and one that was cut off is done anew as a whole.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flexmix.documents.conversations import FILES, find_template
from flexmix.documents.filters import filter_names, load_filter
from flexmix.documents.flexmix_sets import find_source
from flexmix.documents.hub import TOKENIZER, local_folder
from flexmix.documents.source import TASK, Source
from flexmix.prepare.options import Options
from flexmix.prepare.statistics import PLOT, Statistics, draw, read_statistics
from flexmix.prepare.unfinished import FAILED, JOBS, alone, begin
from flexmix.tokens.encoder import load_encoder
from flexo.atomic_files import FULL, refuse_occupied
from flexo.errors import InputError

if TYPE_CHECKING:
    from flexmix.prepare.executors import Slurm
    from flexmix.prepare.gather import Gathered
    from flexmix.prepare.ray_executor import Ray

VERSION = 2
RESULT = "result"
MODEL = ("tokenizer.json", "config.json")

Say = Callable[[str], None]


def prepare(
    sources: Sequence[str | Source],
    output: Path | str,
    tokenizer: Path | str,
    options: Options = Options(),
    *,
    workers: int = 1,
    cluster: Slurm | Ray | None = None,
    say: Say = print,
) -> Statistics | None:
    """Makes the prepared folder `output`, or goes on making it.

    Args:
        sources: places as on the command line, or which of their documents to take; read in this order, and of equal
            documents the first is kept.
        output: the folder to make.
        tokenizer: the anchor's folder, or its `hf://OWNER/NAME` on the hub, for its tokenizer and its chat template.
        options: what else decides about the result.
        workers: processes, or SLURM or Ray jobs at a time; they do not change the result.
        cluster: where the tasks are run instead of on this machine.
        say: told in a line each what goes on.

    Returns:
        The statistics; None after submitting to SLURM without waiting.

    Raises:
        InputError: input, settings or place are unusable, or another preparation works on `output`.
    """
    if workers < 1:
        raise InputError(f"{workers} workers, expected at least 1.")
    model = local_folder(str(tokenizer), setting="--tokenizer ", files=TOKENIZER)
    found = [_absolute(find_source(place) if isinstance(place, str) else place) for place in sources]
    output = Path(output).resolve()
    settings = _settings(found, model, options)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
    if _finished(output, digest):
        say(f"{output} was prepared before, with these settings; nothing to do")
        return read_statistics(output)
    refuse_occupied(output)
    state = output.with_name(f".{output.name}.preparing")
    with _refusals(output), alone(state, output):
        sizes = begin(state, found, settings, options.task_bytes, say)
        for name in {*MODEL, *FILES}:
            if (model / name).is_file():
                shutil.copyfile(model / name, state / name)
        if (said := _uneven(sizes, workers)) is not None:
            say(said)
        if not _run(_stages(state, found, model, options, sizes), state, workers, cluster, say):
            return None
        return _finish(state, output, found, options, digest, len(sizes), say)


def is_prepared(folder: Path) -> bool:
    """Whether a folder was made by `prepare`."""
    return (folder / "statistics.json").is_file() and (folder / "train" / "shard.json").is_file()


def _absolute(source: Source) -> Source:
    place = Path(source.hub_id if source.hub_id is not None else source.place)
    if not place.exists():
        return source
    return replace(source, place=("hub:" if source.hub_id is not None else "") + str(place.absolute()))


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
        "chat template": find_template(model).digest,
        "options": asdict(options),
    }
    same: dict[str, Any] = json.loads(json.dumps(settings))
    return same


def _finished(output: Path, digest: str) -> bool:
    return is_prepared(output) and read_statistics(output).settings_digest == digest


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


def _uneven(sizes: list[int], workers: int) -> str | None:
    """A word on a task so large that other workers will wait for it: a compressed file is read from end to end."""
    largest, total = max(sizes, default=0), sum(sizes)
    if workers == 1 or largest <= max(TASK, 2 * total / workers):
        return None
    return (
        f"one file makes up {largest / total:.0%} of the input, and a single worker reads it; others will have nothing "
        "to do. Cut it into several files to use them."
    )


def _stages(state: Path, sources: list[Source], model: Path, options: Options, sizes: list[int]) -> list[Any]:
    from flexmix.prepare.deduplication import Signatures, near_stages
    from flexmix.prepare.executors import Stage
    from flexmix.prepare.steps import ReadStep, TokeniseStep
    from flexmix.prepare.tally import Tally

    tally = Tally()
    steps: list[Any] = [
        ReadStep(sources, state, model, tally, options),
        TokeniseStep(state, state / "tasks", tally, options.held_out),
    ]
    near = options.duplicates == "near"
    if near:
        steps.append(Signatures(state / "signatures"))
    known = sizes if all(sizes) else []
    read = Stage("read", "reading and tokenising", steps, len(sizes), state / "stage-read", known)
    return [read, *(near_stages(state) if near else [])]


def _run(stages: list[Any], state: Path, workers: int, cluster: Slurm | Ray | None, say: Say) -> bool:
    """Runs what is left of the stages; returns whether all is done."""
    from flexmix.prepare.executors import Slurm, run_local, run_slurm

    if isinstance(cluster, Slurm):
        return run_slurm(stages, cluster, workers, state / JOBS, say)
    if cluster is not None:
        from flexmix.prepare.ray_executor import run_ray

        run_ray(stages, cluster, workers, state / FAILED)
        return True
    for stage in stages:
        run_local(stage, workers)
    return True


def _finish(
    state: Path, output: Path, sources: list[Source], options: Options, digest: str, tasks: int, say: Say
) -> Statistics:
    """Puts the tasks' tokens together in `state/result`, in the order of the tasks, and makes that the output."""
    from flexmix.prepare.gather import gather

    result = state / RESULT
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir()
    filters = [name for source in sources for name in filter_names(source)]
    try:
        made = gather(state, result, load_encoder(state), tasks, options, filters, digest)
        if not made.statistics.train.documents:
            raise InputError(_nothing_left(made))
    except InputError:
        shutil.rmtree(state)  # there is nothing to go on with
        raise
    found = made.statistics
    found.write(result)
    if not draw(found, result / PLOT):
        say("no plot: matplotlib is not installed (pip install 'flexo[plot]')")
    if found.train.documents == 1:
        say("a single document to train on: split long texts into their parts, such as chapters, articles or records")
    result.rename(output)
    shutil.rmtree(state)
    return found


def _nothing_left(made: Gathered) -> str:
    from flexmix.prepare.tally import shown

    found = made.statistics
    filtered = ", ".join(f"{count} by {name!r}" for name, count in found.filtered.items()) or "0"
    return (
        f"no document is left to train on. Of {found.read} read, {found.empty} were empty, {found.damaged} damaged, "
        f"filtered {filtered}, {found.duplicates_exact + found.duplicates_near} duplicates, {found.test.documents} "
        f"held out. {shown(made.values)}Loosen the filters, or hold less out."
    )
