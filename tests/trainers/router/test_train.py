"""Training the router rows of a merged model: the rows learn, and nothing else moves."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from flexmix.packing.windows import Batch
from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from merge.formats.architecture import ROUTER_WEIGHT
from merge.formats.expert_file import open_expert, write_expert
from merge.formats.manifest import read_manifest
from merge.formats.model_folder import ModelFolder
from merge.planning.merge_plan import execute
from tests.merge.tools import even_plan
from tests.trainers.runs import TRAINER, data_options, expert_arguments
from trainers.expert.paired import PairOptions
from trainers.expert.train import train_expert
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run import Run
from trainers.router.module import LitRouted, balance_loss
from trainers.router.train import RouterOptions, RouterResult, train_router
from trainers.router.trained_rows import train_rows_only

TrainRouter = Callable[..., RouterResult]


@pytest.fixture(scope="session")
def misrouted(small_anchor: Path, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merge of two trained experts whose rows were exchanged: as wrong as routing can be."""
    folder = tmp_path_factory.mktemp("misrouted")
    paths = []
    for domain in ("math", "code"):
        changes = {  # rows that know, and are sure of it
            "data": data_options(folder / "tokens", public_share=0.25, moment_windows=1000),
            "model": PairOptions(router_scale=1.5),
        }
        result = train_expert(**expert_arguments(domain, small_anchor, shards, folder, **changes))
        assert result is not None
        paths.append(result.path)
    experts = [open_expert(path) for path in paths]
    swapped = []
    for expert, other in zip(experts, reversed(experts), strict=True):
        tensors = {name: expert.tensor(name) for name in expert.header.tensors}
        tensors |= {name: other.tensor(name) for name in (ROUTER_WEIGHT.format(n=n) for n in range(2))}
        swapped.append(folder / f"swapped-{expert.domain}.pt")
        write_expert(swapped[-1], expert.header, tensors)
    execute(even_plan(swapped, small_anchor, top_k=2, public_weight=2.0), folder / "model")
    return folder / "model"


@pytest.fixture
def retrain(misrouted: Path, small_anchor: Path, shards: Path, tmp_path: Path) -> TrainRouter:
    """`retrain(output=..., ...)`: trains the router of `misrouted` on both domains and public text."""

    def run(**changes: Any) -> RouterResult:
        arguments: dict[str, Any] = {
            "model_path": misrouted,
            "public_path": shards / "public",
            "proxies": {"math": shards / "math", "code": shards / "code"},
            "router": RouterOptions(),
        }
        arguments |= {name: changes.pop(name) for name in arguments.keys() & changes.keys()}
        data = data_options(tmp_path / "tokens", tokens=32 * 8 * 40, batch_size=8, eval_windows=100)
        optimizer = OptimizerOptions(lr=3e-2)
        routine = Run(tmp_path / "rt", data, optimizer, LossOptions(), TRAINER, say=lambda _line: None)
        result = train_router(**arguments, run=replace(routine, **changes))
        assert result is not None
        return result

    return run


def test_rows_learn_the_mix_and_nothing_else_moves(retrain: TrainRouter, misrouted: Path) -> None:
    result = retrain()
    for name in ("math", "code"):
        before, after = result.about["losses"][name]
        assert after < before - 0.05, name
        assert 0 < result.after[f"{name}/router_mass"] < 1
    old, new = ModelFolder(misrouted), ModelFolder(result.path)
    assert old.names == new.names
    for name in old.names:
        same = torch.equal(old.tensor(name), new.tensor(name))
        assert same == ("mlp.gate." not in name), name
        if "mlp.gate." in name:
            assert torch.equal(old.tensor(name)[0], new.tensor(name)[0]), "the public row is that of all owners"
    for path in misrouted.iterdir():
        if path.name not in ("model.safetensors", "manifest.json", "README.md"):
            assert sha256_file(path) == sha256_file(result.path / path.name)
    assert {path.name for path in misrouted.iterdir()} == {path.name for path in result.path.iterdir()}
    manifest = read_manifest(result.path)
    about = manifest["router_training"]
    assert about == json.loads(json.dumps(result.about)) and manifest["experts"] == read_manifest(misrouted)["experts"]
    assert set(about["text"]) == {"public", "math", "code"} and about["private_text"] is False
    assert about["text"]["math"]["documents"] == 200 and about["text"]["public"]["share"] == 2 / (2 + 2)
    assert about["tokens"] == 32 * 8 * 40
    card = (result.path / "README.md").read_text()
    assert "then the router was trained on 10,240 tokens of public text, 50% public, 25% math, 25% code" in card
    assert f"flexo-optout {result.path.name}/ --drop code" in card and "The rows that stay were made with it" in card
    assert not (result.path.with_name("rt.run") / "last.ckpt").exists()
    AutoModelForCausalLM.from_pretrained(result.path)


def test_a_weight_on_staying_holds_the_routing(retrain: TrainRouter, tmp_path: Path) -> None:
    short = data_options(tmp_path / "tokens", tokens=32 * 8 * 10, batch_size=8)
    free = retrain(data=short, router=RouterOptions(train_public_row=True))
    held = retrain(data=short, loss=LossOptions(stay=100.0), output=tmp_path / "held")

    def moved(result: RouterResult) -> float:
        return abs(result.after["math/router_mass"] - result.before["math/router_mass"])

    assert moved(held) < 0.3 * moved(free)
    assert (free.about["rows"], held.about["stay"]) == ("all", 100.0)


def test_rows_learn_whose_text_it_is(retrain: TrainRouter) -> None:
    even = RouterOptions(public_share=1 / 3)
    result = retrain(loss=LossOptions(own_domain=10.0), router=even, optimizer=OptimizerOptions(lr=1.0))
    for name in ("math", "code"):
        before, after = (masses[f"{name}/router_mass"] for masses in (result.before, result.after))
        assert after > before + 0.1, name
    assert result.after["public/router_mass"] > 0.9
    assert result.about["own_domain"] == 10.0


def test_a_stopped_run_goes_on_bit_for_bit(
    retrain: TrainRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.router import train as router

    short = data_options(tmp_path / "tokens", tokens=32 * 8 * 4, batch_size=8)
    whole = retrain(data=short, output=tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(router, "write_rows", lambda *_a: (_ for _ in ()).throw(InputError("disk full")))
        with pytest.raises(InputError, match="disk full"):
            retrain(data=short)
    kept = torch.load(tmp_path / "rt.run/last.ckpt", weights_only=True)["state_dict"]
    assert kept and all(name.endswith("mlp.gate.rows") for name in kept), "frozen weights were saved"
    assert sha256_file(retrain(data=short).path / "model.safetensors") == sha256_file(whole.path / "model.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"proxies": {"mth": Path("x")}}, r"proxies\.mth: no such expert in .*It has math, code"),
        ({"proxies": {"math": Path("nowhere.jsonl")}}, r"nowhere\.jsonl: no such file"),
        ({"model_path": Path("nowhere")}, r"nowhere: no manifest\.json"),
        ({"public_path": Path("nowhere")}, r"nowhere: no such folder"),
    ],
)
def test_unusable_input_is_refused(retrain: TrainRouter, tmp_path: Path, changes: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        retrain(**changes)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def routed(misrouted: Path) -> tuple[LitRouted, Batch]:
    """Rows to train under every term, and two windows: of the public text, and of the second expert's."""
    model = AutoModelForCausalLM.from_pretrained(misrouted)
    rows = [layer.mlp.gate.weight.detach().clone() for layer in model.model.layers]
    loss = LossOptions(stay=1.0, own_domain=1.0)
    domains, sources = ["public", "math", "code"], ["code", "public"]
    lit = LitRouted(train_rows_only(model, rows), OptimizerOptions(lr=1.0), loss, 1, [], domains, sources)
    ids_BT = torch.randint(0, 300, (2, 8), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids_BT, "labels": ids_BT, "position_ids": torch.arange(8).expand(2, 8)}
    return lit, batch | {"source": torch.tensor([1, 0])}


def test_the_balance_loss_is_its_formula() -> None:
    even_LNE = torch.zeros(2, 6, 3)
    assert float(balance_loss(even_LNE, 2)) == pytest.approx(2.0)
    assert float(balance_loss(even_LNE + torch.tensor([9.0, 0, 0]), 1)) == pytest.approx(3.0, rel=1e-2)


def test_staying_is_the_divergence_from_the_start(routed: tuple[LitRouted, Batch]) -> None:
    lit, batch = routed
    gate = lit.model.model.layers[0].mlp.gate
    start_ED = gate.weight().detach().clone()
    lit.next_token(batch)
    assert lit._terms(batch)["stay"].item() == pytest.approx(0, abs=1e-6)
    with torch.no_grad():
        gate.rows[0] += 1.0
    lit.next_token(batch)
    state_ND, _ = lit._seen[0]
    p, q = ((state_ND @ w.T).softmax(-1) for w in (start_ED, gate.weight()))
    expected = (p * (p / q).log()).sum(-1).mean() / 2
    assert lit._terms(batch)["stay"].item() == pytest.approx(expected.item(), rel=1e-3)


def test_whose_text_it_is_asks_only_experts_that_have_text(routed: tuple[LitRouted, Batch]) -> None:
    lit, batch = routed
    lit.next_token(batch)
    logits_LBTE = lit._logits().view(2, 2, 8, 3)
    of_public, of_code = logits_LBTE[:, 0][..., [0, 2]], logits_LBTE[:, 1][..., [0, 2]]
    right = torch.stack([of_public.softmax(-1)[..., 0], of_code.softmax(-1)[..., 1]])
    term = lit._terms(batch)["own_domain"]
    assert term.item() == pytest.approx(-right.log().mean().item(), rel=1e-5)
    term.backward()
    math_D, code_D = lit.model.model.layers[-1].mlp.gate.rows.grad  # rows below also move the states of this layer
    assert math_D.abs().max() == 0 < code_D.abs().max()
