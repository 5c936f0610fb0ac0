"""Every command of every study is one that its program understands, and comes after all that it needs."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from hydra import compose, initialize_config_dir

from evals.commands.flexo_eval import app as eval_app
from evals.study.folder import StudyText
from evals.study.recipe import Study
from evals.study.steps import Step, study_steps
from flexmix.commands.flexo_data import app as data_app
from flexo.config_dir import config_dir
from flexo.errors import InputError
from merge.commands.flexo_btx import app as btx_app
from merge.commands.flexo_merge import app as merge_app
from merge.commands.flexo_soup import app as soup_app
from tests.evals.study.studies import study
from trainers.commands.flexo_embed import app as embed_app
from trainers.commands.flexo_fit_router import app as fit_app
from trainers.data import DataOptions
from trainers.expert.paired import PairOptions
from trainers.full_finetune import WholeOptions
from trainers.hydra_entry import read
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.owner import Domain
from trainers.router.train import RouterOptions

APPS = {
    "flexo-merge": merge_app, "flexo-soup": soup_app, "flexo-btx": btx_app, "flexo-embed": embed_app,
    "flexo-data": data_app, "flexo-eval": eval_app, "flexo-fit-router": fit_app,
}  # fmt: skip
DOMAINS = ("math", "code-2", "2024")
FOLDER = Path("/data")
FILES = {f"{name}/{part}": FOLDER / name / f"{part}.jsonl.gz" for name in DOMAINS for part in ("train", "test")}
TEXT = StudyText(FOLDER, DOMAINS, FILES | {"math/valid": FOLDER / "math/valid.jsonl"})


def steps_of(chosen: Study, only: list[str] | None = None) -> list[Step]:
    return study_steps(chosen, TEXT, "test", anchor_given=False, only=only)


def understood(step: Step) -> None:
    program, *options = step.command
    if program in APPS:
        command: Any = typer.main.get_command(APPS[program])
        if isinstance(command, click.Group):
            command, options = command.commands[options[0]], options[1:]
        command.make_context(program, list(options))
        return
    cfg = compose(program, list(options))
    read(cfg, "data", DataOptions, apart=("public", "path"))
    read(cfg, "optimizer", OptimizerOptions)
    read(cfg, "loss", LossOptions)
    assert str(read(cfg, "output", Path)) == step.makes
    if program == "train_router":
        read(cfg, "router", RouterOptions)
        assert read(cfg, "proxies", dict[str, Path]).keys() in ({*DOMAINS}, set())
    if program == "train_expert":
        domain = read(cfg, "domain", Domain)
        assert (domain.train is None) == (cfg.data.mixture is not None) and isinstance(domain.name, str)
        whole = cfg.model.kind != "paired"
        read(cfg, "model", WholeOptions if whole else PairOptions, apart=() if whole else ("kind",))


def test_every_command_is_understood() -> None:
    steps = steps_of(study("full", "study.seeds=[0]"))
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        for step in {step.alike: step for step in steps}.values():
            understood(step)


@pytest.mark.parametrize("name", ["small", "full"])
def test_everything_is_made_once_and_after_what_it_needs(name: str) -> None:
    chosen = study(name)
    before: set[str] = set()
    for step in steps_of(chosen):
        assert before.issuperset(step.needs) and step.makes not in before, step
        before.add(step.makes)
    assert {f"seed{seed}/test/{recipe}.json" for seed in chosen.seeds for recipe in chosen.all} <= before
    assert ("seed1/anchor" in before) == chosen.anchor_each_seed


def test_the_important_comes_first_and_ablations_come_after_all_seeds() -> None:
    full = study("full")
    measured = [step.makes for step in steps_of(full) if step.measures]
    rows = [
        (group, seed, recipe) for group in (full.recipes, full.ablations) for seed in full.seeds for recipe in group
    ]
    assert measured == [f"seed{seed}/test/{recipe}.json" for _, seed, recipe in rows]
    assert list(full.recipes)[:4] == ["ours", "ours-fit", "dense", "soup"]


def test_each_seed_trains_with_its_own_on_a_shared_anchor_and_budget() -> None:
    steps = steps_of(study("full", "study.seeds=[3,4]", "study.tokens=5000"))
    trained = [step for step in steps if step.command[0] == "train_expert"]
    for step in trained:
        assert f"seed={step.makes[4]}" in step.command and "anchor.path=anchor" in step.command
    tokens = Counter(o for step in trained for o in step.command if o.startswith("data.tokens="))
    assert tokens == {"data.tokens=5000": len(trained) - 6, "data.tokens=50000": 2}  # mixtures match FLOPs instead
    (proxies,) = [step for step in steps if step.makes == "proxies/math.jsonl.gz"]
    assert proxies.command[2] == "corpora/math"
    first = trained[0].command
    assert "domain.train=corpora/math/train.jsonl.gz" in first and "domain.test=corpora/math/valid.jsonl" in first


def test_one_longer_expert_stands_beside_those_of_ours() -> None:
    (merge,) = [step for step in steps_of(study("full", "study.seeds=[0]")) if step.makes == "seed0/models/longer"]
    assert merge.command[1:4] == ("seed0/longer/math.pt", "seed0/ours/code-2.pt", "seed0/ours/2024.pt")


def test_a_second_fit_measures_in_the_model_of_the_first_and_public_text_too() -> None:
    steps = {step.makes: step for step in steps_of(study("full", "study.seeds=[0]"), ["ours-refit"])}
    public = steps["seed0/ours-refit/public-embedding.safetensors"]
    assert public.needs == ("anchor", "seed0/models/ours-fit")
    assert public.command[1] == "corpora/public" and public.command[-4:-2] == ("--model", "seed0/models/ours-fit")
    fit = steps["seed0/models/ours-refit"].command
    assert fit[:3] == ("flexo-fit-router", "seed0/models/ours-fit", public.makes)
    first = steps["seed0/models/ours-fit"].command
    assert first[1] == "seed0/models/ours" and not any("public" in part for part in first)


def test_chosen_recipes_bring_what_they_lean_on_and_measure_themselves_alone() -> None:
    steps = steps_of(study("full", "study.seeds=[0]"), ["ours-rt"])
    assert [step.makes for step in steps if step.measures] == ["seed0/test/ours-rt.json"]
    assert {step.recipe for step in steps} == {"anchor", "ours", "proxies", "ours-rt"}
    with pytest.raises(InputError, match="no recipe 'our'"):
        steps_of(study("full"), ["our"])


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("{of: later, measure: []}", "leans on 'later'"),
        ("{merge: []}", "nothing to train"),
        ("{of: dense, merge: [], soup: 0}", "one of merge, soup"),
        ("{of: dense, router: []}", "no model whose router could be trained"),
        ("{of: dense, fit: []}", "recipe with merge or fit"),
        ("{of: ours, merge: [], inside: true}", "inside says where fit is measured"),
        ("{of: dense, soup: 1}", "share of the anchor"),
        ("{expert: []}", "expert"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_by_name(recipe: str, said: str) -> None:
    with pytest.raises(InputError, match=f"bad.*{said}"):
        study("small", f"+study.ablations.bad={recipe}")
