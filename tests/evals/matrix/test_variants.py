"""Each row of a table is the model that it is named after."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from evals.matrix.evaluate import Scoring, evaluate, read_domains
from evals.matrix.model_loader import read_given
from evals.matrix.results import Results
from evals.matrix.variants import Extras
from evals.scoring.classifier import learn_pooled, measure_chosen
from evals.scoring.ensemble import Member, Weighing, measure_ensemble
from evals.scoring.held_out import Reading
from evals.scoring.measure import bits_per_byte, measure
from evals.scoring.mixed_text import BLEND, SWITCH
from flexo.errors import InputError
from inference.select import select_experts
from merge.formats.expert_file import open_expert
from merge.formats.model_folder import ModelFolder
from tests.flexmix.text import TEXTS, write_jsonl
from tests.inference.models import load, merge_domains

LENGTH = 16


def results_of(models: list[str], corpora: Path, anchor: Path | None = None, **extras: Any) -> Results:
    scoring = Scoring(LENGTH, "auto", "cpu")
    return evaluate(models, Reading(corpora, max_bytes=10_000), anchor=anchor, extras=Extras(**extras), scoring=scoring)


def test_variants_are_models_of_their_own(
    merged: Path, tiny_anchor: Path, corpora: Path, make_expert: Any, tmp_path: Path
) -> None:
    """Without an expert, with the first ones, with fewer active: as if merged so. And pairs, from files or a merge."""
    wanted = {"active": (1, 3), "opt_out": True, "growing": True, "pairs": True}
    file = make_expert("math")
    found = results_of([f"m={merged}", f"file={file}"], corpora, tiny_anchor, **wanted)
    expected: dict[str, tuple[list[str], int]] = {
        "pair math": (["math"], 2), "pair news": (["news"], 2), "m": (["math", "news"], 2), "file": (["math"], 2),
        "m top-1": (["math", "news"], 1), "m top-3": (["math", "news"], 3),
        "m without math": (["news"], 2), "m without news": (["math"], 2),
        "m with 2 experts": (["math"], 2), "m with 3 experts": (["math", "news"], 2),
    }  # fmt: skip
    assert {row.name for row in found.models} == expected.keys() | {"anchor", "m with 1 expert"}
    texts = read_domains(read_given([str(merged)], None), Reading(corpora, max_bytes=10_000))
    folders: dict[str, Path] = {}
    for name, (domains, top_k) in expected.items():
        folder = folders.setdefault(f"{domains}{top_k}", tmp_path / f"{'-'.join(domains)}-{top_k}")
        model = load(folder if folder.exists() else merge_domains(make_expert, folder, domains, top_k))
        for domain, text in texts.items():
            alone = measure(model, text, length=LENGTH, experts=["public", *domains])
            cell = found.cell(name, domain)
            assert (cell.bits_per_byte, cell.accuracy) == (pytest.approx(alone.bits_per_byte, rel=1e-6), alone.accuracy)
            assert cell.routing is not None and alone.routing is not None
            assert cell.routing.entropy == pytest.approx(alone.routing.entropy, rel=1e-5)
            shares = cell.routing.active_share
            assert [sum(row) for row in shares] == pytest.approx([1.0] * len(shares))
    anchor = load(tiny_anchor)
    for domain, text in texts.items():
        alone = bits_per_byte(anchor, text, length=LENGTH)
        assert (
            found.bits("anchor", domain) == pytest.approx(found.bits("m with 1 expert", domain)) == pytest.approx(alone)
        )
    assert found.anchor == found.models[0]
    worst = found.worst("m")
    assert worst is not None and worst[1] == max(found.bits("m", d) / found.bits("anchor", d) - 1 for d in texts)


def test_an_anchor_is_read_once_for_all_its_experts_and_every_file_is_checked(
    tiny_anchor: Path, corpora: Path, make_expert: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [make_expert(name, path=tmp_path / f"{name}.pt") for name in ("math", "news", "code")]
    read: list[Path] = []
    whole = ModelFolder.digest
    monkeypatch.setattr(ModelFolder, "digest", lambda self, *told: (read.append(self.folder), whole(self, *told))[1])
    monkeypatch.setattr(
        "merge.tensor_io.shard_writer.Scan", lambda *_: pytest.fail("the merge reads what was read before")
    )
    assert len(results_of([str(path) for path in files], corpora, tiny_anchor).models) == 4
    assert read == [tiny_anchor]
    data = bytearray(files[1].read_bytes())
    needle = open_expert(files[1]).tensor("layers.2.down_proj.weight").numpy().tobytes()
    data[data.index(needle)] ^= 1
    files[1].write_bytes(data)
    with pytest.raises(InputError, match=r"news\.pt: layers\.2\.down_proj\.weight does not match the sha256"):
        results_of([str(path) for path in files], corpora, tiny_anchor)
    other = tmp_path / "other"
    shutil.copytree(tiny_anchor, other)
    save_file(
        {name: tensor + 1e-3 * ("norm" in name) for name, tensor in load_file(other / "model.safetensors").items()},
        other / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(InputError, match=r"other: the anchor's digest is \w+, the experts were trained against"):
        results_of([str(files[0])], corpora, other)


def test_ensembles_classifiers_and_mixed_text(
    tiny_anchor: Path, make_anchor: Any, corpora: Path, make_expert: Any, tmp_path: Path
) -> None:
    dense = make_anchor(seed=1)
    corpora = Path(shutil.copytree(corpora, tmp_path / "corpora"))
    models = [f"math={dense}", f"x={make_expert('math')}", f"y={make_expert('news')}"]
    learning = {"public": TEXTS * 3, "math": ["let x be a number"] * 5, "news": ["a vote was held"] * 5}
    for domain, documents in learning.items():
        write_jsonl(corpora / domain / "train.jsonl", documents)
    found = results_of(models, corpora, tiny_anchor, btm=2, classifier=True, mixed=True)
    assert [domain.name for domain in found.domains] == ["math", "poems", "public", SWITCH, BLEND]
    assert found.pure == ["math", "poems", "public"]
    kinds = ["anchor", "dense", "pair", "pair", "ensemble", "classifier", "classifier"]
    assert [row.kind for row in found.models] == kinds
    given = read_given(models, tiny_anchor)
    texts = read_domains(given, Reading(corpora, max_bytes=10_000), LENGTH)
    members = [Member("public", load(tiny_anchor)), Member("math", load(dense))]
    whole = load(merge_domains(make_expert, tmp_path / "pairs", ["math", "news"], 3))
    sets = {"public": ["public"], "math": ["public", "math"], "news": ["public", "news"]}
    chosen = [Member(name, whole, partial(select_experts, whole, sets[name], len(sets[name]))) for name in sets]
    for domain, text in texts.items():
        ensemble = measure_ensemble(members, text, Weighing(top_k=2), length=LENGTH)
        assert found.bits("BTM top-2", domain) == pytest.approx(ensemble.bits_per_byte, rel=1e-6)
        routed = measure_chosen(chosen, text, learn_pooled(learning), length=LENGTH)
        assert found.bits("classifier, pooled", domain) == pytest.approx(routed.bits_per_byte, rel=1e-6)


def test_results_of_two_tokenizers_are_refused(make_anchor: Any, tmp_path: Path) -> None:
    one, other = make_anchor(), make_anchor()
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text + " ")  # the same one, saved again
    assert len(read_given([f"a={one}", f"b={other}"], None)) == 2
    (other / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<|end|>"))
    with pytest.raises(InputError, match="its tokenizer is not that of"):
        read_given([f"a={one}", f"b={other}"], None)


def test_the_anchor_is_found(tiny_anchor: Path, merged: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a/test.jsonl", TEXTS)
    given = read_given([str(merged), f"base={tiny_anchor}"], None)
    assert [(model.name, model.kind) for model in given] == [("base", "anchor"), ("model", "merged")]
    given = read_given([str(merged)], tiny_anchor)
    assert [(model.name, model.kind) for model in given] == [("anchor", "anchor"), ("model", "merged")]
