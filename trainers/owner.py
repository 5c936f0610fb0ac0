"""What a data owner brings to a run: an anchor, text of a domain, and public text beside it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flexmix.documents.corpus import HubSource, find_split
from flexmix.documents.hub import local_folder
from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.tokens.shard import text_digest
from flexo.errors import InputError
from merge.formats.anchor_folder import Anchor, open_anchor
from merge.formats.expert_header import Data, check_domain
from trainers.data import DataOptions, OwnText, find_own_text
from trainers.distributed import is_first
from trainers.loop.trainer import RunOptions

Say = Callable[[str], None]


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
class Owner:
    """A domain's text and the public text, found and named, beside the anchor that says how they become tokens."""

    domain: Domain
    anchor: Anchor
    text: OwnText
    reference: Path | None  # the folder of public text
    public: dict[str, Path]  # its splits, or nothing

    def text_digests(self) -> dict[str, str]:
        """What of the text decides about a run's result."""
        files = {"train": self.text.train[0].path, "test": self.text.test}
        files |= {f"public_{split}": path for split, path in self.public.items()}
        files |= {f"train_{n}": source.path for n, source in enumerate(self.text.train[1:], 2)}
        return {name: text_digest(path) for name, path in files.items() if path}

    def module(self, data: DataOptions, run: RunOptions, seed: int, say: Say) -> TextModule:
        """Own windows with their share of public ones, and both held-out sets."""
        folder = self.anchor.folder
        mixed = self.public and data.public_share
        held_out = {"own": self.text.test, "public": self.public.get("test")}
        module = TextModule(
            data.sources(self.text, folder),
            {name: data.windows(path, folder) for name, path in held_out.items() if path},
            BatchOptions(
                data.batch_size,
                data.steps,
                seed,
                public_share=data.public_share,
                temperature=data.temperature,
                eval_windows=data.eval_windows,
                parts=run.accumulate,
            ),
            data.training_windows(self.public["train"], folder) if mixed else None,
        )
        if len(self.text.train) > 1:
            say(self._mixture(module, data))
        return module

    def _mixture(self, module: TextModule, data: DataOptions) -> str:
        """How much of each source a run reads."""
        rows = module.own.counts(round(data.steps * data.batch_size * (1 - data.public_share)))
        parts = zip(self.text.train, module.own.streams, rows, strict=True)
        return "own rows: " + ", ".join(
            f"{source.path} {count / sum(rows):.0%} ({count / len(stream.windows):.1f} epochs)"
            for source, stream, count in parts
        )


def find_owner(
    domain: Domain,
    anchor_path: str,
    corpora: Path,
    data: DataOptions,
    public_path: Path | None,
    say: Say,
) -> Owner:
    """Opens the anchor and finds the text of both kinds, and says what it found.

    Raises `InputError` for a domain's name that is none, for text that is not there, and for a public share of nothing.
    """
    say = say if is_first() else _hush
    check_domain(domain.name, "domain.name")
    anchor = open_anchor(local_folder(anchor_path))
    text = find_own_text(domain.name, corpora, domain.train, domain.test, domain.hub, data.mixture)
    say(f"reading {text.said}")
    reference = public_path or anchor.reference
    public = {split: find_split(reference, split) for split in ("train", "test")} if reference.is_dir() else {}
    say(f"public text: {reference}" if public else "public text: none")
    if not public and data.public_share:
        raise InputError(
            f"{anchor.folder}: no public reference text came with this anchor, and data.public_share is "
            f"{data.public_share}. Give public text with data.public=FOLDER, or set data.public_share=0."
        )
    return Owner(domain, anchor, text, reference if public else None, public)


def count_own(module: TextModule) -> Data:
    """How much of the owner's text there is."""
    shards = [stream.windows.shard for stream in module.own.streams]
    return Data(sum(shard.documents for shard in shards), sum(shard.tokens for shard in shards))


def _hush(_line: str) -> None:
    pass
