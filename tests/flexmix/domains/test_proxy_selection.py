from __future__ import annotations

import gzip
import json
import random
import sys
from pathlib import Path
from typing import Any

import pytest

import flexmix.commands.flexo_data
from flexmix.documents.corpus import read_documents
from flexmix.domains.proxy_selection import Report, choose_proxies, fold_of
from flexo.errors import InputError
from tests.flexmix.text import write_jsonl
from tests.merge.tools import call, listing

MATH = [
    "let",
    "x",
    "be",
    "one",
    "two",
    "three",
    "plus",
    "minus",
    "equals",
    "sum",
    "of",
    "product",
    "then",
    "so",
    "we",
    "get",
]
RIVER = [
    "the",
    "city",
    "lies",
    "on",
    "a",
    "river",
    "and",
    "people",
    "live",
    "there",
    "since",
    "many",
    "years",
    "with",
    "dogs",
]
SECRET = "xylophone-4711"


def texts(words: list[str], count: int, seed: int, mark: str = "") -> list[str]:
    dice = random.Random(seed)
    return [" ".join([*dice.choices(words, k=dice.randint(8, 30)), mark]).strip() for _ in range(count)]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """Private text about numbers, and public text of which every fourth document is, too."""
    own = write_jsonl(tmp_path / "own.jsonl.gz", texts(MATH, 80, 1, SECRET))
    river, math = iter(texts(RIVER, 150, 2)), iter(texts(MATH, 50, 3))
    mixed = [next(math) if n % 4 == 3 else next(river) for n in range(200)]
    return own, write_jsonl(tmp_path / "public.jsonl", [*mixed[:7], " ", *mixed[7:]])


def choose(files: tuple[Path, Path], output: Path, **options: Any) -> Report:
    return choose_proxies(*files, output, **({"count": 30} | options))


def test_the_documents_that_look_alike_are_chosen_and_no_private_text(files: tuple[Path, Path], tmp_path: Path) -> None:
    report = choose(files, tmp_path / "out.jsonl.gz")
    public = list(read_documents(files[1]))
    chosen = list(read_documents(tmp_path / "out.jsonl.gz"))
    assert len(chosen) == report.chosen == 30
    assert all(text.split()[0] in MATH and text.split()[-1] in MATH for text in chosen)
    places = [public.index(text) for text in chosen]
    assert places == sorted(places)
    written = gzip.decompress((tmp_path / "out.jsonl.gz").read_bytes()).decode()
    assert SECRET not in written
    lines = [json.loads(line) for line in written.splitlines()]
    assert all(line.keys() == {"text", "score"} for line in lines)
    assert min(line["score"] for line in lines) == report.lowest_score
    assert (report.own_documents, report.public_documents, report.learnt_from) == (80, 200, (80, 200))
    assert report.accuracy > 0.8 and report.auc > 0.85
    assert report.chance_overlap == 0.15 < report.halves_overlap <= 1
    assert 0 <= report.one_left_out[0] <= report.one_left_out[1] <= 30
    assert report.bits_at_most == pytest.approx(117.33 + 30 * 9.967, abs=2)


def test_the_same_seed_gives_the_same_bytes(files: tuple[Path, Path], tmp_path: Path) -> None:
    reports = [choose(files, tmp_path / f"{n}.jsonl.gz", seed=seed) for n, seed in enumerate((0, 0, 1))]
    first, second, _ = ((tmp_path / f"{n}.jsonl.gz").read_bytes() for n in range(3))
    assert first == second and reports[0] == reports[1]


def test_text_that_is_the_same_cannot_be_told_apart(tmp_path: Path) -> None:
    own, public = (write_jsonl(tmp_path / f"{seed}.jsonl", texts(MATH, 300, seed)) for seed in (1, 2))
    report = choose((own, public), tmp_path / "out.jsonl.gz")
    assert abs(report.auc - 0.5) < 0.1 and abs(report.accuracy - 0.5) < 0.1
    assert report.halves_overlap < 0.5


def test_folds_follow_from_the_text() -> None:
    found = [fold_of(text) for text in texts(MATH, 1000, 1)]
    assert 400 < sum(found) < 600 and found == [fold_of(text) for text in texts(MATH, 1000, 1)]


@pytest.mark.parametrize(
    ("own", "options", "message"),
    [
        (texts(MATH, 39, 1), {}, r"own\.jsonl: 39 documents with text, expected at least 40"),
        ([" "] * 100, {}, "0 documents with text"),
        (["the same"] * 100, {}, "nearly all documents are the same"),
        (texts(MATH, 80, 1), {"count": 200}, r"public\.jsonl: 200 of 200 documents to choose"),
        (texts(MATH, 80, 1), {"count": None, "share": 0.0}, "0 of 200 documents to choose"),
        (texts(MATH, 80, 1), {"count": None, "share": 1.0}, "200 of 200 documents"),
    ],
)
def test_unusable_input_is_refused_and_nothing_written(
    files: tuple[Path, Path], tmp_path: Path, own: list[str], options: dict[str, Any], message: str
) -> None:
    path = write_jsonl(tmp_path / "own.jsonl", own)
    before = listing(tmp_path)
    with pytest.raises(InputError, match=message):
        choose((path, files[1]), tmp_path / "out.jsonl.gz", **options)
    assert listing(tmp_path) == before


def test_damaged_files_and_an_existing_output_are_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(files[0].read_bytes()[:-20])
    output = tmp_path / "out.jsonl.gz"
    with pytest.raises(InputError, match="damaged gzip"):
        choose((cut, files[1]), output)
    with pytest.raises(InputError, match="no such file"):
        choose((tmp_path / "none.jsonl", files[1]), output)
    output.write_bytes(b"mine")
    with pytest.raises(InputError, match="exists already"):
        choose(files, output)
    assert output.read_bytes() == b"mine"


def test_without_the_extra_the_message_names_it(
    files: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(InputError, match=r"pip install 'flexo\[proxies\]'"):
        choose(files, tmp_path / "out.jsonl.gz")


def test_the_command_reports_in_words_and_numbers(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["proxies", files[0], "--public", files[1], "-o", tmp_path / "out.jsonl.gz"]
    assert call(flexmix.commands.flexo_data.main, *arguments, "--json", tmp_path / "report.json") == 0
    said = capsys.readouterr().out
    assert "10 of 200 public documents" in said and "None of this is a guarantee" in said
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["chosen"] == 10 and f"accuracy {report['accuracy']:.3f}" in said
    assert call(flexmix.commands.flexo_data.main, *arguments) == 1
    assert "exists already" in capsys.readouterr().err
    assert call(flexmix.commands.flexo_data.main, *arguments, "--overwrite", "--share", "0.1", "--count", "3") == 1
    assert "both --share and --count" in capsys.readouterr().err
