"""Running steps: each in a process of its own, several at a time, with a log for each; finished steps are skipped.

The first line of a log is the command. A step is finished if its output is there and was made by the same command; an
output of another command is refused. Each process computes on one thread unless told otherwise, so that the number of
jobs changes no result. Processes are forked from a server that has imported PyTorch already, because that import takes
as long as many steps (`evals.study.processes`); they end with the study.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from evals.study.processes import Call, Process, ended, processes, run_command, stop
from evals.study.steps import Step
from flexo.errors import InputError

DONE = re.compile(r"# done in ([\d.]+) s")
TAIL = 12  # lines of a log in a message

Say = Callable[[str], None]


@dataclass
class Runner:
    """Runs steps in `folder`."""

    folder: Path
    jobs: int = 1
    threads: int = 1
    keep_going: bool = False  # after a failure: with the steps that do not need its output
    say: Say = print
    then: Callable[[Step], None] = lambda _step: None  # called after each step that ran; not for those done before
    call: Call = run_command  # runs a command, in a process of its own
    times: dict[str, list[float]] = field(default_factory=dict)  # of steps alike, in seconds

    def run(self, steps: Sequence[Step]) -> None:
        """Runs all steps that are not done, in their order, each as soon as its inputs are there.

        Raises:
            InputError: an output was made by another command, or a step failed. Finished outputs are kept.
        """
        waiting = self.missing(steps)
        for step in steps:
            self._remember(step)
        self.say(f"{len(steps)} runs, {len(steps) - len(waiting)} of them done before")
        place = {step.makes: n for n, step in enumerate(steps, 1)}
        running: dict[Process, tuple[Step, float]] = {}
        start = processes(self.threads)
        failed: list[Step] = []
        try:
            while waiting or running:
                missing = {step.makes for step in waiting} | {step.makes for step, _ in running.values()}
                missing |= {step.makes for step in failed}
                for step in [step for step in waiting if not missing & set(step.needs)]:
                    if len(running) == self.jobs or (failed and not self.keep_going):
                        break
                    waiting.remove(step)
                    self.say(f"[{place[step.makes]}/{len(steps)}] {step.name}")
                    running[self._start(step, start)] = (step, time.monotonic())
                if not running:
                    break
                for process in ended(running):
                    step, started = running.pop(process)
                    seconds = time.monotonic() - started
                    if process.exitcode or not (self.folder / step.makes).exists():
                        failed.append(step)
                        self.say(f"[{place[step.makes]}/{len(steps)}] {step.name} FAILED, see {self.folder / step.log}")
                        continue
                    self._finish(step, seconds)
                    left = self._left([*waiting, *(step for step, _ in running.values())])
                    self.say(f"[{place[step.makes]}/{len(steps)}] {step.name} done in {_clock(seconds)}; {left}")
                    self.then(step)
        except (KeyboardInterrupt, SystemExit):
            self.say("stopping: finished outputs are kept, and the same command goes on")
            raise
        finally:
            stop(running)
        if failed:
            raise InputError(self._failure(failed, len(waiting)))

    def missing(self, steps: Sequence[Step]) -> list[Step]:
        """The steps that are still to be run; raises `InputError` like `run`."""
        return [step for step in steps if not self.is_done(step)]

    def is_done(self, step: Step) -> bool:
        """Whether the output of a step is there and was made by this very command; commands write all or nothing."""
        path, log = self.folder / step.makes, self.folder / step.log
        if not path.exists():
            return False
        before = _first_line(log)
        if before != _line(step):
            raise InputError(
                f"{path}: made by another command before.\n  then: {before or 'no log says how'}\n"
                f"  now:  {_line(step)}\n"
                f"Choose another folder with output=, or delete {path} and {log} to make it again."
            )
        return True

    def _start(self, step: Step, start: Callable[..., Process]) -> Process:
        log = self.folder / step.log
        log.parent.mkdir(parents=True, exist_ok=True)
        again = _first_line(log) == _line(step)
        with log.open("a" if again else "w") as file:
            file.write(_line(step) + "\n")
        return start(self.call, step.command, self.folder, log)

    def _finish(self, step: Step, seconds: float) -> None:
        with (self.folder / step.log).open("a") as file:
            file.write(f"# done in {seconds:.1f} s\n")
        self.times.setdefault(step.alike, []).append(seconds)

    def _remember(self, step: Step) -> None:
        log = self.folder / step.log
        if log.is_file() and (found := DONE.search(log.read_text(errors="replace"))):
            self.times.setdefault(step.alike, []).append(float(found[1]))

    def _left(self, steps: Sequence[Step]) -> str:
        """How long the rest will take, judged by steps alike, by the same command, or by all."""
        if not steps:
            return "nothing left"
        known = {alike: fmean(times) for alike, times in self.times.items()}
        seconds = 0.0
        for step in steps:
            near = [known[step.alike]] if step.alike in known else []
            near = near or [t for alike, t in known.items() if alike.split()[1] == step.command[0]]
            seconds += fmean(near or list(known.values()))
        return f"about {_clock(seconds / min(self.jobs, len(steps)))} left"

    def _failure(self, failed: Sequence[Step], waiting: int) -> str:
        log = self.folder / failed[0].log
        lines = log.read_text(errors="replace").splitlines()[-TAIL:]
        others = f" So did {', '.join(step.name for step in failed[1:])}." if failed[1:] else ""
        return "\n".join(
            [
                f"{failed[0].name} failed, {waiting} runs were not begun.{others} Finished outputs are kept, and the "
                f"same command goes on. The log {log} ends with",
                *(f"  {line}" for line in lines),
            ]
        )


def _line(step: Step) -> str:
    return f"$ {shlex.join(step.command)}"


def _first_line(log: Path) -> str | None:
    if not log.is_file():
        return None
    with log.open(errors="replace") as file:
        return file.readline().rstrip("\n")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
