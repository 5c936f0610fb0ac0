"""The command line of the training scripts: what was mistyped is named, values have types, a refusal is one message."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from flexo.errors import InputError
from trainers.data import DataOptions
from trainers.entry.hydra_entry import read, run_hydra
from trainers.expert.paired import PairOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.owner import Domain

ROOT = Path(__file__).resolve().parents[3]
Refused = Callable[..., str]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[DictConfig]]:
    """`command("train_expert", "+domain=math")`: what the task of a script was given, one for each job."""

    def call(script: str, *arguments: str) -> list[DictConfig]:
        given: list[DictConfig] = []
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
        GlobalHydra.instance().clear()
        run_hydra(given.append, script)
        return given

    return call


@pytest.fixture
def refused(command: Callable[..., list[DictConfig]], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """The one message of a command line that is refused with exit code 1 and leaves nothing behind."""

    def call(*arguments: str) -> str:
        with pytest.raises(SystemExit) as stopped:
            command(*arguments)
        assert stopped.value.code == 1
        out, err = capsys.readouterr()
        assert out == "" and err.startswith("error: ") and err.count("\n") == 1
        assert list(tmp_path.iterdir()) == []
        return err.removeprefix("error: ").rstrip("\n")

    return call


DOMAINS = "There are: academic, code, creative, educational, local, math, news, reddit."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["+domain=mth"], f"domain=mth: there is no such domain. Did you mean 'math'? {DOMAINS}"),
        (["+domain=2024"], f"domain=2024: there is no such domain. {DOMAINS}"),
        (["-m", "+domain=math,1e5"], f"domain=1e5: there is no such domain. {DOMAINS}"),
        (["+domain=[2024]"], f"domain=2024: there is no such domain. {DOMAINS}"),
        (["+domain=math", "debug=null"], "debug=null: there is no such debug. There are: fast."),
        (["domain=math"], f"domain: nothing is chosen yet, so it takes a plus: +domain=CHOICE. {DOMAINS}"),
        (["+domain=math", "optimzer.lr=1"], "optimzer.lr: there is no such setting. Did you mean 'optimizer.lr'? See "),
        (["+domain=math", "data.tokns=1"], "data.tokns: there is no such setting. Did you mean 'data.tokens'? See "),
        (["+domain=math", "anchor=tiny"], "anchor: a section of settings, not a choice. It has anchor.path. See "),
        (["+domain=math", "debug=fats"], "debug=fats: there is no such debug. Did you mean 'fast'? There are: fast."),
        (["+domain=local"], "domain.name, domain.train: no value. On the command line: domain.name=... domain.train="),
        (["+domain=math", "data.tokens"], "missing EQUAL at "),
        (["+domain=math", "+data.tokens=5"], "data.tokens: set already, so it takes no plus: data.tokens=5. See "),
        (["+domain=math", "+model=dense"], "model: set already, so it takes no plus: model=dense. See "),
        (["+domain=math", "~data.tokns"], "data.tokns: there is no such setting. Did you mean 'data.tokens'? See "),
        (["+domain=math", "+domain=code"], "domain: given twice, and it can be given once. See "),
        (["+domain=math", "data.tokens.all=1"], "data.tokens.all: there is no such setting. Did you mean 'data.tok"),
        (["optimzer.lr=1", "domain=math"], "domain: nothing is chosen yet, so it takes a plus: +domain=CHOICE."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_does_not_compose_is_named(refused: Refused, arguments: list[str], message: str) -> None:
    assert message in refused("train_expert", *arguments)


def test_a_mistyped_setting_of_a_multirun_is_named(
    command: Callable[..., list[DictConfig]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command("train_expert", "-m", "+domain=glob(m*)", "data.tokens=1,2", "optimzer.lr=1,2")
    assert "optimzer.lr: there is no such setting. Did you mean 'optimizer.lr'? " in capsys.readouterr().err


def test_a_setting_is_named_to_its_end(refused: Refused) -> None:
    said = refused("run_study", "study.recipes.ours-fit.measure=[]")
    assert "study.recipes.ours-fit.measure: there is no such setting. Did you mean 'study.recipes." in said


def test_an_anchor_without_text_is_told_what_to_give(refused: Refused) -> None:
    assert refused("train_anchor") == "data.path: no value. On the command line: data.path=..."


def test_a_multirun_gives_each_job_its_settings(command: Callable[..., list[DictConfig]]) -> None:
    every = command("train_expert", "-m", "+domain=glob(*,exclude=local)")
    assert {job.domain.name for job in every} >= {"math", "code"} and len(every) == 7
    jobs = command("train_expert", "-m", "+domain=math,code", "seed=1")
    assert [(job.domain.name, job.output, job.seed) for job in jobs] == [
        ("math", "experts/math.pt", 1),
        ("code", "experts/code.pt", 1),
    ]


def test_a_single_run_leaves_nothing_of_hydras(command: Callable[..., list[DictConfig]], tmp_path: Path) -> None:
    assert len(command("train_expert", "+domain=math")) == 1
    assert list(tmp_path.iterdir()) == []


CFG = OmegaConf.create(
    {
        "data": {"tokens": 100, "cache": "tokens", "public": None},
        "domain": {"name": "math", "train": "a.jsonl", "hub": {"id": "some/set", "documents": 7}},
        "optimizer": {"lr": "1e-3", "betas": [0.9, 0.99]},
        "seed": 3,
    }
)


def test_settings_become_what_the_code_works_with() -> None:
    assert read(CFG, "data", DataOptions, apart=("public",)) == DataOptions(100, cache=Path("tokens"))
    domain = read(CFG, "domain", Domain)
    assert domain.train == Path("a.jsonl") and domain.hub is not None and domain.hub.documents == 7
    assert read(CFG, "optimizer", OptimizerOptions) == OptimizerOptions(lr=1e-3, betas=(0.9, 0.99))
    assert read(CFG, "seed", int) == 3


@pytest.mark.parametrize(
    ("changes", "name", "kind", "message"),
    [
        ({"data": {"tokens": "abc", "public": None}}, "data", DataOptions, r"data\.tokens: 'abc' does not fit"),
        ({"data": {"tokens": 0, "public": None}}, "data", DataOptions, r"data: tokens 0.* must be positive"),
        ({"data": {"tokens": 5, "sized": 1}}, "data", DataOptions, r"data\.\w+: there is no such setting"),
        (
            {"optimizer": {"lr": 1, "betas": [1, 2, 3]}},
            "optimizer",
            OptimizerOptions,
            r"optimizer\.betas.*does not fit",
        ),
        (
            {"model": {"router_init": "lucky"}},
            "model",
            PairOptions,
            r"model\.router_init: 'lucky' does not fit.*'mean'",
        ),
        ({"seed": "x"}, "seed", int, r"seed: 'x' does not fit"),
        ({"domain": {"name": 2024}}, "domain", Domain, r"""name: 2024 does not fit.* quotes: "domain.name='...'"\.$"""),
        ({"domain": {"train": 1e5}}, "domain", Domain, r"""train: 100000.0 does not.*: "domain.train='...'"\.$"""),
        ({"domain": {"name": True}}, "domain", Domain, r"name: True does not fit.*quotes within quotes"),
        ({"proxies": 5}, "proxies", dict[str, Path], r"proxies: 5 does not fit"),
    ],
)
def test_a_value_of_another_type_is_named(changes: dict[str, object], name: str, kind: type, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(OmegaConf.merge(CFG, changes), name, kind, apart=("public",))


@pytest.mark.parametrize("script", ["train_anchor", "train_expert", "train_router"])
def test_help_shows_examples_groups_and_settings(script: str, tmp_path: Path) -> None:
    said = subprocess.run(
        [sys.executable, ROOT / f"{script}.py", "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    ).stdout
    windows = 2 if script == "train_expert" else 8
    for part in (f"python {script}.py", "logger: csv, none, tensorboard, wandb", "tokens:", f"batch_size: {windows}"):
        assert part in said
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_looks_like_a_number_goes_in_quotes(command: Callable[..., list[DictConfig]]) -> None:
    (job,) = command("train_expert", "+domain=local", "domain.name='007'", "domain.train=x.jsonl")
    assert (read(job, "domain", Domain).name, job.output) == ("007", "experts/007.pt")
    jobs = command("train_expert", "-m", "+domain=local", "domain.name='2024','1e5'", "domain.train=x.jsonl")
    assert [read(job, "domain", Domain).name for job in jobs] == ["2024", "1e5"]
    for proxies in ("+proxies={2024:a.jsonl}", "+proxies.2024=a.jsonl"):
        (job,) = command("train_router", proxies)
        assert read(job, "proxies", dict[str, Path]) == {"2024": Path("a.jsonl")}


def test_a_router_run_is_told_by_plain_names_and_holds_its_rows(command: Callable[..., list[DictConfig]]) -> None:
    (job,) = command("train_router", "merged=m", "output=o", "+proxies.math=a.jsonl", "router=paper", "anchor.path=b")
    assert (job.merged, job.proxies.math, job.router.train_public_row) == ("m", "a.jsonl", True)
    assert job.data.public == "b/flexo/public"
    assert (job.loss.stay, job.loss.own_domain) == (0, 0)
    (held,) = command("train_router", "merged=m", "output=o")
    assert (held.loss.stay, held.loss.own_domain, held.router.train_public_row) == (1, 1, False)
    (free,) = command("train_router", "merged=m", "output=o", "router=paper", "loss.stay=0.5")
    assert free.loss.stay == 0.5


def test_baselines_are_choices_of_the_expert_script(command: Callable[..., list[DictConfig]]) -> None:
    (dense,) = command("train_expert", "+domain=math", "model=dense")
    assert (dense.output, dense.model.kind, dense.data.public_share) == ("specialists/math", "dense", 0.0)
    (gate,) = command("train_expert", "+domain=math", "experiment=phatgoose", "model.start=experts/math.pt")
    assert gate.model.standardise and gate.loss.router_z == 0 and gate.output == "phatgoose/math.pt"


def test_a_run_that_fails_does_not_stop_the_others_and_all_failures_are_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def task(cfg: DictConfig) -> None:
        done.append(cfg.domain.name)
        if cfg.domain.name == "math":
            raise InputError("no text")
        if cfg.domain.name == "news":
            raise ZeroDivisionError

    done: list[str] = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train_expert.py", "-m", "+domain=math,code,news"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stopped:
        run_hydra(task, "train_expert")
    assert stopped.value.code == 1 and done == ["math", "code", "news"]
    err = capsys.readouterr().err
    assert err.startswith("error: +domain=math: no text\n") and "ZeroDivisionError" in err
    assert err.splitlines()[-4:] == [
        "error: 2 of 3 runs failed. What is done stays done.",
        "+domain=math  exit code 1  experts/math.pt",
        "+domain=code  exit code 0  experts/code.pt",
        "+domain=news  exit code 1  experts/news.pt",
    ]


def test_runs_on_several_devices_are_refused_in_one_process(
    command: Callable[..., list[DictConfig]], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        command("train_expert", "-m", "+domain=math,code", "run.devices=2")
    assert "error: run.devices=2, run.nodes=1: under -m, runs on several devices need" in capsys.readouterr().err
