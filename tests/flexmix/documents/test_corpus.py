from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flexmix.documents import corpus
from flexmix.documents.corpus import HELD_OUT, HubSource, copy_sample, find_corpus, find_split, held_out, read_documents
from flexmix.documents.source import Document
from flexo.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl
from tests.merge.tools import listing

STORIES = [f"Story {n}: once upon a time there were {n} cats." for n in range(200)]


# --- reading


@pytest.mark.parametrize("name", ["shard.jsonl", "shard.jsonl.gz"])
def test_documents_come_in_order_blank_lines_between_them_or_not(tmp_path: Path, name: str) -> None:
    texts = [*TEXTS, "", "  ", "naïve 😀\r\nsecond line\x00", "\u2028 is no end of line"]
    path = write_jsonl(tmp_path / name, texts)
    assert list(read_documents(path)) == texts
    data = gzip.decompress(path.read_bytes()) if name.endswith(".gz") else path.read_bytes()
    spaced = b"\n" + data.replace(b"\n", b"\r\n\n").rstrip()  # and no newline at the end
    path.write_bytes(gzip.compress(spaced) if name.endswith(".gz") else spaced)
    assert list(read_documents(path)) == texts


def test_another_column_and_escaped_pairs(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", TEXTS, column="body")
    assert list(read_documents(path, "body")) == TEXTS
    path.write_text('{"text": "\\ud83d\\ude00"}')
    assert list(read_documents(path)) == ["😀"]


def test_gzip_of_several_members_is_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(json.dumps({"text": text}).encode() + b"\n") for text in TEXTS))
    assert list(read_documents(path)) == TEXTS


def test_an_empty_file_has_no_documents(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.jsonl.gz"):
        (tmp_path / name).touch()
        assert list(read_documents(tmp_path / name)) == []


GOOD = b'{"text": "good"}\n'


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "caf\xe9"}', 'not UTF-8 (byte 0xe9 at column 14). It would be \'t": "café"}\' in cp1252'),
        (b"\xff\xfe{\x00", "not UTF-8 (byte 0xff at column 1)"),
        (b"good text, but plain", "not JSON (Expecting value: column 1 (char 0)). Expected one {"),
        (b'{"text": "cut', "not JSON (Unterminated string starting at: column 10 (char 9))"),
        (b"[" * 100_000, "not JSON (maximum recursion depth"),
        (b'["text"]', "list, expected an object with the column 'text'."),
        (b'"text"', "str, expected an object with the column 'text'."),
        (b"null", "NoneType, expected an object with the column 'text'."),
        (b'{"txt": "mistyped", "id": 7}', "no column 'text' (found 'id', 'txt')."),
        (b'{"text": 7}', "the column 'text' holds int, expected text."),
        (b'{"text": ["a"]}', "the column 'text' holds list, expected text."),
        (b"{}", "no column 'text' (found none)."),
        (b'{"text": "\\ud83d alone"}', "half of a surrogate pair"),
    ],
)
@pytest.mark.parametrize("name", ["shard.jsonl", "shard.jsonl.gz"])
def test_bad_lines_are_refused_with_file_and_line(tmp_path: Path, name: str, line: bytes, said: str) -> None:
    data = GOOD + b"\n" + line + b"\n" + GOOD
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    documents = read_documents(path)
    assert next(documents) == "good"
    with pytest.raises(InputError, match=rf"^{re.escape(f'{path}: line 3: ')}.*{re.escape(said)}"):
        next(documents)


def test_damaged_gzip_is_refused_where_it_breaks(tmp_path: Path) -> None:
    texts = [f"{n} {n * 7919 % 10007}" for n in range(20_000)]
    whole = write_jsonl(tmp_path / "whole.jsonl.gz", texts).read_bytes()
    middle = len(whole) // 2
    broken = {
        "truncated": whole[:middle],
        "flipped": whole[:middle] + bytes(255 - byte for byte in whole[middle : middle + 40]) + whole[middle + 40 :],
        "wrong sum": whole[:-8] + b"\x00" * 4 + whole[-4:],
        "trailing": whole + b"garbage",
    }
    for name, data in broken.items():
        path = tmp_path / f"{name}.jsonl.gz"
        path.write_bytes(data)
        read: list[str] = []
        with pytest.raises(InputError) as caught:
            read.extend(read_documents(path))  # extend keeps what came before the failure
        said = str(caught.value)
        assert said.startswith(f"{path}: ") and ("damaged gzip after line" in said or "not JSON" in said), said
        assert read == texts[: len(read)] and len(read) > 1000


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing.jsonl: no such file or folder, expected text: a file in any form"):
        list(read_documents(tmp_path / "missing.jsonl"))
    (tmp_path / "folder.jsonl").mkdir()
    with pytest.raises(InputError, match=r"folder.jsonl: no text in a form that can be read \(found nothing\)"):
        list(read_documents(tmp_path / "folder.jsonl"))


def test_reading_takes_constant_memory(tmp_path: Path) -> None:
    import tracemalloc

    path = write_jsonl(tmp_path / "a.jsonl.gz", ("word " * 200 for _ in range(5_000)))
    tracemalloc.start()
    assert sum(len(text) for text in read_documents(path)) == 5_000_000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000


# --- splits and samples


@given(st.lists(st.text(), max_size=20))
def test_the_split_depends_on_the_text_alone(texts: list[str]) -> None:
    assert [held_out(text) for text in texts] == [held_out(text) for text in reversed(texts)][::-1]


def test_one_document_in_twenty_is_held_out() -> None:
    share = sum(held_out(str(n)) for n in range(20_000)) / 20_000
    assert abs(share - 1 / HELD_OUT) < 0.005


def test_a_sample_has_about_the_size_asked_for_and_is_the_same_each_time(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "all.jsonl", [*STORIES, " ", ""])
    size = sum(len(story) for story in STORIES)
    counts = copy_sample(source, tmp_path / "some.jsonl.gz", size // 2)
    kept = list(read_documents(tmp_path / "some.jsonl.gz"))
    assert counts == {"documents": len(kept), "bytes": sum(map(len, kept))}
    assert kept == [story for story in STORIES if story in kept]  # in order
    assert abs(counts["bytes"] / size - 0.5) < 0.1
    first = (tmp_path / "some.jsonl.gz").read_bytes()
    copy_sample(source, tmp_path / "some.jsonl.gz", size // 2)
    assert (tmp_path / "some.jsonl.gz").read_bytes() == first
    copy_sample(source, tmp_path / "whole.jsonl.gz", 10 * size)
    assert list(read_documents(tmp_path / "whole.jsonl.gz")) == STORIES
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    assert copy_sample(empty, tmp_path / "none.jsonl.gz", 100) == {"documents": 0, "bytes": 0}


def test_splits_are_found_by_name(tmp_path: Path) -> None:
    packed, plain = write_jsonl(tmp_path / "a/train.jsonl.gz", TEXTS), write_jsonl(tmp_path / "a/test.jsonl", TEXTS)
    assert (find_split(tmp_path / "a", "train"), find_split(tmp_path / "a", "test")) == (packed, plain)
    with pytest.raises(
        InputError,
        match=r"no valid.jsonl or valid.jsonl.gz in it, nor other valid text \(found test.jsonl, train.jsonl.gz\)",
    ):
        find_split(tmp_path / "a", "valid")
    with pytest.raises(InputError, match=r"b: no such folder. Expected a folder with train.jsonl\[.gz\]"):
        find_split(tmp_path / "b", "train")
    (tmp_path / "c").mkdir()
    with pytest.raises(InputError, match="found nothing"):
        find_split(tmp_path / "c", "train")


# --- where a domain's text comes from


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """A folder laid out like a repository on the hub, JSON lines in it."""
    write_jsonl(tmp_path / "hub/stories/data/train.jsonl", [*STORIES[:100], "", " ", *STORIES[100:]])
    return tmp_path / "hub/stories"


def test_own_files_come_first_then_samples_then_the_hub(tmp_path: Path, hub_folder: Path) -> None:
    corpora, hub = tmp_path / "corpora", HubSource(str(hub_folder))
    from_hub = find_corpus("math", corpora, hub=hub)
    assert from_hub.said == f"hub: {hub_folder}, kept in {from_hub.train.parent}"
    assert from_hub.train.parent.parent == corpora and from_hub.test == from_hub.train.parent / "test.jsonl.gz"

    train, test = (write_jsonl(corpora / f"math/{split}.jsonl.gz", TEXTS) for split in ("train", "test"))
    from_samples = find_corpus("math", corpora, hub=hub)
    assert (from_samples.train, from_samples.test) == (train, test)
    assert from_samples.said == f"sample corpora: {corpora / 'math'}"

    mine = write_jsonl(tmp_path / "mine.jsonl", TEXTS)
    held = write_jsonl(tmp_path / "held.jsonl", TEXTS)
    own = find_corpus("math", corpora, mine, held, hub)
    assert (own.train, own.test, own.said) == (mine, held, f"own files: {mine}, held out: {held}")
    alone = find_corpus("math", corpora, mine, hub=hub)
    assert (alone.train, alone.test, alone.said) == (mine, None, f"own files: {mine}, nothing held out")


def test_text_that_cannot_be_had_is_refused(tmp_path: Path, hub_folder: Path) -> None:
    corpora, hub = tmp_path / "corpora", HubSource(str(hub_folder))
    mine = write_jsonl(tmp_path / "mine.jsonl", TEXTS)
    with pytest.raises(
        InputError, match=r"'pubmed': no text. .*pubmed does not exist and no hub source.*domain.train="
    ):
        find_corpus("pubmed", corpora)
    with pytest.raises(InputError, match=r"gone.jsonl: no such file"):
        find_corpus("math", corpora, tmp_path / "gone.jsonl", hub=hub)
    with pytest.raises(InputError, match=r"gone.jsonl: no such file"):
        find_corpus("math", corpora, mine, tmp_path / "gone.jsonl", hub)
    with pytest.raises(InputError, match=r"'math': domain.test=.*mine.jsonl without domain.train"):
        find_corpus("math", corpora, test=mine, hub=hub)
    write_jsonl(corpora / "math/train.jsonl", TEXTS)
    with pytest.raises(
        InputError, match=r"math: no test.jsonl or test.jsonl.gz in it, nor other test text \(found train.jsonl\)"
    ):
        find_corpus("math", corpora, hub=hub)


def test_hub_documents_are_kept_and_not_read_again(tmp_path: Path, hub_folder: Path) -> None:
    corpora, hub = tmp_path / "corpora", HubSource(str(hub_folder))
    found = find_corpus("tales", corpora, hub=hub)
    assert found.test is not None
    train, test = list(read_documents(found.train)), list(read_documents(found.test))
    assert train == [story for story in STORIES if not held_out(story)]
    assert test == [story for story in STORIES if held_out(story)] and len(test) > 1
    with gzip.open(found.train) as lines:
        assert json.loads(next(lines)) == {"text": train[0], "source": str(hub_folder)}
    (hub_folder / "data/train.jsonl").unlink()
    assert find_corpus("tales", corpora, hub=hub) == found
    assert listing(corpora) == {found.train.parent.name}


def test_another_source_is_another_folder(tmp_path: Path, hub_folder: Path) -> None:
    corpora = tmp_path / "corpora"
    all_of_it = find_corpus("tales", corpora, hub=HubSource(str(hub_folder)))
    half = find_corpus("tales", corpora, hub=HubSource(str(hub_folder), documents=100))
    assert half.test is not None
    assert len([*read_documents(half.train), *read_documents(half.test)]) == 100
    assert half.train != all_of_it.train and half.said != all_of_it.said


def test_parquet_and_another_column(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "repository"
    (folder / "data").mkdir(parents=True)
    table = pa.table({"id": range(200), "body": [*STORIES[:198], None, ""]})  # null is no text, and no damage either
    pq.write_table(table, folder / "data/train-00000-of-00001.parquet")
    found = find_corpus("tales", tmp_path / "corpora", hub=HubSource(str(folder), text="body"))
    assert found.test is not None
    assert sorted([*read_documents(found.train), *read_documents(found.test)]) == sorted(STORIES[:198])
    with pytest.raises(InputError, match=r"repository: no column 'text' \(found 'body', 'id'\)"):
        find_corpus("tales", tmp_path / "corpora", hub=HubSource(str(folder)))
    with pytest.raises(InputError, match=r"repository: row 1: the column 'id' holds int, expected text"):
        find_corpus("tales", tmp_path / "corpora", hub=HubSource(str(folder), text="id"))
    assert listing(tmp_path / "corpora") == {found.train.parent.name}


def test_a_hub_source_that_is_too_small_is_refused_and_not_kept(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "hub/data/train.jsonl", STORIES[:3])
    with pytest.raises(InputError, match=r"3 documents to train on and 0 held out, expected two of each"):
        find_corpus("tales", tmp_path / "corpora", hub=HubSource(str(tmp_path / "hub")))
    assert not (tmp_path / "corpora").exists()


def test_a_hub_source_that_cannot_be_read_is_refused(
    tmp_path: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora = tmp_path / "corpora"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError) as caught:
        find_corpus("math", corpora, hub=HubSource("open-web-math/open-web-math"))
    assert str(caught.value) == (
        f"domain 'math': {corpora / 'math'} was not built and the hub source open-web-math/open-web-math cannot be "
        "read (HF_HUB_OFFLINE is 1). Give your own files with domain.train=FILE domain.test=FILE, build the sample "
        "corpora with flexo-data sample, or go online."
    )
    with pytest.raises(InputError, match=r"cannot be read \(ValueError: .*\). Give your own files"):
        find_corpus("math", corpora, hub=HubSource(str(hub_folder), split="validation"))
    (hub_folder / "data/train.jsonl").write_text("no JSON")
    with pytest.raises(InputError, match=r"stories cannot be read after row 0 of shard 0 \(.*\). Give your own files"):
        find_corpus("math", corpora, hub=HubSource(str(hub_folder)))
    assert not corpora.exists()


def test_two_processes_that_read_the_same_source_end_with_one_folder(
    tmp_path: Path, hub_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a sweep over seeds: while this one reads, another finishes."""
    corpora, hub = tmp_path / "corpora", HubSource(str(hub_folder))
    elsewhere = find_corpus("tales", tmp_path / "elsewhere", hub=hub)

    def slow(*arguments: object) -> Iterator[Document]:
        yield from (Document(story, {}) for story in STORIES[:150])
        corpora.mkdir(exist_ok=True)
        elsewhere.train.parent.rename(corpora / elsewhere.train.parent.name)
        yield from (Document(story, {}) for story in STORIES[150:])

    monkeypatch.setattr(corpus, "_hub_documents", slow)
    found = find_corpus("tales", corpora, hub=hub)
    assert listing(corpora) == {found.train.parent.name}
    assert set(read_documents(found.train)) < set(STORIES)


# --- any form


def test_a_split_is_found_in_any_form_and_never_guessed(tmp_path: Path) -> None:
    for n, name in enumerate(("train.parquet", "TRAIN.CSV.GZ", "train.json", "train.txt.xz", "train.zip")):
        (tmp_path / str(n)).mkdir()
        (tmp_path / str(n) / name).touch()
        (tmp_path / str(n) / "trained.jsonl").touch()
        (tmp_path / str(n) / "train.log.yaml").touch()
        assert find_split(tmp_path / str(n), "train") == tmp_path / str(n) / name
    write_jsonl(tmp_path / "a/train/1.jsonl", TEXTS)
    assert find_split(tmp_path / "a", "train") == tmp_path / "a/train"
    write_jsonl(tmp_path / "a/train.jsonl.gz", TEXTS)
    with pytest.raises(InputError, match=r"a: train and train.jsonl.gz in it. Which is the train text cannot be known"):
        find_split(tmp_path / "a", "train")


def test_an_owners_folder_holds_both_splits_or_documents(tmp_path: Path) -> None:
    both = tmp_path / "both"
    write_jsonl(both / "train.jsonl", TEXTS)
    write_jsonl(both / "test.jsonl.gz", TEXTS)
    found = find_corpus("math", tmp_path / "corpora", both)
    assert (found.train, found.test, found.said) == (both / "train.jsonl", both / "test.jsonl.gz", f"own files: {both}")
    with pytest.raises(
        InputError, match=r"domain.train=.*both is a folder with train and test in it, and so holds its own"
    ):
        find_corpus("math", tmp_path / "corpora", both, both / "test.jsonl.gz")
    notes = tmp_path / "notes"
    notes.mkdir()
    for n, text in enumerate(TEXTS):
        (notes / f"{n}.txt").write_text(text)
    (notes / "train.txt").write_text("About trains.")
    alone = find_corpus("math", tmp_path / "corpora", notes)
    assert (alone.train, alone.test) == (notes, None)
    assert list(read_documents(alone.train)) == [*TEXTS, "About trains."]


def test_a_dataset_on_the_hub_may_be_named_as_training_text(tmp_path: Path, hub_folder: Path) -> None:
    found = find_corpus("tales", tmp_path / "corpora", Path(f"hub:{hub_folder}"))
    assert found.said == f"hub: {hub_folder}, kept in {found.train.parent}" and found.test is not None
    assert sorted([*read_documents(found.train), *read_documents(found.test)]) == sorted(STORIES)


def test_columns_of_the_hub_are_compared_by_type(tmp_path: Path) -> None:
    lines = [json.dumps({"text": story, "good": n % 2 == 0, "lang": None}) for n, story in enumerate(STORIES)]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/train.jsonl").write_text("\n".join(lines))
    for where in ({"good": True}, {"good": "true"}, {"good": True, "lang": None}):
        found = find_corpus("tales", tmp_path / "corpora", hub=HubSource(str(tmp_path / "hub"), where=where))
        assert found.test is not None
        assert sorted([*read_documents(found.train), *read_documents(found.test)]) == sorted(STORIES[::2])


def test_conversations_of_the_hub_are_kept_as_they_are(tmp_path: Path) -> None:
    talks = [[{"role": "user", "content": story}, {"role": "assistant", "content": "Yes."}] for story in STORIES]
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub/train.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    found = find_corpus("tales", tmp_path / "corpora", hub=HubSource(str(tmp_path / "hub")))
    assert found.test is not None
    lines = b"".join(gzip.decompress(path.read_bytes()) for path in (found.train, found.test)).splitlines()
    kept = [json.loads(line) for line in lines]
    assert sorted(row["messages"][0]["content"] for row in kept) == sorted(STORIES)
    with pytest.raises(
        InputError, match=r"train.jsonl.gz: line 1: a conversation, and there is no model here whose chat"
    ):
        list(read_documents(found.train))
