"""The attacks find what a model has learnt by heart, and nothing in a model that has not seen the text."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

import evals.commands.flexo_leak
import evals.privacy.attacks.canaries
from evals.matrix.model_loader import Given
from evals.privacy.attacks import extraction
from evals.privacy.attacks.canaries import exposure
from evals.privacy.attacks.documents import Sample, Texts, tokenised_by
from evals.privacy.attacks.extraction import NEW, PREFIX, similarity
from evals.privacy.attacks.part import Context, Row, Settings
from evals.privacy.attacks.targets import Target
from evals.privacy.attacks.token_scores import score_documents
from evals.privacy.leak import Leak, leak, read_leak
from evals.report.report import write_report
from evals.scoring.measure import measure
from evals.scoring.sliding_windows import TokenisedText
from flexmix.canaries.manifest import Manifest, draw_canaries, read_manifest
from flexmix.canaries.plant import Planting, plant
from flexmix.documents.corpus import read_documents
from flexo.errors import InputError
from inference.load import load_model
from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import write_expert
from merge.tensor_io.json_file import write_json
from tests.flexmix.text import write_jsonl
from tests.merge.tiny import STATED, V, expert_header, expert_values
from tests.merge.tools import call

Capture = pytest.CaptureFixture[str]
STEPS = 120


def sentences(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = [
        one + other for one in ("cat", "dog", "mat", "sat", "let", "num") for other in ("s", "on", "ber", "ter", "a")
    ]
    return [" ".join(rng.choice(words) for _ in range(22)) for _ in range(count)]


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text, a copy of it with canaries, and their manifest."""
    folder = tmp_path_factory.mktemp("owned")
    write_jsonl(folder / "text/train.jsonl", [*sentences(24, 0), *sentences(4, 0)])  # four documents twice
    write_jsonl(folder / "text/test.jsonl", sentences(24, 1))
    plant(folder / "text", folder / "copy.jsonl", folder / "canaries.json", Planting((1, 4), each=2, coins=80, seed=0))
    return folder


@pytest.fixture
def learnt(owned: Path, tiny_anchor: Path, tmp_path: Path) -> Path:
    """The anchor after it has learnt the copy by heart."""
    model, tokenizer = load_model(tiny_anchor, "float32", "cpu")
    end = torch.tensor([model.config.eos_token_id])
    documents = tokenised_by(tiny_anchor, list(read_documents(owned / "copy.jsonl"))).documents
    x_BT = pad_sequence([torch.cat([end, torch.tensor(ids)])[:100] for ids in documents], True, -100)
    optimiser, run = torch.optim.Adam(model.parameters(), lr=1e-2), cast(Any, model)
    for _ in range(STEPS):
        run(input_ids=x_BT.clamp(min=0), labels=x_BT).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def figures(found: Leak, part: str) -> dict[tuple[str, str], float]:
    return {(row.figure, row.group): row.value for row in found.rows if row.part == part}


@pytest.mark.slow  # trains for half a minute
def test_a_model_that_knows_its_text_by_heart_gives_it_away(
    learnt: Path, owned: Path, tiny_anchor: Path, tmp_path: Path
) -> None:
    texts = Texts.of(owned / "text", canaries=owned / "canaries.json")
    settings = Settings(cache=tmp_path / "cache", others=31, device="cpu")
    found = leak(str(learnt), texts, against=tiny_anchor, settings=settings)
    told = figures(found, "membership")
    assert told["loss - anchor: AUC", "all"] > 0.99 and told["Min-K%++: AUC", "all"] > 0.9
    assert {group for _, group in told} == {"all", "1 in the text", "2 in the text"}
    assert all(row.low is not None and row.low <= row.value <= (row.high or 0) for row in found.rows if row.low)
    planted = figures(found, "canaries")
    assert planted["exposure, at most 5 bits", "4 in the text"] > 4
    bound = next(row for row in found.rows if row.figure.startswith("epsilon"))
    assert bound.value > 1
    again = leak(str(learnt), texts, against=tiny_anchor, settings=settings)
    assert again == found


def test_the_anchor_itself_gives_nothing_away(owned: Path, tiny_anchor: Path, make_anchor: Callable[..., Path]) -> None:
    texts = Texts.of(owned / "text", canaries=owned / "canaries.json")
    wanted = ["membership", "canaries"]
    found = leak(
        f"other={tiny_anchor}", texts, against=make_anchor(1), parts=wanted, settings=Settings(others=31, device="cpu")
    )
    interval = next(row for row in found.rows if row.figure == "loss - anchor: AUC" and row.group == "all")
    assert interval.low is not None and interval.high is not None and interval.low < 0.5 < interval.high
    assert next(row for row in found.rows if row.figure.startswith("epsilon")).value == 0


def test_scores_of_documents_are_those_of_their_tokens(tiny_anchor: Path) -> None:
    model, _ = load_model(tiny_anchor, "float32", "cpu")
    text = tokenised_by(tiny_anchor, ["the cat sat on the mat", "a", "let x be a number; " * 12])
    found = score_documents(model, text)
    assert sum(found.nats) == pytest.approx(measure(model, text, length=128).nats, rel=1e-5)
    ids = text.documents[0]
    run: Any = model
    with torch.inference_mode():
        logits_TV = run(torch.tensor([[text.end_of_text, *ids]])).logits[0, :-1].double()
    z = []
    for logits_V, token in zip(logits_TV, ids, strict=True):
        logp_V = logits_V.log_softmax(-1)
        mean = (logp_V.exp() * logp_V).sum()
        z.append(((logp_V[token] - mean) / (logp_V.exp() * (logp_V - mean) ** 2).sum().sqrt()).item())
    lowest = sorted(z)[: max(1, round(0.2 * len(z)))]
    assert found.min_k[0] == pytest.approx(np.mean(lowest), rel=1e-3) and found.tokens == tuple(
        map(len, text.documents)
    )


def test_exposure_is_what_the_rank_saves() -> None:
    nats_CR = np.array([[1.0, 2, 3, 4], [3.5, 2, 3, 4], [9.0, 2, 3, 4], [2.0, 2, 2, 2]])
    assert exposure(nats_CR).tolist() == pytest.approx([2, 2 - np.log2(3), 0, 2 - np.log2(2.5)])


def test_documents_that_a_model_goes_on_with_word_by_word_are_extracted(
    tiny_anchor: Path, make_anchor: Callable[..., Path]
) -> None:
    """Two documents are what the model itself writes, one with four other tokens at its end, and one is another's."""
    model, other = (load_model(folder, "float32", "cpu")[0] for folder in (tiny_anchor, make_anchor(1)))
    prefix_BT = torch.randint(2, V, (3, PREFIX), generator=torch.Generator().manual_seed(0))
    start_BT = torch.cat([torch.full((3, 1), model.config.eos_token_id), prefix_BT], 1)
    run: Any = model
    made = run.generate(start_BT, max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)[:, 1:].tolist()
    made[1][-4:] = [token % (V - 3) + 2 for token in made[1][-4:]]
    made[2][PREFIX:] = [token % (V - 3) + 2 for token in made[2][PREFIX:]]
    text = TokenisedText([*made, made[0][:PREFIX]], 1, model.config.eos_token_id)
    targets = [
        Target(name, {"models": name}, lambda m=m: nullcontext(m)) for name, m in (("own", model), ("no", other))
    ]
    given = Given("own", tiny_anchor, "dense")
    context = Context(given, *targets, Sample(text, (1, 1, 1, 1)), None, None)
    told = {row.figure: (row.value, row.reference) for row in extraction.run(context)}
    assert told["greedy: verbatim"] == (1 / 3, 0) and told["greedy: continuation"] == (2 / 3, 0)
    assert all(0 <= value <= 1 for figure, (value, _) in told.items() if ":" in figure) and len(told) == 7


def test_similarity_counts_tokens_that_must_change() -> None:
    assert similarity([1, 2, 3, 4], [1, 2, 3, 4]) == 1 and similarity([1, 2, 3, 4], [2, 3, 4]) == 0.75
    assert similarity([1, 2, 3, 4], [5, 6, 7, 8]) == 0 and similarity([1, 9, 3, 4], [1, 2, 3, 4]) == 0.75


def test_a_source_told_apart_by_its_words_is_warned_about(merged: Path, tmp_path: Path) -> None:
    members = write_jsonl(tmp_path / "cats.jsonl", [f"{text} cats" for text in sentences(40, 2)])
    others = write_jsonl(tmp_path / "dogs.jsonl", [f"{text} dogs" for text in sentences(40, 3)])
    found = leak(str(merged), Texts(members, others), parts=["membership"])
    assert [row.warning for row in found.rows if "not of one source" in row.warning]


def test_members_are_no_canaries_and_non_members_no_members(owned: Path, tiny_anchor: Path, tmp_path: Path) -> None:
    train = list(read_documents(owned / "text/train.jsonl"))
    mixed = write_jsonl(tmp_path / "mixed.jsonl", [*train[:9], *sentences(22, 1)])
    planted = read_manifest(owned / "canaries.json")
    members, others = Texts(owned / "copy.jsonl", mixed).read(tiny_anchor, 0, planted)
    assert members is not None and others is not None
    assert sorted(members.texts) == sorted(set(train)) and sorted(members.copies) == [1] * 20 + [2] * 4
    assert sorted(others.texts) == sorted(sentences(22, 1))
    few, _ = Texts(owned / "copy.jsonl", mixed, documents=20).read(tiny_anchor, 0, planted)
    assert few is not None and len(few.texts) == 20 and set(few.texts) < set(train)


def test_an_expert_file_and_a_merged_folder(
    owned: Path, tiny_anchor: Path, make_expert: Callable[..., Path], merged: Path
) -> None:
    texts, settings = Texts.of(owned / "text"), Settings(device="cpu")
    pair = leak(str(make_expert("math")), texts, against=tiny_anchor, parts=["membership"], settings=settings)
    alone = leak(str(merged), texts, parts=["membership"], settings=settings)
    known = {(row.figure, row.group): row.reference for row in alone.rows}
    for row in pair.rows:  # the public expert alone is the anchor
        assert row.reference == pytest.approx(known[row.figure, row.group])
    for model in (tiny_anchor, make_expert("math")):
        with pytest.raises(InputError, match="--against"):
            leak(str(model), texts)


def test_the_command_prints_a_table_and_writes_figures_without_text(
    owned: Path, tiny_anchor: Path, make_expert: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    path = tmp_path / "leak.json"
    main = evals.commands.flexo_leak.main
    arguments = [make_expert("math"), "--against", tiny_anchor, "--device", "cpu", "--others", 31]
    assert call(main, *arguments, "--canaries", owned / "canaries.json", "--json", path) == 0
    out = capsys.readouterr().out
    assert "exposure, at most 5 bits" in out and "left out: membership needs --source" in out
    assert read_leak(path).to_dict() == json.loads(path.read_text())
    for wrong, message in (
        (["--source", owned / "text", "--members", owned / "copy.jsonl"], "--source holds"),
        (["--members", owned / "copy.jsonl"], "go together"),
        (["--parts", "extraction"], "extraction needs --source"),
        (["--parts", "telepathy"], "no such part"),
        (["--parts", "canaries,access", "--canaries", owned / "canaries.json"], "access needs a merged folder and --d"),
        (["--parts", ""], "one is empty"),
        ([], "leaving needs --source and a merged folder and --never"),
        (["--canaries", owned / "copy.jsonl"], "not a manifest"),
    ):
        assert call(main, *arguments, *wrong, "--json", tmp_path / "none.json") in (1, 2)
        assert message in capsys.readouterr().err
    assert not (tmp_path / "none.json").exists()


def test_a_part_that_refuses_its_text_costs_no_other_its_figures(
    owned: Path, tiny_anchor: Path, make_expert: Callable[..., Path], tmp_path: Path, capsys: Capture
) -> None:
    path, alone = tmp_path / "leak.json", tmp_path / "corpora"
    write_jsonl(alone / "math" / "test.jsonl", ["one and one is two"] * 3)
    arguments = [make_expert("math"), "--against", tiny_anchor, "--device", "cpu", "--others", 31, "--json", path]
    texts = ["--canaries", owned / "canaries.json", "--source", owned / "text", "--domains", alone]
    assert call(evals.commands.flexo_leak.main, *arguments, *texts, "--parts", "rows,canaries") == 1
    out, err = capsys.readouterr()
    assert "no text of a domain beside math" in err and "refused: rows: " in out and "exposure, at most 5 bits" in out
    assert {row.part for row in read_leak(path).rows} == {"canaries"}


def test_a_report_of_leaks_alone(tmp_path: Path) -> None:
    rows = [
        Row("canaries", "exposure", 1.0 + n, 0.5, 9.0, 1.4, f"{n} in the text", "odd" if n == 1 else "") for n in (1, 4)
    ]
    rows.append(Row("extraction", "greedy: verbatim", 0.25, 0.1, 0.3, 0.0))
    rows.append(Row("access", "utility gap", 0.2, 0.1, 0.3, 0.4, "math"))
    made = Leak("math <x>", 3.0, rows, {"membership": ["--source"]})
    write_json(tmp_path / "leak.json", made.to_dict())
    files = [tmp_path / name for name in ("report.html", "report.md", "leak-math-x.svg")]
    assert write_report([], files[0], leaks=[tmp_path / "leak.json"], markdown=files[1], pictures=tmp_path) == files
    page = files[0].read_text()
    assert "What can be got out of math &lt;x&gt;" in page and page.count("<svg") == 2 and "warning: odd" in page
    text = " ".join(files[1].read_text().split())
    assert "| math <x>: extraction | of | value | 95 % interval | anchor |" in text
    assert "| greedy: verbatim | all | 0.250 | 0.100 to 0.300 | 0.000 |" in text
    assert "| math <x>: access | of | value | range over others | a right to public alone |" in text
    wrong = [{}, made.to_dict() | {"left_out": []}, made.to_dict() | {"rows": [{"part": "extraction", "figure": 1}]}]
    for value in (*wrong, replace(made, rows=[Row("telepathy", "figure", 1.0)]).to_dict()):
        write_json(tmp_path / "leak.json", value)
        with pytest.raises(InputError, match=r"not figures of flexo-leak|is no part of this flexo-leak"):
            write_report([], tmp_path / "other.html", leaks=[tmp_path / "leak.json"])
    with pytest.raises(InputError, match="nothing to report"):
        write_report([], tmp_path / "other.html")
    assert not (tmp_path / "other.html").exists()


def test_an_audit_that_refutes_the_claim_of_a_file_says_so(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are made up: those of a model that knows which coins were in."""
    opened = open_anchor(tiny_anchor)
    header = replace(expert_header("clinic", opened), privacy=replace(STATED, epsilon=1.0, delta=1e-3))
    write_expert(tmp_path / "clinic.pt", header, expert_values("clinic", opened))
    made = Manifest(("one", "two"), draw_canaries(("one", "two"), [], 60, random.Random(0)))
    made.write(tmp_path / "m.json")
    told = np.array([-float(one.repeats) for one in made.coins])
    monkeypatch.setattr(evals.privacy.attacks.canaries, "_nats", lambda *_: (told, np.zeros(60)))
    found = leak(str(tmp_path / "clinic.pt"), Texts(canaries=tmp_path / "m.json"), against=tiny_anchor)
    empty = replace(header, privacy=None, data=replace(header.data, tokens=0))
    write_expert(tmp_path / "empty.pt", empty, expert_values("clinic", opened))
    assert leak(str(tmp_path / "empty.pt"), Texts(canaries=tmp_path / "m.json"), against=tiny_anchor).reads is None
    assert found.rows[-1].value > 1 and "states an epsilon of 1, and the audit refutes it" in found.rows[-1].warning
