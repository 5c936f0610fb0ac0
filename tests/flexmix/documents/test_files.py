"""Which files of a place are read: behind links, once each, and all others by name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flexmix.documents.files import NotRead, named
from flexmix.documents.reading import cut_into_tasks
from flexmix.documents.source import Source
from flexo.errors import InputError
from tests.flexmix.reading import STORIES, documents, texts
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call


def not_read(place: Path) -> dict[str, str]:
    """The names of files below a place that are not read, and why."""
    return {one.file.removeprefix(f"{place}/"): one.why for one in cut_into_tasks(Source(str(place))).not_read}


# --- links


def test_folders_and_files_behind_links_are_read(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "here/a.jsonl", STORIES[:10])
    write_jsonl(tmp_path / "there/b.jsonl", STORIES[10:20])
    write_jsonl(tmp_path / "there/deep/c.jsonl", STORIES[20:30])
    write_jsonl(tmp_path / "file.jsonl", STORIES[30:])
    (tmp_path / "here/more").symlink_to("../there", target_is_directory=True)
    (tmp_path / "here/z.jsonl").symlink_to(tmp_path / "file.jsonl")
    assert texts(tmp_path / "here") == STORIES and not_read(tmp_path / "here") == {}
    (tmp_path / "link").symlink_to("here")
    assert texts(tmp_path / "link") == STORIES


def test_circles_end_and_each_folder_is_read_once(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/a/a.jsonl", STORIES[:10])
    write_jsonl(tmp_path / "in/b/b.jsonl", STORIES[10:])
    (tmp_path / "in/a/up").symlink_to(tmp_path / "in")
    (tmp_path / "in/a/b").symlink_to("../b")
    (tmp_path / "in/b/a").symlink_to("../a")
    (tmp_path / "in/0-first").symlink_to("b")
    (tmp_path / "in/b/itself").symlink_to(".")
    (tmp_path / "in/out").symlink_to(tmp_path)
    assert sorted(texts(tmp_path / "in")) == sorted(STORIES)
    assert not_read(tmp_path / "in") == {
        "0-first/": "a link to b, which is read already", "a/b/": "a link to ../b, which is read already",
        "a/up/": f"a link to {tmp_path / 'in'}, which is read already", "b/a/": "a link to ../a, which is read already",
        "b/itself/": "a link to ., which is read already", "out/in/": "read already, by another path",
    }  # fmt: skip


def test_many_links_between_folders_take_no_time(tmp_path: Path) -> None:
    for n in range(30):
        write_jsonl(tmp_path / f"in/{n}/a.jsonl", [f"story {n}"])
    for n in range(30):
        for other in range(30):
            (tmp_path / f"in/{n}/to{other}").symlink_to(f"../{other}")
    assert len(texts(tmp_path / "in")) == 30 and len(not_read(tmp_path / "in")) == 900


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "in/a.jsonl", STORIES)
    (tmp_path / "in/gone.jsonl").symlink_to("/nowhere/b.jsonl")
    (tmp_path / "in/itself").symlink_to("itself")
    os.mkfifo(tmp_path / "in/pipe.jsonl")
    (tmp_path / "in/.hidden").mkdir()
    (tmp_path / "in/.git").write_text("")
    (tmp_path / "in/_SUCCESS").touch()
    assert texts(tmp_path / "in") == STORIES
    assert not_read(tmp_path / "in") == {
        "gone.jsonl": "a link to /nowhere/b.jsonl, which is not there", "pipe.jsonl": "a pipe", ".git": "hidden",
        "itself": "a link to itself, which is not there", ".hidden/": "hidden", "_SUCCESS": "empty",
    }  # fmt: skip
    with pytest.raises(InputError, match=r"gone.jsonl: a link to /nowhere/b.jsonl, which is not there. Copy what it"):
        texts(tmp_path / "in/gone.jsonl")


def test_a_folder_that_may_not_be_read_is_no_empty_one(locked: Path) -> None:
    with pytest.raises(PermissionError):
        texts(locked)


# --- tables, text and descriptions


def test_text_beside_tables_is_their_description_and_tables_beside_text_have_the_column(tmp_path: Path) -> None:
    for n, story in enumerate(STORIES):
        (tmp_path / f"{n:02}.txt").write_text(story)
    (tmp_path / "index.csv").write_text("file,title\n00.txt,Story 0\n")
    (tmp_path / "meta.json").write_text(json.dumps([{"file": "00.txt"}]))
    assert texts(tmp_path) == STORIES
    assert not_read(tmp_path) == {
        "index.csv": "CSV without the column 'text', beside text",
        "meta.json": "a JSON object, and neither it nor the lists in it have the column 'text'",
    } | {"meta.json": "JSON records without the column 'text', beside text"}  # fmt: skip
    (tmp_path / "index.csv").write_text("file,text\n00.txt,A text\n")
    (tmp_path / "meta.json").unlink()
    assert texts(tmp_path) == ["A text"] and len(not_read(tmp_path)) == 40


def test_a_table_without_the_column_beside_others_is_refused(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", STORIES)
    (tmp_path / "b.csv").write_text("body,n\none,1\n")
    with pytest.raises(InputError, match=r"b.csv: no column 'text' \(found 'body', 'n'\)"):
        texts(tmp_path)


def test_a_card_and_settings_beside_data_are_left_out(tmp_path: Path) -> None:
    """As repositories of datasets have them."""
    write_jsonl(tmp_path / "data/train.jsonl", STORIES)
    features = {"features": {"text": {"dtype": "string"}}, "splits": [{"name": "train"}], "description": "x" * 9000}
    (tmp_path / "dataset_info.json").write_text(json.dumps(features))
    (tmp_path / "pretty.json").write_text(json.dumps(features, indent=2))
    (tmp_path / "README.md").write_text("About")
    (tmp_path / "LICENSE").write_text("Free")
    assert texts(tmp_path) == STORIES
    assert set(not_read(tmp_path)) == {"dataset_info.json", "pretty.json", "README.md", "LICENSE"}


def test_any_text_is_a_document_where_it_is_named_itself(tmp_path: Path) -> None:
    for name in ("paper.tex", "notes", "code.py", "a.log"):
        (tmp_path / name).write_text("Some text.")
        (found,) = documents(tmp_path / name)
        assert found.text == "Some text." and found.columns["path"] == str(tmp_path / name)
    with pytest.raises(InputError, match=r"no text in a form that can be read \(found a.log \(plain text; in a folder"):
        texts(tmp_path)


def test_a_long_list_of_files_is_cut(tmp_path: Path) -> None:
    assert named([]) == []
    lines = named([NotRead(f"{n}.pdf", "a PDF document") for n in range(25)])
    assert lines[0] == "not read: 25 files or folders" and lines[1] == "  0.pdf (a PDF document)"
    assert lines[-1] == "  and 5 more" and len(lines) == 22


# --- columns from folders


def test_folder_names_are_columns(tmp_path: Path) -> None:
    for n, folder in enumerate(("year=2023/lang=en", "year=2024/lang=en", "year=2024/lang=__HIVE_DEFAULT_PARTITION__")):
        write_jsonl(tmp_path / f"parts/{folder}/a.jsonl", STORIES[10 * n : 10 * n + 10])
    write_jsonl(tmp_path / "parts/year=2025/lang=d%20e/a.jsonl", STORIES[30:])
    assert [one.columns["lang"] for one in documents(tmp_path / "parts")] == [
        *["en"] * 10, *[None] * 10, *["en"] * 10, *["d e"] * 10,
    ]  # fmt: skip
    assert {tuple(one.columns) for one in documents(tmp_path / "parts")} == {("year", "lang", "text")}
    inner = documents(tmp_path / "parts/year=2024")
    assert {one.columns["year"] for one in inner} == {"2024"} and len(inner) == 20
    (alone, *_) = documents(tmp_path / "parts/year=2023/lang=en/a.jsonl")
    assert (alone.columns["year"], alone.columns["lang"]) == ("2023", "en")


def test_a_column_of_the_table_comes_before_one_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "year=2024").mkdir()
    (tmp_path / "year=2024/a.csv").write_text("text,year\none,1999\n")
    assert documents(tmp_path)[0].columns["year"] == "1999"
    (tmp_path / "year=2024/a.csv").write_text("text,n\none,1\n")
    assert documents(tmp_path, where={"year": "2024"})[0].columns["year"] == "2024"


# --- names


@pytest.mark.parametrize(
    "name",
    ["lang=en", "Müller, A", "a (1)", "数据", "#1 @home", "it's", "a [b] *?", "~", "100%", "-x", "$HOME", "a\\b", "\t"],
)
def test_places_of_any_name(tmp_path: Path, tiny_anchor: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import flexmix.commands.flexo_data as command

    write_jsonl(tmp_path / name / f"{name}.jsonl", STORIES)
    for place in (tmp_path / name, tmp_path / name / f"{name}.jsonl"):
        assert texts(place) == STORIES
    monkeypatch.chdir(tmp_path)
    output = tmp_path / "out" / name
    assert call(command.main, "prepare", tmp_path / name, "-o", output, "--tokenizer", tiny_anchor) == 0
    assert call(command.main, "stats", output) == 0


def test_names_that_are_no_text(tmp_path: Path, tiny_anchor: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Bytes that are no UTF-8, as old disks and archives have them."""
    import flexmix.commands.flexo_data as command

    folder = os.fsencode(tmp_path / "in")
    os.mkdir(folder)  # noqa: PTH102 - a name of bytes
    for name in (b"caf\xe9.jsonl", b"scan\xe9.pdf"):
        with open(folder + b"/" + name, "wb") as file:  # noqa: PTH123
            file.write(b"%PDF-1.4 \0\0" if name.endswith(b"pdf") else write_jsonl(tmp_path / "x", STORIES).read_bytes())
    assert call(command.main, "prepare", tmp_path / "in", "-o", tmp_path / "out", "--tokenizer", tiny_anchor) == 0
    assert r"scan\udce9.pdf (a PDF document)" in capsys.readouterr().out
    line = json.loads((tmp_path / "out/not_read.jsonl").read_bytes().decode(errors="surrogateescape"))
    assert Path(line["file"]).exists() and line["why"] == "a PDF document"
