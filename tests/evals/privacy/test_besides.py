"""What is left behind by an expert, and what rights to it are worth, on tiny models."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from evals.privacy.attacks.documents import Texts, tokenised_by
from evals.privacy.attacks.part import Extra, Row
from evals.privacy.besides import rows
from evals.privacy.besides.attribution import traced
from evals.privacy.besides.leaving import UNEQUAL
from evals.privacy.besides.rows import mean_inputs
from evals.privacy.leak import Leak, leak
from evals.scoring.measure import measure
from evals.scoring.sliding_windows import TokenisedText
from flexmix.documents.corpus import read_documents
from flexmix.domains.embedding import Embedding
from flexmix.domains.moments import Moments
from flexo.errors import InputError
from inference.attribution import attribute
from inference.load import load_model
from inference.select import select_experts
from merge.formats.anchor_folder import open_anchor
from merge.formats.architecture import ROUTER_WEIGHT
from merge.formats.expert_file import write_expert
from merge.planning.membership import opt_out
from tests.flexmix.text import TEXTS, write_jsonl
from tests.inference.models import merge_domains
from tests.merge.tiny import expert_header, expert_values
from trainers.router.row_init import moment_tensors

N = 20  # documents of a kind


@pytest.fixture(scope="module")
def never(make_expert: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The merged model as if `math` had never been in it."""
    return merge_domains(make_expert, tmp_path_factory.mktemp("never") / "model", ["news"], top_k=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Members and non-members, and a corpus folder for each of two domains."""
    folder = tmp_path_factory.mktemp("texts")
    members = [f"{text} {number}" for number in range(N // 4) for text in TEXTS]
    others = [f"{number} {text}" for number in range(N // 4) for text in TEXTS]
    for domain, part in (("math", members), ("news", others)):
        for split in ("train", "test"):
            write_jsonl(folder / "domains" / domain / f"{split}.jsonl", part)
    write_jsonl(folder / "members.jsonl", members)
    write_jsonl(folder / "others.jsonl", others)
    return folder


def attack(folder: Path, model: Path, part: str, never: Path | None = None) -> Leak:
    texts = Texts(folder / "members.jsonl", folder / "others.jsonl")
    return leak(str(model), texts, parts=[part], extra=Extra(folder / "domains", never=never))


def unequal(found: Leak) -> dict[str, float]:
    return {row.group: row.value for row in found.rows if row.figure == UNEQUAL}


def test_what_an_expert_leaves_behind_is_nothing_to_the_bit(
    merged: Path, never: Path, folder: Path, tmp_path: Path
) -> None:
    found = attack(folder, merged, "leaving", never)
    ways = [
        f"{way}{force}"
        for way in ("left", "not entitled")
        for force in ("", ", forced onto public", ", forced onto news")
    ]
    assert unequal(found) == dict.fromkeys(ways, 0)
    figures = {row.group: row for row in found.rows if row.figure != UNEQUAL}
    assert figures["left, forced onto news"].value == figures["never had it, forced onto news"].value
    assert figures["with math"].value != figures["left"].value
    opt_out(merged, tmp_path / "left", drop=["math"])
    found = attack(folder, tmp_path / "left", "leaving", never)
    assert unequal(found) == dict.fromkeys(ways[:3], 0)


def test_another_model_is_seen(merged: Path, make_expert: Callable[..., Path], folder: Path, tmp_path: Path) -> None:
    """Also where only one expert differs, and only when it is made to speak alone."""
    other = merge_domains(lambda name: make_expert(name, seed=7), tmp_path / "never", ["news"], top_k=2)
    found = unequal(attack(folder, merged, "leaving", other))
    assert found["left"] == found["not entitled, forced onto news"] == 2 * N
    assert found["left, forced onto public"] == 0
    with pytest.raises(InputError, match="in the same order, without some"):
        attack(folder, other, "leaving", merged)


def rows_of(found: Leak, start: str) -> Iterator[Row]:
    return (row for row in found.rows if row.figure.startswith(start))


def test_rights_are_worth_what_they_change(merged: Path, folder: Path) -> None:
    found = attack(folder, merged, "access")
    assert {row.group for row in found.rows} == {"math", "news"} and len(found.rows) == 2 * 6
    assert all(0 <= row.value <= 1 for row in rows_of(found, "distinguishability"))
    assert all(row.reference == 0.5 for row in rows_of(found, "distinguishability from others, mean: AUC, loss less"))
    gaps = {row.group: row for row in rows_of(found, "utility gap to other rights, mean: nats")}
    model, _ = load_model(merged)
    text = tokenised_by(merged, list(read_documents(folder / "domains/math/test.jsonl")))
    losses = []
    for right in ("news", "math"):
        with select_experts(model, ["public", right]):
            losses.append(measure(model, text).nats_per_token)
    assert gaps["math"].value == pytest.approx(losses[0] - losses[1], abs=1e-5) != 0


def test_weights_are_those_that_an_attribution_has(merged: Path) -> None:
    model, tokenizer = load_model(merged)
    prompt = tokenizer("The cat sat", return_tensors="pt")["input_ids"]
    with attribute(model) as record:
        x_BS = model.generate(prompt, max_new_tokens=6, min_new_tokens=6, do_sample=False)
    (answer,) = record.answers(x_BS, prompt.shape[1])
    ids = x_BS[0].tolist()
    found = traced(model, TokenisedText([ids[1:]], 1, ids[0]), lambda _tokens: None)
    assert found.tokens[0].tolist() == ids[1:-1]  # the last token was read nowhere
    torch.testing.assert_close(found.weights[0][-6:].double(), answer.weight_TLE, rtol=0, atol=1e-5)


def test_tokens_are_read_back_from_weights_and_not_from_summaries(merged: Path, folder: Path) -> None:
    found = leak(str(merged), Texts(), parts=["attribution"], extra=Extra(folder / "domains"))
    top = {row.figure.split("back ")[1]: row for row in found.rows if row.group == "all"}
    assert top["from weights, top 1"].value > 0.9 > 0.3 > top["from summary, top 1"].value
    assert top["from weights, top 10"].value >= top["from weights, top 1"].value
    assert top["from summary, top 1"].reference == top["from weights, top 1"].reference < 0.3
    assert {row.group for row in found.rows} == {"all", "math", "news"}


def test_text_of_single_tokens_is_no_text_to_read_back(merged: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_jsonl(tmp_path / "math" / f"{split}.jsonl", ["a", "b"])
    with pytest.raises(InputError, match="no train document of two tokens"):
        leak(str(merged), Texts(), parts=["attribution"], extra=Extra(tmp_path))


@pytest.fixture(scope="module")
def tilted(folder: Path, tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An expert of the anchor's own weights whose rows point from the mean state of other documents to its own."""
    anchor, (model, _) = open_anchor(tiny_anchor), load_model(tiny_anchor)
    means = [
        mean_inputs(model, tokenised_by(tiny_anchor, list(read_documents(folder / name)))).mean(0)
        for name in ("members.jsonl", "others.jsonl")
    ]
    values = expert_values("math", anchor, trained=False)
    for n in range(anchor.architecture.num_hidden_layers):
        values[ROUTER_WEIGHT.format(n=n)] = anchor.public_row(n) + (means[0][n] - means[1][n]).float()
    path = tmp_path_factory.mktemp("tilted") / "math.pt"
    write_expert(path, expert_header("math", anchor), values)
    return path


def test_rows_tell_on_their_own(folder: Path, tilted: Path, tiny_anchor: Path) -> None:
    texts = Texts(folder / "members.jsonl", folder / "others.jsonl")
    extra = Extra(folder / "domains")
    found = leak(str(tilted), texts, against=tiny_anchor, parts=["rows"], extra=extra).rows
    told = {row.group: row.value for row in found if row.figure == rows.MEMBER}
    assert set(told) == {"header", "rows", "expert"} and told["rows"] > 0.8
    assert told["expert"] == pytest.approx(0.5, abs=0.2)  # two copies of one network are that network
    both = {row.group: row for row in found if row.figure == rows.WITH}
    assert both["rows"].value > 0.75 and both["rows"].reference == told["expert"]
    assert {row.group for row in found if row.figure == rows.DOMAIN} == {"header", "rows", "expert"}


def test_an_embedding_or_proxies_add_their_scores(
    folder: Path, tilted: Path, tiny_anchor: Path, tmp_path: Path
) -> None:
    pytest.importorskip("sklearn")
    shipped = Path(shutil.copytree(tiny_anchor, tmp_path / "anchor"))
    anchor, wide = open_anchor(shipped), torch.eye(32).expand(3, 32, 32)
    public, own = ([Moments.of(x_D, wide[0]) for x_D in torch.ones(3, 32) * size] for size in (0.1, 0.2))
    write_jsonl(shipped / "flexo/public/train.jsonl", [*TEXTS, *read_documents(folder / "others.jsonl")])
    save_file(moment_tensors(public), shipped / "flexo/public_moments.safetensors")
    Embedding.of("math", "router_input", anchor.digest, own, False).write(tmp_path / "math.safetensors")
    write_jsonl(tmp_path / "proxies.jsonl", list(read_documents(folder / "members.jsonl"))[:8])
    texts = Texts(folder / "members.jsonl", folder / "others.jsonl")
    extra = Extra(embedding=tmp_path / "math.safetensors", proxies=tmp_path / "proxies.jsonl")
    found = leak(str(tilted), texts, against=shipped, parts=["rows"], extra=extra).rows
    assert {row.group for row in found} == {"header", "rows", "embedding", "proxies", "expert"}
    for some in ([], read_documents(shipped / "flexo/public/train.jsonl")):
        write_jsonl(tmp_path / "none.jsonl", list(some))
        with pytest.raises(InputError, match="Expected some of its public documents"):
            leak(str(tilted), texts, against=shipped, parts=["rows"], extra=Extra(proxies=tmp_path / "none.jsonl"))
    Embedding.of("math", "router_input", anchor.digest, own, True).write(tmp_path / "means.safetensors")
    with pytest.raises(InputError, match="without --means-only"):
        extra = Extra(embedding=tmp_path / "means.safetensors")
        leak(str(tilted), texts, against=shipped, parts=["rows"], extra=extra)
