from __future__ import annotations

from pathlib import Path

import pytest
from evals.domains import Matrix, domain_matrix, variants_of
from transformers import AutoTokenizer

from evals.measure import bits_per_byte
from evals.texts import find_domains, read_texts
from evals.windows import TokenisedText
from inference.load import load_model
from merge.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl
from tests.inference.models import load, merge_domains


def test_domains_are_those_of_the_experts_in_their_order_or_all(corpora: Path) -> None:
    known = ["public", "math", "news"]
    assert list(find_domains(corpora, None, known)) == ["public", "math"]
    assert list(find_domains(corpora, None, [])) == ["math", "poems", "public"]
    assert list(find_domains(corpora, None, ["pubmed"])) == ["math", "poems", "public"]
    found = find_domains(corpora, ["poems", "public"], known)
    assert found == {"poems": corpora / "poems/test.jsonl", "public": corpora / "public/test.jsonl.gz"}


def test_domains_that_are_not_there_are_refused(corpora: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone: no such folder. Expected one folder a domain"):
        find_domains(tmp_path / "gone", None, [])
    with pytest.raises(InputError, match=r"manifest.json: no such folder"):
        find_domains(corpora / "manifest.json", None, [])
    with pytest.raises(InputError, match=r"no domain 'maths' in it. There are math, poems, public\."):
        find_domains(corpora, ["math", "maths"], [])
    with pytest.raises(
        InputError, match=r"no domain in it. Expected folders with test.jsonl\[.gz\], such as .*/public"
    ):
        find_domains(tmp_path, None, ["public"])


def test_text_is_read_up_to_a_size_in_whole_documents(tiny_anchor: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", ["", *TEXTS, "<|endoftext|>"])
    tokenizer = AutoTokenizer.from_pretrained(tiny_anchor)

    def read(max_bytes: int) -> TokenisedText:
        return read_texts({"math": path}, tiny_anchor, max_bytes)["math"]

    first = read(1)
    assert first.documents == [tokenizer(TEXTS[0])["input_ids"]]
    assert (first.nbytes, first.end_of_text) == (len(TEXTS[0]), tokenizer.eos_token_id)
    assert len(read(len(TEXTS[0])).documents) == 1
    assert len(read(len(TEXTS[0]) + 1).documents) == 2
    whole = read(10_000)
    assert len(whole.documents) == 5 and whole.nbytes == sum(map(len, TEXTS)) + len("<|endoftext|>")
    assert whole.end_of_text not in whole.documents[-1]
    with pytest.raises(InputError, match=r"empty.jsonl: no text in it"):
        read_texts({"math": write_jsonl(tmp_path / "empty.jsonl", ["", " "])}, tiny_anchor, 100)


def test_the_matrix_scores_each_variant_as_a_model_of_its_own(
    merged: Path, tiny_anchor: Path, corpora: Path, make_expert: object, tmp_path: Path
) -> None:
    model, _ = load_model(merged, device="cpu")
    texts = read_texts(find_domains(corpora, None, []), merged, 10_000)
    told: list[float] = []
    matrix = domain_matrix(model, texts, variants_of(model), 16, told.append)
    assert matrix.models == ["anchor", "pair math", "pair news", "merged, top-2 of 3"]
    assert matrix.domains == ["math", "poems", "public"]
    assert matrix.nbytes == {name: text.nbytes for name, text in texts.items()}
    assert sum(told) == 4 * sum(text.tokens for text in texts.values())
    folders = [tiny_anchor, *(merge_domains(make_expert, tmp_path / d, [d], 2) for d in ("math", "news")), merged]  # type: ignore[arg-type]
    for name, folder in zip(matrix.models, folders, strict=True):
        alone = load(folder)
        for domain, text in texts.items():
            assert matrix.cells[name][domain] == pytest.approx(bits_per_byte(alone, text, length=16), rel=1e-6)
    assert len({round(row["math"], 6) for row in matrix.cells.values()}) == 4
    assert model.config.num_experts == 3


def test_a_plain_model_has_one_row(tiny_anchor: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_anchor)
    assert list(variants_of(load(tiny_anchor))) == list(variants_of(load(Path()))) == ["anchor"]


def test_means_and_json() -> None:
    matrix = Matrix(["a"], ["x", "y"], {"a": {"x": 1.0, "y": 2.0}}, {"x": 10, "y": 20})
    assert matrix.mean("a") == 1.5
    assert matrix.to_dict() == {
        "unit": "bits per byte", "bytes": {"x": 10, "y": 20}, "models": {"a": {"x": 1.0, "y": 2.0}},
    }  # fmt: skip
