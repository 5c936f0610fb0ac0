from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from evals.scoring.held_out import Reading, find_domains, read_texts
from evals.scoring.sliding_windows import TokenisedText
from flexmix.tokens.shard import prepare_shard
from flexo.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl


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


def test_a_token_shard_is_read_as_the_text_that_it_was_made_from(tiny_anchor: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "text/math/test.jsonl", TEXTS)
    prepare_shard(file, tiny_anchor, tmp_path / "cache")
    shard = next(path.parent for path in (tmp_path / "cache").glob("*/shard.json"))
    (tmp_path / "tokens/math").mkdir(parents=True)
    shard.rename(tmp_path / "tokens/math/test")
    text, tokens = (
        read_texts(find_domains(tmp_path / name, None, []), tiny_anchor, 10**6) for name in ("text", "tokens")
    )
    assert text == tokens and Reading(tmp_path / "tokens").documents(tiny_anchor) == {"math": TEXTS}
    with pytest.raises(InputError, match="tokens, and no model here"):
        Reading(tmp_path / "tokens").documents(None)


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
