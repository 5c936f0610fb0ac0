"""Text as it is exported, all the way to shards: damaged lines, typed filters, files not read, conversations."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import flexmix.commands.flexo_data
from flexmix.documents.source import Source
from flexmix.prepare.options import Options, parse_skip_damaged
from flexmix.prepare.pipeline import prepare
from flexmix.prepare.statistics import Statistics, check_prepared, read_statistics
from flexmix.tokens.encoder import load_encoder
from flexmix.tokens.shard import TokenShard, open_shard, prepare_shard
from flexo.errors import InputError
from tests.flexmix.reading import STORIES
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call, listing


def run(source: Path | Source, output: Path, model: Path, workers: int = 1, **options: Any) -> Statistics:
    source = source if isinstance(source, Source) else Source(str(source))
    given = Options(**{"held_out": 0.0} | options)
    found = prepare([source], output, model, given, workers=workers, say=lambda _line: None)
    assert found is not None
    return found


def texts(folder: Path, model: Path) -> list[str]:
    """The documents of a shard, for a tokenizer that gives back what it took."""
    shard, tokenizer = open_shard(folder), load_encoder(model).tokenizer
    ids = shard.ids.tolist()
    bounds = zip(shard.starts[:-1].tolist(), shard.starts[1:].tolist(), strict=True)
    return [tokenizer.decode(ids[first + 1 : last], skip_special_tokens=False) for first, last in bounds]


# --- damaged lines


def with_damage(path: Path, damaged: int) -> Path:
    lines = [json.dumps({"text": story}) for story in STORIES]
    lines[5:5] = ['{"text": "half of a pair \\ud83d"}', '{"text": "a", "text": "b"}', "no JSON", '{"body": "x"}'][
        :damaged
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_damaged_lines_are_set_aside_up_to_a_number(tiny_anchor: Path, tmp_path: Path) -> None:
    source = with_damage(tmp_path / "a.jsonl", 3)
    for workers, task in ((1, 1 << 20), (2, 500)):
        output = tmp_path / f"out-{workers}"
        found = run(source, output, tiny_anchor, workers, skip_damaged=3, task_bytes=task)
        assert (found.read, found.damaged, found.train.documents) == (43, 3, 40)
        assert listing(output) == {"train", "statistics.json", "statistics.png", "damaged.jsonl"}
        lines = [json.loads(line) for line in (output / "damaged.jsonl").read_text().splitlines()]
        assert [(line["file"], line["at"]) for line in lines] == [(str(source), f"line {n}") for n in (6, 7, 8)]
        assert lines[1]["reason"].startswith("the key 'text' is there twice") and lines[2]["beginning"] == "no JSON\n"
        assert check_prepared(output) == read_statistics(output) == found


def test_more_than_that_are_refused_and_nothing_is_left_behind(tiny_anchor: Path, tmp_path: Path) -> None:
    source = with_damage(tmp_path / "a.jsonl", 4)
    with pytest.raises(InputError, match=r"a.jsonl: line 6: the text holds half of a surrogate pair"):
        run(source, tmp_path / "out", tiny_anchor)
    with pytest.raises(
        InputError, match=r"line 9: no column 'text' .* More damaged lines than --skip-damaged 3 allows"
    ):
        run(source, tmp_path / "out", tiny_anchor, skip_damaged=3)
    with pytest.raises(InputError) as caught:  # over all tasks, of which none has more
        run(source, tmp_path / "out", tiny_anchor, skip_damaged=3, task_bytes=150)
    assert str(caught.value).startswith("4 damaged lines of 44, and --skip-damaged allows 3. The first: ")
    assert str(caught.value).count("a.jsonl: line") == 3
    assert listing(tmp_path) == {"a.jsonl"}


def test_a_share_is_of_all_lines(tiny_anchor: Path, tmp_path: Path) -> None:
    source = with_damage(tmp_path / "a.jsonl", 4)
    with pytest.raises(InputError, match=r"4 damaged lines of 44, and --skip-damaged allows 0.09"):
        run(source, tmp_path / "out", tiny_anchor, skip_damaged=0.09)
    assert run(source, tmp_path / "out", tiny_anchor, skip_damaged=0.1).damaged == 4


def test_how_a_number_or_share_is_written() -> None:
    assert [parse_skip_damaged(text) for text in ("0", "20", "0.01", "1%", "0.5%")] == [0, 20, 0.01, 0.01, 0.005]
    assert isinstance(parse_skip_damaged("1%"), float) and isinstance(parse_skip_damaged("1"), int)
    for wrong in ("", "many", "1e3x", "%"):
        with pytest.raises(InputError, match=r"--skip-damaged .*: expected a number of lines \(20\), or a share"):
            parse_skip_damaged(wrong)
    for number in (-1, 1.0, -0.1):
        with pytest.raises(InputError, match="expected a number of lines, or a share below 1"):
            Options(skip_damaged=number)


def test_what_is_damaged_as_a_whole_is_never_set_aside(tiny_anchor: Path, tmp_path: Path) -> None:
    data = gzip.compress(with_damage(tmp_path / "x", 0).read_bytes() * 50)
    (tmp_path / "a.jsonl").write_bytes(data[:-30])
    with pytest.raises(InputError, match=r"a.jsonl: damaged gzip"):
        run(tmp_path / "a.jsonl", tmp_path / "out", tiny_anchor, skip_damaged=0.5)


# --- filters


def test_typed_filters_and_what_was_found_when_nothing_matches(tiny_anchor: Path, tmp_path: Path) -> None:
    table = {
        "text": STORIES, "keep": [n % 2 == 0 for n in range(40)], "pages": list(range(40)),
        "lang": [None if n % 4 == 0 else "en" for n in range(40)],
    }  # fmt: skip
    pq.write_table(pa.table(table), tmp_path / "a.parquet")
    for n, (given, count) in enumerate({"keep=true": 20, "lang=null": 10, "pages=3": 1, "pages=3.0": 1}.items()):
        name, _, value = given.partition("=")
        found = run(Source(str(tmp_path / "a.parquet"), where={name: value}), tmp_path / f"{n}", tiny_anchor)
        assert (found.train.documents, found.filtered) == (count, {given: 40 - count})
    for given, said in (
        ("keep=yes", r"Found: keep is true \(20\), false \(20\)\. Loosen"),
        ("lang=de", r"Found: lang is en \(30\), null \(10\)\. "),
        ("pages=99", r"Found: pages is 0 \(1\), 1 \(1\), .*11 \(1\) and others\. "),
    ):
        name, _, value = given.partition("=")
        with pytest.raises(InputError, match=said):
            run(
                Source(str(tmp_path / "a.parquet"), where={name: value}), tmp_path / "none", tiny_anchor, task_bytes=300
            )


def test_documents_with_endless_words_are_left_out_and_counted(tiny_anchor: Path, tmp_path: Path) -> None:
    long = "see " + "QUJD" * 300 + " above"
    source = write_jsonl(tmp_path / "a.jsonl", [*STORIES, long, "x" * 1001, "word " * 1000])
    found = run(Source(str(source), max_word=1000), tmp_path / "out", tiny_anchor)
    assert found.filtered == {"a word longer than 1000": 2} and found.train.documents == 41


@pytest.mark.parametrize(
    "letters",
    [
        "កខគឃងចឆជឈញដឋឌឍណតថទធនបផពភមយរលវសហឡអ", "ກຂຄງຈຊຍດຕຖທນບປຜຝພຟມຢຣລວສຫອຮ",
        "ကခဂဃငစဆဇညဋဌဍဎဏတထဒဓနပဖဗဘမယရလဝသဟအ", "ཀཁགངཅཆཇཉཏཐདནཔཕབམཙཚཛཝཞཟའཡརལཤསཧ", "กขคฆงจฉชซฌญฎฏฐฑฒณดตถทธนบปผ",
        "一丁七万丈三上下不与丐丑专且世丘丙业丛东丝丞丢两严丧",
    ],
    ids=["Khmer", "Lao", "Burmese", "Tibetan", "Thai", "Chinese"],
)  # fmt: skip
def test_near_duplicates_without_spaces_are_found(tiny_anchor: Path, tmp_path: Path, letters: str) -> None:
    dice = np.random.default_rng(0)
    one, other = ("".join(dice.choice(list(letters), 400)) for _ in range(2))
    near = one[:200] + letters[0] + one[201:]
    source = write_jsonl(tmp_path / "a.jsonl", [one, other, near])
    found = run(source, tmp_path / "out", tiny_anchor, duplicates="near")
    assert (found.duplicates_exact, found.duplicates_near, found.train.documents) == (0, 1, 2)


# --- files that are not read


def test_every_file_that_is_not_read_is_named_and_kept(
    tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", STORIES)
    (tmp_path / "in/scan.pdf").write_bytes(b"%PDF-1.7 \0\1\2")
    (tmp_path / "in/sub").mkdir()
    (tmp_path / "in/sub/README.md").write_text("About")
    (tmp_path / "in/gone").symlink_to("nowhere")
    output = tmp_path / "out"
    assert (
        call(flexmix.commands.flexo_data.main, "prepare", tmp_path / "in", "-o", output, "--tokenizer", tiny_anchor)
        == 0
    )
    said = capsys.readouterr().out
    for line in (
        "not read: 3 files or folders", "gone (a link to nowhere, which is not there)", "scan.pdf (a PDF document)",
        "sub/README.md (text beside data, which it describes)", "files not read: 1 .md, 1 .pdf, 1 gone",
    ):  # fmt: skip
        assert line in said
    assert read_statistics(output).files_left_out == {".md": 1, ".pdf": 1, "gone": 1}
    kept = [json.loads(line) for line in (output / "not_read.jsonl").read_text().splitlines()]
    assert [Path(line["file"]).name for line in kept] == ["gone", "scan.pdf", "README.md"]


# --- training reads the same


def test_training_reads_what_prepare_reads(chat_model: Path, tmp_path: Path) -> None:
    """The same documents from any form, null and damage alike."""
    rows = [{"text": text, "n": n} for n, text in enumerate([*STORIES[:20], None, *STORIES[20:]])]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    (tmp_path / "b.csv").write_text("n,text\n" + "".join(f'{n},"{row["text"] or ""}"\n' for n, row in enumerate(rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    for name in ("1.txt", "2.txt"):
        (tmp_path / "notes").mkdir(exist_ok=True)
        (tmp_path / "notes" / name).write_text(STORIES[int(name[0])])
    for place in ("a.json", "b.csv", "c.parquet", "notes"):
        prepared = run(tmp_path / place, tmp_path / f"out-{place}", chat_model)
        trained = prepare_shard(tmp_path / place, chat_model, tmp_path / "cache")
        ours = open_shard(tmp_path / f"out-{place}/train")
        assert trained.ids.tolist() == ours.ids.tolist() and trained.starts.tolist() == ours.starts.tolist()
        assert trained.empty == prepared.empty == (0 if place == "notes" else 1)
    damaged = with_damage(tmp_path / "d.jsonl", 1)
    refusals = []
    for read in (
        lambda: run(damaged, tmp_path / "none", chat_model),
        lambda: prepare_shard(damaged, chat_model, tmp_path / "c"),
    ):
        with pytest.raises(InputError) as caught:
            read()
        refusals.append(str(caught.value))
    assert refusals[0] == refusals[1]


# --- conversations


def talks(path: Path, count: int = 30) -> Path:
    rows = [
        {"messages": [
            {"role": "user", "content": f"What about {n}? Write to a{n}@example.org."},
            {"role": "assistant", "content": f"Answer {n}: call +49 30 1234567 or b@example.org."},
            {"role": "user", "content": "Thanks."}, {"role": "assistant", "content": f"Any time, {n}."},
        ]} for n in [*range(count), 3, 5]
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def said(shard: TokenShard, model: Path) -> list[str]:
    ids, tokenizer = [*shard.ids.tolist(), shard.end_of_text], load_encoder(model).tokenizer
    return [tokenizer.decode(ids[first:last], skip_special_tokens=False) for first, last in shard.answers]


@pytest.mark.parametrize(("workers", "task"), [(1, 1 << 20), (2, 700)])
def test_conversations_are_prepared_with_their_answers(
    chat_model: Path, tmp_path: Path, workers: int, task: int
) -> None:
    source = talks(tmp_path / "a.jsonl")
    found = run(source, tmp_path / "out", chat_model, workers, held_out=0.3, task_bytes=task, duplicates="near")
    assert found.read == 32 and found.duplicates_exact == 2
    assert found.train.conversations == found.train.documents and found.test.conversations == found.test.documents > 0
    numbers: list[int] = []
    for split in ("train", "test"):
        shard = open_shard(tmp_path / "out" / split, chat_model)
        documents = texts(tmp_path / "out" / split, chat_model)
        these = [int(re.search(r"What about (\d+)", text)[1]) for text in documents]  # type: ignore[index]
        numbers += these
        assert said(shard, chat_model) == [
            text for n in these for text in (
                f"Answer {n}: call +49 30 1234567 or b@example.org.<|endoftext|>", f"Any time, {n}.<|endoftext|>",
            )
        ]  # fmt: skip
        assert documents[0].startswith(
            f"<|user|>\nWhat about {these[0]}? Write to a{these[0]}@example.org.\n<|assistant|>"
        )
    assert len(numbers) == len(set(numbers)) == found.train.documents + found.test.documents


def test_scrubbing_keeps_the_answers(chat_model: Path, tmp_path: Path) -> None:
    found = run(talks(tmp_path / "a.jsonl", 4), tmp_path / "out", chat_model, scrub=True, duplicates="keep")
    assert (found.emails, found.phones) == (12, 6)
    shard = open_shard(tmp_path / "out/train")
    assert said(shard, chat_model)[:2] == [
        "Answer 0: call <phone> or <email>.<|endoftext|>",
        "Any time, 0.<|endoftext|>",
    ]


def test_text_and_conversations_in_one_folder(chat_model: Path, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    talks(tmp_path / "in/b.jsonl", 4)
    write_jsonl(tmp_path / "in/a.jsonl", STORIES[:5])
    found = run(tmp_path / "in", tmp_path / "out", chat_model)
    assert (found.train.documents, found.train.conversations) == (10, 5)
    assert len(open_shard(tmp_path / "out/train").answers) == 10


def test_a_conversation_without_a_template_is_refused_with_the_models_own_folder(
    tiny_anchor: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", talks(tmp_path / "a.jsonl"), "-o", tmp_path / "out", "--tokenizer", tiny_anchor]
    assert call(flexmix.commands.flexo_data.main, *arguments) == 1
    assert f"a.jsonl: line 1: a conversation, and {tiny_anchor} has no chat template" in capsys.readouterr().err


# --- the command


def test_the_command_takes_all_of_it(chat_model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = "body;lang;ok\r\n" + "".join(f"Straße {n} ist schön;de;{n % 2 == 0}\r\n" for n in range(20))
    (tmp_path / "a.csv").write_bytes((lines + "x;y\r\n" + "b" * 99 + ";de;True\r\n").encode("cp1252"))
    arguments = [
        "prepare", tmp_path / "a.csv", "-o", tmp_path / "out", "--tokenizer", chat_model, "--text", "body",
        "--encoding", "cp1252", "--separator", ";", "--where", "ok=True", "--max-word", 50,
        "--skip-damaged", "10%", "--held-out", 0,
    ]  # fmt: skip
    assert call(flexmix.commands.flexo_data.main, *arguments) == 0
    said_ = capsys.readouterr().out
    assert re.search(r"damaged, set aside .* 1 ", said_) and re.search(r"a word longer than 50 .* 1 ", said_)
    assert texts(tmp_path / "out/train", chat_model)[1] == "Straße 2 ist schön"


def test_names_of_samples_may_have_blanks_around_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def build(output: Path, domains: list[str] | None, **_: Any) -> dict[str, Any]:
        asked.append(domains)
        return {"domains": {}, "unbuilt": {}}

    monkeypatch.setattr("flexmix.sample.build.build", build)
    for names in ("public, math", " public ,math ", "public,math"):
        assert call(flexmix.commands.flexo_data.main, "sample", "-o", tmp_path, "--domains", names) == 0
    assert asked == [["public", "math"]] * 3
