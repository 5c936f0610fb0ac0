from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from flexmix.tokens import shard as tokens
from flexmix.tokens.encoder import load_tokenizer, stretches
from flexmix.tokens.shard import TokenShard, open_shard, prepare_shard, shard_texts, text_digest
from flexmix.tokens.train_tokenizer import train_tokenizer
from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl
from tests.merge.tools import listing

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def model(tiny_anchor: Path, tmp_path: Path) -> Path:
    """A model folder of this test's own, as far as tokenising goes."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("tokenizer.json", "config.json"):
        shutil.copyfile(tiny_anchor / name, folder / name)
    return folder


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A model folder with a vocabulary of 70,001 words: w0, w1, ... and the end-of-text token last."""
    folder = tmp_path / "wide"
    folder.mkdir()
    words = {f"w{n}": n for n in range(70_000)} | {"<|end|>": 70_000}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text('{"eos_token_id": [70000, 5]}')
    return folder


def documents(shard: TokenShard) -> list[list[int]]:
    """The documents of a shard as its boundaries say."""
    ids = shard.ids.tolist()
    return [ids[start:end] for start, end in zip(shard.starts[:-1], shard.starts[1:], strict=True)]


def test_a_shard_holds_what_the_tokenizer_says(tiny_anchor: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    texts = [*TEXTS, "", " \n", *(f"{n} cats" for n in range(1200))]  # more than two batches of the tokenizer
    source = write_jsonl(tmp_path / "cats.jsonl.gz", texts)
    shard = prepare_shard(source, tiny_anchor, tmp_path / "cache")
    tokenizer = AutoTokenizer.from_pretrained(tiny_anchor)
    full = [text for text in texts if text.strip()]
    assert documents(shard) == [[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]] for text in full]
    assert shard.folder.name.startswith("cats-") and shard.folder.parent == tmp_path / "cache"
    assert listing(shard.folder) == {"tokens.bin", "documents.npy", "shard.json"}
    assert (shard.documents, shard.empty) == (len(full), 2)
    assert shard.tokens == shard.starts[-1] == len(shard.ids)
    assert shard.text_bytes == sum(len(text.encode()) for text in full)
    assert (shard.end_of_text, shard.dtype) == (tokenizer.eos_token_id, "uint16")
    assert shard.tokenizer_digest == sha256_file(tiny_anchor / "tokenizer.json")
    assert isinstance(shard.ids, np.memmap) and not shard.ids.flags.writeable
    assert (shard.folder / "tokens.bin").stat().st_size == 2 * shard.tokens


def test_a_document_cannot_end_itself(tiny_anchor: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["a<|endoftext|>b", "<|endoftext|>", "the cat"])
    shard = prepare_shard(source, tiny_anchor, tmp_path / "cache")
    assert shard.documents == 3
    assert np.flatnonzero(shard.ids == shard.end_of_text).tolist() == shard.starts[:-1].tolist()


def test_ids_above_two_bytes_take_four(wide: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", ["w0 w65535 w65536 w69999", "w7"])
    shard = prepare_shard(source, wide, tmp_path / "cache")
    assert shard.dtype == "uint32"
    assert documents(shard) == [[70_000, 0, 65_535, 65_536, 69_999], [70_000, 7]]


def test_a_shard_is_written_once(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, cache = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"
    first = prepare_shard(source, model, cache)
    with monkeypatch.context() as patch:
        patch.setattr(tokens, "_write", None)  # calling it would be an error
        os.utime(source)
        assert prepare_shard(source, model, cache) == first
        (tmp_path / "elsewhere").mkdir()
        assert prepare_shard(source.rename(tmp_path / "elsewhere/a.jsonl"), model, cache) == first


def test_another_file_tokenizer_or_end_is_another_shard(model: Path, tmp_path: Path) -> None:
    source, cache = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"
    made = [prepare_shard(source, model, cache)]
    write_jsonl(source, [*TEXTS, "one more"])
    made.append(prepare_shard(source, model, cache))
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens(["the"])
    tokenizer.save(str(model / "tokenizer.json"))
    made.append(prepare_shard(source, model, cache))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"eos_token_id": 3}))
    made.append(prepare_shard(source, model, cache))
    assert listing(cache) == {shard.folder.name for shard in made} and len(listing(cache)) == 4
    assert [shard.documents for shard in made] == [4, 5, 5, 5]
    assert made[3].ids[0] == 3


@pytest.mark.parametrize("texts", [[], ["", "\n "]])
def test_a_file_without_text_is_refused(model: Path, tmp_path: Path, texts: list[str]) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", texts)
    with pytest.raises(InputError, match=rf"a.jsonl: no document with text in it \({len(texts)} without\)"):
        prepare_shard(source, model, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_bad_line_leaves_no_half_shard(model: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", TEXTS * 1000)
    source.write_bytes(source.read_bytes() + b"no JSON")
    with pytest.raises(InputError, match="line 4001: not JSON"):
        prepare_shard(source, model, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
    with pytest.raises(InputError, match=r"gone.jsonl: no such file"):
        prepare_shard(tmp_path / "gone.jsonl", model, tmp_path / "cache")
    with pytest.raises(InputError, match=r"model: no text in a form that can be read \(found config.json"):
        prepare_shard(model, model, tmp_path / "cache")


def test_files_that_training_does_not_read_are_named_once(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", TEXTS)
    (tmp_path / "in/scan.pdf").write_bytes(b"%PDF-1.7 \0")
    for said in (["note: not read: 1 files or folders", f"note:   {tmp_path}/in/scan.pdf (a PDF document)"], []):
        assert prepare_shard(tmp_path / "in", model, tmp_path / "cache").documents == 4
        assert capsys.readouterr().err.splitlines() == said
    write_jsonl(tmp_path / "in/b.jsonl", ["one more"])
    assert prepare_shard(tmp_path / "in", model, tmp_path / "cache").documents == 5


def test_two_processes_may_write_the_same_shard(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As owners on one cluster do with the public reference: while this one writes, another finishes."""
    source, cache = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"
    elsewhere = prepare_shard(source, model, tmp_path / "elsewhere")
    write = tokens._write

    def slow(*arguments: Any) -> None:
        write(*arguments)
        shutil.copytree(elsewhere.folder, cache / elsewhere.folder.name)

    monkeypatch.setattr(tokens, "_write", slow)
    shard = prepare_shard(source, model, cache)
    assert shard.documents == 4 and listing(cache) == {shard.folder.name}


KILLED = """
import sys, time
from pathlib import Path
from flexmix.tokens import shard
batches = shard.batches

def slow(texts, size, characters):
    for batch in batches(texts, 2, characters):
        yield batch
        print("wrote a batch", flush=True)
        time.sleep(60)

shard.batches = slow
shard.prepare_shard(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]))
"""


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_process_killed_in_the_middle_leaves_nothing_half(
    model: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    source, cache = write_jsonl(tmp_path / "a.jsonl", TEXTS), tmp_path / "cache"
    command = [sys.executable, "-c", KILLED, source, model, cache]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd=ROOT)
    assert process.stdout is not None and process.stdout.readline() == b"wrote a batch\n"
    process.send_signal(signum)
    process.wait(timeout=30)
    process.stdout.close()
    left = [path for path in cache.glob("*") if not path.name.startswith(".")]
    assert left == []
    shard = prepare_shard(source, model, cache)
    assert shard.documents == 4 and listing(cache) == {shard.folder.name}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json: not a readable tokenizer"),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "tokenizer.json: not a readable tokenizer"),
        (lambda folder: (folder / "config.json").unlink(), "config.json: no eos_token_id .*No such file"),
        (
            lambda folder: (folder / "config.json").write_text("{"),
            "config.json: no eos_token_id .*Expecting property name",
        ),
        (lambda folder: (folder / "config.json").write_text("{}"), "config.json: no eos_token_id to be read from it"),
        (lambda folder: (folder / "config.json").write_text('{"eos_token_id": []}'), r"eos_token_id is \[\]"),
        (
            lambda folder: (folder / "config.json").write_text('{"eos_token_id": 96}'),
            "eos_token_id is 96, expected the",
        ),
        (lambda folder: (folder / "config.json").write_text('{"eos_token_id": -1}'), "eos_token_id is -1"),
    ],
)
def test_a_model_folder_without_tokenizer_or_end_is_refused(
    model: Path, damage: Callable[[Path], object], said: str
) -> None:
    damage(model)
    with pytest.raises(InputError, match=said):
        load_tokenizer(model)


def test_truncation_and_padding_of_the_tokenizer_are_off(model: Path, tmp_path: Path) -> None:
    path = str(model / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=50)
    tokenizer.save(path)
    shard = prepare_shard(write_jsonl(tmp_path / "a.jsonl", TEXTS), model, tmp_path / "cache")
    plain = load_tokenizer(model)[0]
    assert documents(shard) == [[shard.end_of_text, *plain.encode(text).ids] for text in TEXTS]
    assert max(map(len, documents(shard))) > 5


# --- opening what was written


@pytest.fixture
def written(model: Path, tmp_path: Path) -> Path:
    return prepare_shard(write_jsonl(tmp_path / "a.jsonl", TEXTS), model, tmp_path / "cache").folder


def test_a_shard_opens_as_it_was_written(model: Path, written: Path) -> None:
    shard = open_shard(written, model)
    assert documents(shard) == [[shard.end_of_text, *load_tokenizer(model)[0].encode(text).ids] for text in TEXTS]
    assert {name: info["bytes"] for name, info in shard.files.items()} == {
        name: (written / name).stat().st_size for name in ("tokens.bin", "documents.npy")
    }
    assert prepare_shard(written, model, Path("nowhere")) == shard
    assert list(shard_texts(written, model)) == TEXTS
    assert text_digest(written) == sha256_file(written / "shard.json")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda shard: (shard / "tokens.bin").unlink(), r"tokens.bin: this file of the shard is missing"),
        (lambda shard: (shard / "tokens.bin").write_bytes(b"\0\0"), r"tokens.bin: 2 bytes, but \d+ were written"),
        (
            lambda shard: (shard / "tokens.bin").write_bytes(bytes((shard / "tokens.bin").stat().st_size)),
            r"tokens.bin: its sha256 is not the one written down in shard.json",
        ),
        (lambda shard: (shard / "documents.npy").write_bytes(b""), r"documents.npy: 0 bytes, but \d+ were written"),
        (lambda shard: (shard / "shard.json").write_text("{"), r"shard.json: not a token shard \(Expecting"),
        (lambda shard: (shard / "shard.json").write_text("[]"), r"shard.json: not a token shard"),
        (lambda shard: (shard / "shard.json").write_text('{"a": 1}'), r"shard.json: not a token shard \(.*'a'"),
        (lambda shard: (shard / "shard.json").unlink(), r"shard.json: not a token shard \(.*No such file"),
        (
            lambda shard: (shard / "shard.json").write_text(
                (shard / "shard.json").read_text().replace('"version": 2', '"version": 9')
            ),
            "a shard of version 9, this program reads version 2",
        ),
    ],
)
def test_a_shard_that_was_changed_is_refused(written: Path, damage: Callable[[Path], object], said: str) -> None:
    damage(written)
    with pytest.raises(InputError, match=said):
        open_shard(written)


def test_large_files_are_judged_by_their_size(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "HASHED", 10)
    monkeypatch.setattr(tokens, "sha256_file", None)
    assert open_shard(written).documents == 4


def test_another_tokenizer_or_end_is_refused(model: Path, written: Path) -> None:
    config = (model / "config.json").read_text()
    (model / "config.json").write_text('{"eos_token_id": 5}')
    with pytest.raises(InputError, match=r"made with the tokenizer \w+ and end-of-text token 0, but .*model has"):
        open_shard(written, model)
    (model / "config.json").write_text(config)
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.add_tokens(["the"])
    tokenizer.save(str(model / "tokenizer.json"))
    with pytest.raises(InputError, match=r"flexo-data prepare SOURCE -o DIR --tokenizer .*model"):
        open_shard(written, model)


def test_tokens_that_do_not_give_back_their_text_are_no_text(model: Path, tmp_path: Path) -> None:
    about = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(about | {"decoder": None}))
    shard = prepare_shard(write_jsonl(tmp_path / "a.jsonl", TEXTS), model, tmp_path / "cache")
    with pytest.raises(InputError, match="does not give back the text that it took"):
        list(shard_texts(shard.folder, model))


# --- long documents


@given(
    st.lists(st.sampled_from(["word", "\n", "\n\n", " ", "  ", "\t", "a1", "é", ".", "\u2028"]), max_size=60).map(
        "".join
    ),
    st.integers(2, 20),
)
def test_stretches_are_the_text(text: str, size: int) -> None:
    cut = list(stretches(text, size))
    assert "".join(cut) == text
    assert all(len(part) <= size for part in cut)
    assert len(cut) <= 1 or all(2 * len(part) >= size - 1 for part in cut[:-1])


@given(st.lists(st.sampled_from(["word", "\n", "\n\n", " ", "  ", "12", "it's", ".", "。"]), max_size=80).map("".join))
def test_tokens_of_stretches_are_those_of_the_whole(text: str) -> None:
    tokenizer = train_tokenizer(["word it's a word 12\n\nword.\n"] * 20, 300)
    cut = list(stretches(text, 40))
    if all(_natural(first, second) for first, second in pairwise(cut)):
        assert [i for part in cut for i in tokenizer.encode(part).ids] == tokenizer.encode(text).ids


def _natural(first: str, second: str) -> bool:
    """Whether a cut was made at a single line break or space, not for want of one."""
    line = first[-1] == "\n" and not first[-2:-1].isspace() and not second[0].isspace()
    return line or (second[0] == " " and not first[-1].isspace() and not second[1:2].isspace())
