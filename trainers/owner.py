"""What a data owner brings to a run: an anchor, text of a domain, and public text beside it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from flexmix.documents.corpus import HubSource, find_split
from flexmix.documents.hub import local_folder
from flexmix.packing.datamodule import TextModule
from flexmix.packing.windows import Packed
from flexmix.tokens.shard import text_digest
from flexo.console import progress
from flexo.errors import InputError
from merge.formats.anchor_folder import Anchor, open_anchor
from merge.formats.expert_header import Data, check_domain
from trainers.data import DataOptions, OwnText, find_own_text, own_sources, packed_windows, plain_windows
from trainers.loop.run import Run

ONCE = 1.05  # reads of a text, up to which it counts as read once
MANY_READS = (
    "note: own text is read {reads:.1f} times. What is read more than once can be told from the file, planted secrets "
    "in full: see how much with flexo-leak, set a lower data.tokens, or train with privacy=dp (docs/privacy.md)."
)


@dataclass(frozen=True)
class Domain:
    """An owner's domain: its name, what to call it, and where its text is."""

    name: str
    title: str = ""
    licence: str = "other"
    contact: str = ""
    train: Path | None = None
    test: Path | None = None
    hub: HubSource | None = None


@dataclass(frozen=True)
class OwnerOptions:
    """Whose text is trained on, against which anchor, and where both are."""

    domain: Domain
    anchor: str  # a folder with `flexo/` in it, or `hf://OWNER/NAME` of one
    corpora: Path  # where sample corpora are, for domains without files of their own
    public: Path | None = None  # a folder with public `train` and `test`; None: the text that came with the anchor


@dataclass(frozen=True)
class Owner:
    """A domain's text and the public text, found and named, beside the anchor that says how they become tokens."""

    domain: Domain
    anchor: Anchor
    text: OwnText
    reference: Path | None  # the folder of public text
    public: dict[str, Path]  # its splits, or nothing

    def text_digests(self) -> dict[str, str]:
        """Digests of all text that decides about a run's result."""
        files = {"train": self.text.train[0].path, "test": self.text.test}
        files |= {f"public_{split}": path for split, path in self.public.items()}
        files |= {f"train_{n}": source.path for n, source in enumerate(self.text.train[1:], 2)}
        return {name: text_digest(path) for name, path in files.items() if path}

    def texts(self, run: Run) -> TextModule:
        """Own windows with their share of public ones, and both held-out sets. Says how often what is read."""
        data, folder = run.data, self.anchor.folder
        mixed = self.public and data.public_share
        texts = run.texts(
            own_sources(self.text, folder, data),
            self.held_out(data),
            packed_windows(self.public["train"], folder, data) if mixed else None,
            data.temperature,
        )
        rows = texts.own.counts(round(data.steps * data.batch_size * (1 - data.public_share)))
        reads = [count / len(stream.windows) for count, stream in zip(rows, texts.own.streams, strict=True)]
        if len(reads) > 1:
            parts = zip(self.text.train, rows, reads, strict=True)
            told = (f"{source.path} {count / sum(rows):.0%} ({read:.1f} epochs)" for source, count, read in parts)
            run.tell("own rows: " + ", ".join(told))
        if max(reads) > ONCE:
            run.tell(MANY_READS.format(reads=max(reads)))
        return texts

    def held_out(self, data: DataOptions) -> dict[str, Packed]:
        """Windows to measure on: `own` and `public`, as far as there are any."""
        texts = {"own": self.text.test, "public": self.public.get("test")}
        return {
            name: plain_windows(path, self.anchor.folder, data, data.loss_on if name == "own" else "all")
            for name, path in texts.items()
            if path
        }


def find_owner(options: OwnerOptions, run: Run) -> Owner:
    """Opens the anchor and finds the text of both kinds, and says what it found.

    Raises `InputError` if the name of the domain is not allowed, if text is missing, or if a share of public text is
    asked for and there is none.
    """
    domain, data = options.domain, run.data
    check_domain(domain.name, "domain.name")
    anchor = open_anchor(local_folder(options.anchor))
    with progress("reading the anchor", anchor.weights.nbytes) as anchor.advance:
        _ = anchor.digest  # of all its weights: kept from here on
    text = find_own_text(domain.name, options.corpora, domain.train, domain.test, domain.hub, data.mixture)
    run.tell(f"reading {text.said}")
    reference = options.public or anchor.reference
    public = {split: find_split(reference, split) for split in ("train", "test")} if reference.is_dir() else {}
    run.tell(f"public text: {reference}" if public else "public text: none")
    if not public and data.public_share:
        raise InputError(
            f"{anchor.folder}: no public reference text came with this anchor, and data.public_share is "
            f"{data.public_share}. Give public text with data.public=FOLDER, or set data.public_share=0."
        )
    return Owner(domain, anchor, text, reference if public else None, public)


def count_own(texts: TextModule) -> Data:
    """How much of the owner's text there is."""
    shards = [stream.windows.shard for stream in texts.own.streams]
    return Data(sum(shard.documents for shard in shards), sum(shard.tokens for shard in shards))
