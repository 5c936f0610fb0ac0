"""Canaries are planted in a copy, as often as the manifest says, and nowhere else."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

import flexmix.commands.flexo_data
from flexmix.canaries.manifest import read_manifest
from flexmix.canaries.plant import Planting, plant
from flexmix.documents.corpus import read_documents
from flexmix.tokens.shard import prepare_shard
from flexo.errors import InputError
from tests.flexmix.text import TEXTS, write_jsonl
from tests.merge.tools import call


def test_a_copy_holds_the_text_and_each_canary_as_often_as_the_manifest_says(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "own.jsonl.gz", TEXTS)
    before = source.read_bytes()
    made = plant(source, tmp_path / "copy.jsonl.gz", tmp_path / "m.json", Planting((1, 4), each=3, coins=60, seed=5))
    assert source.read_bytes() == before
    assert (tmp_path / "m.json").stat().st_mode & 0o777 == 0o600 and read_manifest(tmp_path / "m.json") == made
    found = Counter(read_documents(tmp_path / "copy.jsonl.gz"))
    assert found == Counter(TEXTS) + Counter({one.text: one.repeats for one in made.canaries})
    assert [text for text in read_documents(tmp_path / "copy.jsonl.gz") if text in TEXTS] == TEXTS
    assert Counter(one.repeats for one in made.secrets) == {1: 3, 4: 3}
    assert {one.repeats for one in made.coins} == {0, 1} and 15 < sum(one.repeats for one in made.coins) < 45
    assert len({one.text for one in made.canaries}) == 66


def test_the_same_seed_plants_the_same_and_no_seed_never_does(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "own.jsonl", TEXTS)
    for n, seed in enumerate((1, 1, None, None)):
        plant(source, tmp_path / f"{n}.jsonl", tmp_path / f"{n}.json", Planting((2,), each=2, coins=9, seed=seed))
    texts = [(tmp_path / f"{n}.jsonl").read_text() for n in range(4)]
    assert texts[0] == texts[1] and len(set(texts)) == 3


def test_all_copies_of_a_canary_are_of_one_unit(tmp_path: Path) -> None:
    source = tmp_path / "own.csv"
    source.write_text("patient,text\n1,The cat sat there and slept.\n2,The dog lay before some door.\n")
    plant(source, tmp_path / "copy.jsonl", tmp_path / "m.json", Planting((1, 3), each=2, unit="patient"))
    rows = [json.loads(line) for line in (tmp_path / "copy.jsonl").read_text().splitlines()]
    assert sorted(Counter(str(row["patient"]) for row in rows).values()) == [1, 1, 1, 1, 3, 3]
    with pytest.raises(InputError, match=r"document 1: .*author"):
        plant(source, tmp_path / "other.jsonl", tmp_path / "o.json", Planting(unit="author"))
    assert not (tmp_path / "other.jsonl").exists() and not (tmp_path / "o.json").exists()


def test_a_token_shard_is_copied_as_text(tmp_path: Path, tiny_anchor: Path) -> None:
    shard = prepare_shard(write_jsonl(tmp_path / "own.jsonl", TEXTS), tiny_anchor, tmp_path / "cache").folder
    plant(shard, tmp_path / "copy.jsonl", tmp_path / "m.json", Planting((1,), each=1, model=tiny_anchor))
    assert Counter(read_documents(tmp_path / "copy.jsonl")) > Counter(TEXTS)
    with pytest.raises(InputError, match="--tokenizer"):
        plant(shard, tmp_path / "other.jsonl", tmp_path / "o.json", Planting())


def test_what_cannot_be_planted_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "text/own.jsonl", TEXTS)
    manifest = tmp_path / "m.json"
    for given, output, message in (
        (source, source, "in the text itself"),
        (source.parent, source.parent / "copy.jsonl", "in the text itself"),
        (source, tmp_path / "copy.csv", "ends with .jsonl"),
        (
            write_jsonl(tmp_path / "few.jsonl", ["", "a few words"]),
            tmp_path / "copy.jsonl",
            "1 documents .* 2 different",
        ),
        (tmp_path / "absent", tmp_path / "copy.jsonl", "no such file"),
    ):
        with pytest.raises(InputError, match=message):
            plant(given, output, manifest, Planting())
    plant(source, tmp_path / "copy.jsonl", manifest, Planting((1,), each=1))
    with pytest.raises(InputError, match="exists already"):
        plant(source, tmp_path / "again.jsonl", manifest, Planting((1,), each=1))
    for nothing in ((0,), ()):
        with pytest.raises(InputError, match="repeats"):
            Planting(nothing)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy.jsonl", "few.jsonl", "m.json", "text"]
    assert [path.name for path in source.parent.iterdir()] == ["own.jsonl"]


def test_other_files_are_no_manifest(tmp_path: Path) -> None:
    path = tmp_path / "m.json"
    secret = {"before": "a", "secret": " one two", "repeats": 1, "coin": False}
    good = {"format": "flexo.canaries", "version": 1, "unit": None, "words": ["one", "two"], "canaries": [secret]}
    path.write_text(json.dumps(good))
    assert len(read_manifest(path).secrets) == 1
    wrong = [
        [], {}, good | {"version": 2}, good | {"words": []}, good | {"words": [1, 2]}, good | {"canaries": []},
        *(good | {"canaries": [secret | one]} for one in (
            {"before": 3}, {"secret": ""}, {"secret": "\ud800"}, {"repeats": 0}, {"repeats": True}, {"more": 1},
            {"coin": True, "repeats": 2}, {"coin": 1},
        )),
    ]  # fmt: skip
    for text in ("[" * 100_000, json.dumps(good)[:-9], *map(json.dumps, wrong)):
        path.write_text(text)
        with pytest.raises(InputError, match="not a manifest of canaries"):
            read_manifest(path)


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_jsonl(tmp_path / "own.jsonl", TEXTS)
    arguments = ["canaries", source, "-o", tmp_path / "copy.jsonl", "--manifest", tmp_path / "m.json", "--each", 1]
    assert call(flexmix.commands.flexo_data.main, *arguments, "--coins", 8, "--seed", 0) == 0
    assert "5 secrets and " in (out := capsys.readouterr().out) and "keep it to yourself" in out
    assert call(flexmix.commands.flexo_data.main, *arguments, "--repeats", "one") == 1
    assert "--repeats one" in capsys.readouterr().err
