"""Paths as people have them: Hydra reads them, or the refusal has the whole command with the right quotes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from flexo.errors import InputError
from trainers.entry.hydra_entry import read, run_hydra
from trainers.entry.typed_values import readable
from trainers.owner import Domain

NAMES = [
    "a=b.jsonl", "a,b.jsonl", "a (1).jsonl", "data(1)", "a#b.jsonl", "it's.jsonl", "文.jsonl", "Müller, A.jsonl", "~x",
    "[draft].txt", "a&b;c!.jsonl", 'say "x".jsonl',
]  # fmt: skip
LOCAL = ["+domain=local", "domain.name=mine"]


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[DictConfig]]:
    """What the task of `train_expert.py` was given, one for each job."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def call(*arguments: str) -> list[DictConfig]:
        jobs: list[DictConfig] = []
        monkeypatch.setattr(sys, "argv", ["train_expert.py", *arguments])
        GlobalHydra.instance().clear()
        run_hydra(jobs.append, "train_expert")
        return jobs

    return call


def said(given: Callable[..., list[DictConfig]], capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit):
        given(*arguments)
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    return err.rstrip("\n")


@pytest.mark.parametrize("multirun", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_the_command_that_a_refusal_prints_does_it(
    given: Callable[..., list[DictConfig]],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    name: str,
    multirun: bool,
) -> None:
    (tmp_path / name).touch()
    flags = ["-m"] if multirun else []
    message = said(given, capsys, *flags, *LOCAL, f"domain.train={name}", "seed=3")
    assert message.startswith(f"error: domain.train={name}: ")
    python, script, *words = shlex.split(message[message.index("python train_expert.py ") :])
    assert (python, script) == ("python", "train_expert.py") and len(words) == len(flags) + 4
    (job,) = given(*words)
    assert (read(job, "domain", Domain).train, job.seed) == (Path(name), 3)


def test_several_paths_of_a_multirun_are_quoted_one_by_one(
    given: Callable[..., list[DictConfig]], capsys: pytest.CaptureFixture[str]
) -> None:
    message = said(given, capsys, "-m", *LOCAL, "domain.train=a (1).jsonl,b.jsonl", "output=${domain.train}.pt")
    jobs = given(*shlex.split(message[message.index("train_expert.py ") :])[1:])
    assert [job.domain.train for job in jobs] == ["a (1).jsonl", "b.jsonl"]


def test_home_is_expanded_wherever_a_path_begins(given: Callable[..., list[DictConfig]], tmp_path: Path) -> None:
    home = tmp_path / "home"
    (job,) = given(
        *LOCAL, "domain.train=~/x.jsonl", 'domain.test="~/a (1).jsonl"', "anchor.path=~/anchor", "output=~/m.pt"
    )
    domain = read(job, "domain", Domain)
    assert (domain.train, domain.test) == (home / "x.jsonl", home / "a (1).jsonl")
    assert read(job, "anchor.path", str) == str(home / "anchor") and read(job, "output", Path) == home / "m.pt"
    jobs = given("-m", *LOCAL, "domain.train=~/x,~/y", "output=a.pt")
    assert [read(job, "domain", Domain).train for job in jobs] == [home / "x", home / "y"]
    (job,) = given(*LOCAL, "domain.train=x", "data.mixture=[{path: ~/x}, {path: y}]")
    assert read(job, "data.mixture", list[dict[str, Path]]) == [{"path": home / "x"}, {"path": Path("y")}]


def test_lists_and_several_values_are_told_apart(
    given: Callable[..., list[DictConfig]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "quotes: put double ones around each text of the list" in said(
        given, capsys, *LOCAL, "domain.train=x", "data.mixture=[{path: a (1)}]"
    )
    message = said(given, capsys, "+domain=math,code")
    assert message == (
        "error: +domain=math,code: several values are several runs, which takes -m. For one text: "
        """python train_expert.py '+domain="math,code"'"""
    )


def test_what_hydra_reads_is_left_as_it_is() -> None:
    words = ["-m", "+domain=math,code", "a.b='x y'", "c=[1,2]", "~d", "e=glob(*)", "f", "g=@h"]
    assert readable(words, "python x.py") == words
    with pytest.raises(InputError, match="Unknown function 'glo'"):
        readable(["+domain=glo(m)"], "python x.py")
