"""A study from its settings to its report."""

from __future__ import annotations

import importlib.util
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evals.study.folder import Text, check_anchor, find_text, keep_text, link, study_folder, text_to_come
from evals.study.plan import CORPORA, PUBLIC, Step, make_plan
from evals.study.processes import succeeds
from evals.study.recipe import Study
from evals.study.results import join_results, named, seeds_of
from evals.study.runner import Runner
from flexo.errors import InputError

MOST_JOBS = 8
EXTRAS = {  # a word of a command -> what must be installed for it
    "proxies": ("proxies", "sklearn"),
    "--classifier": ("proxies", "sklearn"),
    "--encoder": ("encoder", "sentence_transformers"),
}
SAMPLE_LOG = f"{CORPORA}.log"


@dataclass(frozen=True)
class GivenAnchor:
    path: Path | None = None  # null: made here


@dataclass(frozen=True)
class Asked:
    """What a user says beside the study itself."""

    output: Path
    seeds: tuple[int, ...]
    corpora: Path | None = None
    anchor: GivenAnchor = GivenAnchor()
    domains: tuple[str, ...] | None = None
    split: str = "test"
    only: tuple[str, ...] | None = None
    jobs: int | None = None
    threads: int = 1
    keep_going: bool = False
    plan: bool = False

    def __post_init__(self) -> None:
        if (self.jobs is not None and self.jobs < 1) or self.threads < 1:
            raise InputError(f"jobs={self.jobs}, threads={self.threads}: expected positive numbers.")

    @property
    def jobs_at_once(self) -> int:
        cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
        return self.jobs or min(MOST_JOBS, cores)


def run_study(study: Study, asked: Asked, say: Callable[[str], None] = print) -> None:
    """Runs what is missing of a study, and writes its report anew after each measurement.

    Raises `InputError` if text, anchor or settings are unusable or not those the study was begun with, or a run fails.
    """
    study = replace(study, seeds=asked.seeds)
    study.needed(asked.only or ())  # a mistyped name, anchor or folder is refused before anything is made
    if asked.anchor.path is not None:
        check_anchor(asked.anchor.path)
    if asked.corpora is not None:
        find_text(asked.corpora, asked.domains, asked.split)
    if asked.plan:
        for step in make_plan(study, _text(study, asked).place(asked.split, asked.anchor.path is not None), asked.only):
            say(shlex.join(step.command))
        return
    with study_folder(asked.output) as folder:
        if asked.corpora is not None:
            link(folder, CORPORA, asked.corpora)
        elif not (folder / CORPORA).is_symlink():
            _sample(folder, asked.domains or study.sample, say)
        if asked.anchor.path is not None:
            link(folder, "anchor", asked.anchor.path)
        text, given = _text(study, asked), (folder / "anchor").is_symlink()
        steps = make_plan(study, text.place(asked.split, given), asked.only)
        keep_text(folder, text)
        say(_about(study, text.domains, given))
        report = Report(folder, list(study.all), asked.split, say)
        runner = Runner(folder, asked.jobs_at_once, asked.threads, asked.keep_going, say, report.after)
        require_extras(runner.missing(steps))
        runner.run(steps)
        if report.write():
            say(report.table.read_text(encoding="utf-8"))
            say(f"wrote {report.html}")


@dataclass
class Report:
    """The report on what has been measured so far."""

    folder: Path
    recipes: Sequence[str]  # in the order of their rows
    split: str
    say: Callable[[str], None]

    @property
    def html(self) -> Path:
        return self.folder / f"{named('report', self.split)}.html"

    @property
    def table(self) -> Path:
        return self.folder / f"{named('results', self.split)}.md"

    def after(self, step: Step) -> None:
        """Writes the report anew after a measurement; if that fails, the study goes on, for it can be written later."""
        if step.measures:
            try:
                self.write()
            except InputError as error:
                self.say(f"the report could not be written: {error}")

    def write(self) -> bool:
        """Joins the measurements of each seed, and has `flexo-report` write the tables and pictures of all.

        Returns whether there was anything to report; raises `InputError` if it cannot be written.
        """
        files = []
        for seed in seeds_of(self.folder):
            measured = [self.folder / seed / self.split / f"{name}.json" for name in self.recipes]
            if parts := [path for path in measured if path.exists()]:
                files.append(f"{seed}/{named('results', self.split)}.json")
                join_results(parts, self.folder / files[-1])
        if not files:
            return False
        command = ("flexo-report", *files, "-o", self.html.name, "--markdown", self.table.name)
        log = self.folder / "report.log"
        if not succeeds(command, self.folder, log):
            raise InputError(
                f"flexo-report failed. Its log {log} ends with:\n{log.read_text(errors='replace')[-1000:]}"
            )
        return True


def require_extras(steps: Sequence[Step]) -> None:
    """Refuses a plan at once for what is not installed, rather than after the hours before it."""
    for step in steps:
        for word, (extra, module) in EXTRAS.items():
            if word in step.command and importlib.util.find_spec(module) is None:
                raise InputError(
                    f"{step.name} needs {module}: pip install 'flexo[{extra}]'. Or name other recipes with only=[...]."
                )


def _text(study: Study, asked: Asked) -> Text:
    """The text that a study reads: given, or the sample corpora in its folder."""
    folder = asked.output / CORPORA
    domains = asked.domains if asked.corpora is not None or folder.is_symlink() else asked.domains or study.sample
    if asked.corpora is None and not folder.exists():
        assert asked.plan, "built before"
        return text_to_come(domains or ())
    return find_text(folder if folder.exists() else asked.corpora or folder, domains, asked.split)


def _sample(folder: Path, domains: Sequence[str], say: Callable[[str], None]) -> None:
    """Builds the sample corpora, or what is missing of them."""
    wanted = [PUBLIC, *domains]
    if all((folder / CORPORA / name).is_dir() for name in wanted):
        return
    say(f"building the sample corpora: {', '.join(wanted)}")
    command = ("flexo-data", "sample", "-o", CORPORA, "--domains", ",".join(wanted))
    failed = not succeeds(command, folder, folder / SAMPLE_LOG)
    if failed or (missing := [name for name in wanted if not (folder / CORPORA / name).is_dir()]):
        why = f"{', '.join(missing)} could not be built" if not failed else "they could not be built"
        raise InputError(
            f"sample corpora: {why} on this machine; {folder / SAMPLE_LOG} says why. Choose others with domains=[...], "
            "or give a folder of your own with corpora=."
        )


def _about(study: Study, domains: Sequence[str], given: bool) -> str:
    each = "each has an anchor of its own" if study.anchor_each_seed and not given else "all share one anchor"
    seeds = ", ".join(map(str, study.seeds))
    return (
        f"public and {len(domains)} domains ({', '.join(domains)}); seeds {seeds}: they vary rows, order of text and "
        f"what is drawn at random; {each}; {study.tokens:,} tokens an expert"
    )
