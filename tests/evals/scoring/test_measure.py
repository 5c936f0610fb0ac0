"""Measurements are sums over the same tokens, and an ensemble of one model is that model."""

from __future__ import annotations

import copy
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from evals.scoring.classifier import learn_pairwise, learn_pooled, measure_chosen
from evals.scoring.ensemble import Member, Weighing, measure_ensemble, posterior
from evals.scoring.held_out import find_domains, read_texts
from evals.scoring.measure import Measurement, measure
from evals.scoring.mixed_text import BLEND, SWITCH, mixed_texts
from evals.scoring.router_stats import RouterSums
from evals.scoring.sliding_windows import TokenisedText
from flexmix.tokens.encoder import load_tokenizer
from flexmix.tokens.shard import prepare_shard
from flexo.errors import InputError
from inference.select import select_experts
from tests.flexmix.text import TEXTS, write_jsonl
from tests.inference.models import load

NAMES = ["public", "math", "news"]


@pytest.fixture(scope="module")
def model(merged: Path) -> Any:
    return load(merged)


@pytest.fixture(scope="module")
def texts(corpora: Path, merged: Path) -> dict[str, TokenisedText]:
    return read_texts(find_domains(corpora, None, []), merged, 10_000)


def member(model: Any, domain: str) -> Member:
    names = ["public"] if domain == "public" else ["public", domain]
    return Member(domain, model, partial(select_experts, model, names))


def test_routing_is_the_gates_own(model: Any, texts: dict[str, TokenisedText]) -> None:
    text = TokenisedText(texts["math"].documents[:1], 20, texts["math"].end_of_text, ("math",))
    ids = [text.end_of_text, *text.documents[0]]
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_router_logits=True)
    found = measure(model, text, experts=NAMES, length=64)
    assert found.routing is not None and found.tokens == text.tokens
    assert found.correct == int((out.logits[0, :-1].argmax(-1) == torch.tensor(ids[1:])).sum())
    for n, logits in enumerate(out.router_logits):
        p_TE = logits[:-1].double().softmax(-1)
        assert found.routing.mass[n] == pytest.approx(p_TE.mean(0).tolist(), abs=1e-5)
        assert sum(found.routing.mass[n]) == pytest.approx(1) and sum(found.routing.active[n]) == pytest.approx(2)
        assert found.routing.own is not None and found.routing.own[n] == pytest.approx(found.routing.mass[n][1])
    assert Measurement.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_agreement_of_a_router_made_by_hand() -> None:
    sums = RouterSums(["public", "math"], ("math", "public", "poems"), [True, True])
    sure, unsure = (
        torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.5, 0.5]]),
        torch.tensor([[0.6, 0.4], [0.6, 0.4], [0.5, 0.5]]),
    )
    sums.add([sure, unsure], [sure > 0, unsure > 0], torch.tensor([0, 1, 2]))
    found = sums.result()
    assert (found.tokens, found.own_tokens) == (3, 2)  # poems have no expert
    assert found.agreement == [1.0, 0.5] and found.agreement_overall == 1.0
    assert found.own == pytest.approx([1.0, 0.5])
    assert found.entropy == pytest.approx([1 / 3, (1 + 2 * 0.970951) / 3], abs=1e-6)


def test_a_layer_whose_experts_are_the_same_counts_for_nothing(model: Any, texts: dict[str, TokenisedText]) -> None:
    same = copy.deepcopy(model)
    with torch.no_grad():
        for weight in same.model.layers[0].mlp.experts.parameters():
            weight[1:] = weight[0]
    for one, chooses in ((model, [True, True, True]), (same, [False, True, True])):
        found = measure(one, texts["math"], experts=NAMES).routing
        assert found is not None and found.own is not None and found.chooses == chooses
        assert found.own_mass == pytest.approx(sum(found.own[1:]) / 2 if one is same else sum(found.own) / 3)
    last = RouterSums(["public", "math"], ("math",), [False, True])
    wrong, right = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.4, 0.6]])
    last.add([wrong, right], [wrong > 0, right > 0], torch.tensor([0]))
    assert (last.result().own_mass, last.result().agreement_overall) == (pytest.approx(0.6), 1.0)


def test_an_ensemble_of_one_or_of_the_same_is_the_model(model: Any, texts: dict[str, TokenisedText]) -> None:
    for text in texts.values():
        alone = measure(model, text, length=16)
        for members in ([Member("a", model)], [Member("a", model), Member("b", model)]):
            found = measure_ensemble(members, text, length=16, batch_tokens=40)
            assert found.nats == pytest.approx(alone.nats, rel=1e-6)
            assert (found.correct, found.tokens) == (alone.correct, alone.tokens) == (alone.correct, text.tokens)


def test_equal_weights_are_the_mean_of_probabilities(model: Any, texts: dict[str, TokenisedText]) -> None:
    text = TokenisedText(texts["math"].documents[:1], 20, texts["math"].end_of_text)
    ids, p = torch.tensor([[text.end_of_text, *text.documents[0]]]), []
    for domain in NAMES:
        with torch.no_grad(), member(model, domain).enter():
            p.append(model(ids).logits[0, :-1].double().softmax(-1))
    expected = -torch.stack(p).mean(0).gather(1, ids[0, 1:, None]).log().sum().item()
    members = [member(model, domain) for domain in NAMES]
    assert measure_ensemble(members, text, Weighing(prefix=0), length=64).nats == pytest.approx(expected, rel=1e-6)
    only_math = measure_ensemble(members, text, Weighing(1, 0, [1, 2, 1]), length=64)
    assert only_math.routing is not None and only_math.routing.active == [[0, 1, 0]]
    with pytest.raises(InputError, match="top_k 4: there are 3 models"):
        measure_ensemble(members, text, Weighing(top_k=4))


def test_weights_come_from_the_tokens_before_and_the_prefix_alone() -> None:
    log_p = torch.tensor([[[0.0, -1.0, -1.0, -9.0]], [[0.0, -2.0, -3.0, -1.0]]])
    weights = posterior(log_p, torch.tensor([0.5, 0.5]), prefix=2)
    for place, odds in enumerate([0.0, 1.0, 3.0, 3.0]):
        assert torch.logit(weights[0, 0, place]).item() == pytest.approx(odds)
    assert torch.logit(posterior(log_p, torch.tensor([0.5, 0.5]), None)[0, 0, 3]).item() == pytest.approx(-5)


def test_a_classifier_sends_whole_documents(model: Any, texts: dict[str, TokenisedText]) -> None:
    members = [member(model, domain) for domain in NAMES]
    words = {"public": ["the cat sat on a mat"] * 5, "math": ["let x be a number"] * 5, "news": ["a vote was held"] * 5}
    for learn in (learn_pooled, learn_pairwise):
        choose = learn(words)
        assert choose([documents[0] for name, documents in words.items()][1:]) == ["math", "news"]
    found = measure_chosen(members, texts["math"], lambda asked: ["math"] * len(asked), length=16)
    with members[1].enter():
        alone = measure(model, texts["math"], length=16)
    assert found.nats == pytest.approx(alone.nats) and found.tokens == alone.tokens
    assert found.routing is not None and found.routing.agreement == [1.0] and found.routing.entropy == [0.0]


def test_mixed_text_knows_whose_each_token_is(merged: Path, texts: dict[str, TokenisedText]) -> None:
    tokenizer, end = load_tokenizer(merged)
    made = mixed_texts(texts, tokenizer, windows=6, length=64, seed=1)
    assert list(made) == [SWITCH, BLEND]
    for text in made.values():
        assert text.texts is not None and text.domain_ids is not None and text.end_of_text == end
        assert text.nbytes == sum(len(whole.encode()) for whole in text.texts)
        for ids, domain_ids, whole in zip(text.documents, text.domain_ids, text.texts, strict=True):
            shown = whole.replace("\n", "")  # the tiny tokenizer has no line break
            assert tokenizer.decode(ids, skip_special_tokens=False) == shown and len(ids) == len(domain_ids)
    again = mixed_texts(texts, tokenizer, windows=6, length=64, seed=1)
    assert again == made != mixed_texts(texts, tokenizer, windows=6, length=64, seed=2)
    assert all(len(set(domain_ids)) > 1 for domain_ids in made[SWITCH].domain_ids or ())


@pytest.mark.parametrize("form", ["test.jsonl", "test/part.jsonl", "test/shard.json"])
def test_valid_and_final_are_the_halves_of_test(tmp_path: Path, tiny_anchor: Path, form: str) -> None:
    texts = [text + "." * n for text in TEXTS for n in range(5)]
    if form.endswith("shard.json"):
        prepare_shard(write_jsonl(tmp_path / ".text.jsonl", texts), tiny_anchor, tmp_path / ".cache")
        (tmp_path / "math").mkdir()
        next(path.parent for path in (tmp_path / ".cache").glob("*/shard.json")).rename(tmp_path / "math/test")
    else:
        write_jsonl(tmp_path / "math" / form, texts)
    halves = [
        read_texts(find_domains(tmp_path, None, [], split), tiny_anchor, 10_000, split)["math"].texts or []
        for split in ("valid", "final")
    ]
    assert sorted(halves[0] + halves[1]) == sorted(texts)


def test_text_kept_from_the_hub_is_found_by_name(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "pubmed-hub-0123abcd/test.jsonl.gz", TEXTS)
    assert find_domains(tmp_path, ["pubmed"], []) == find_domains(tmp_path, None, []) == {"pubmed": path}
    write_jsonl(tmp_path / "pubmed-hub-4567abcd/test.jsonl.gz", TEXTS)
    with pytest.raises(InputError, match="read from the hub with 2 settings"):
        find_domains(tmp_path, ["pubmed"], [])
