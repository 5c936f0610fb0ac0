"""A study from its settings to its report: `run_study.py` as a plain function.

run_study(study, StudyOptions(Path("study"), seeds=(0, 1)))
"""

from __future__ import annotations

import importlib.util
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from evals.scoring.held_out import PUBLIC
from evals.study.folder import CORPORA, StudyText, check_anchor, find_text, keep_text, link, study_folder, text_to_come
from evals.study.processes import succeeds
from evals.study.recipe import Study
from evals.study.results import join_results, named, seeds_of
from evals.study.runner import Runner
from evals.study.steps import Step, study_steps
from flexo.cpu_threads import usable_cores
from flexo.errors import InputError

MOST_JOBS = 8
EXTRAS = {  # a word of a command -> the extra and the module that it needs
    "proxies": ("proxies", "sklearn"),
    "--classifier": ("proxies", "sklearn"),
    "--encoder": ("encoder", "sentence_transformers"),
}
SAMPLE_LOG = f"{CORPORA}.log"


@dataclass(frozen=True)
class GivenAnchor:
    path: Path | None = None  # null: made here


@dataclass(frozen=True)
class StudyOptions:
    """Where and how a study runs; docs/study.md and configs/run_study.yaml describe each setting."""

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
        return self.jobs or min(MOST_JOBS, usable_cores())


def run_study(study: Study, options: StudyOptions, say: Callable[[str], None] = print) -> None:
    """Runs the steps of a study that are not done, and writes its report again after each measurement.

    Args:
        study: the recipes and how much of everything.
        options: where and how it runs.
        say: told each line of progress.

    Raises:
        InputError: text, anchor or settings are unusable or not those that the study was begun with, or a step fails.
    """
    study = replace(study, seeds=options.seeds)
    study.needed(options.only or ())  # a mistyped name, anchor or folder is refused before anything is made
    if options.anchor.path is not None:
        check_anchor(options.anchor.path)
    if options.corpora is not None:
        find_text(options.corpora, options.domains, options.split)
    if options.plan:
        text, given = _text(study, options), options.anchor.path is not None
        for step in study_steps(study, text, options.split, given, options.only):
            say(shlex.join(step.command))
        return
    with study_folder(options.output) as folder:
        if options.corpora is not None:
            link(folder, CORPORA, options.corpora)
        elif not (folder / CORPORA).is_symlink():
            _sample(folder, options.domains or study.sample, say)
        if options.anchor.path is not None:
            link(folder, "anchor", options.anchor.path)
        text, given = _text(study, options), (folder / "anchor").is_symlink()
        steps = study_steps(study, text, options.split, given, options.only)
        keep_text(folder, text)
        say(_about(study, text.domains, given))
        report = Report(folder, list(study.all), options.split, say)
        runner = Runner(folder, options.jobs_at_once, options.threads, options.keep_going, say, report.after)
        require_extras(runner.missing(steps))
        runner.run(steps)
        if report.write():
            say(report.table.read_text(encoding="utf-8"))
            say(f"wrote {report.html}")


@dataclass
class Report:
    """The report on the measurements made so far."""

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
        """Writes the report after a measurement; if that fails the study goes on, since it can be written later."""
        if step.measures:
            try:
                self.write()
            except InputError as error:
                self.say(f"the report could not be written: {error}")

    def write(self) -> bool:
        """Joins the measurements of each seed and writes tables and pictures of all seeds with `flexo-report`.

        Returns:
            Whether there was a measurement.

        Raises:
            InputError: the report cannot be written.
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
    """Raises `InputError` if a step needs an extra that is not installed, before hours are spent on other steps."""
    for step in steps:
        for word, (extra, module) in EXTRAS.items():
            if word in step.command and importlib.util.find_spec(module) is None:
                raise InputError(
                    f"{step.name} needs {module}: pip install 'flexo[{extra}]'. Or name other recipes with only=[...]."
                )


def _text(study: Study, options: StudyOptions) -> StudyText:
    """The text that a study reads: that of `options`, or the sample corpora in its folder."""
    folder = options.output / CORPORA
    domains = options.domains if options.corpora is not None or folder.is_symlink() else options.domains or study.sample
    if options.corpora is None and not folder.exists():
        assert options.plan, "the sample corpora are built before the steps of a study that runs"
        return text_to_come(domains or ())
    return find_text(folder if folder.exists() else options.corpora or folder, domains, options.split)


def _sample(folder: Path, domains: Sequence[str], say: Callable[[str], None]) -> None:
    """Builds the sample corpora unless they are there."""
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
        f"random choices; {each}; {study.tokens:,} tokens an expert"
    )
