"""The embedding of a domain: moments of its text as its anchor, a merged model or a text encoder sees it.

measured_embedding(Path("data/corpora/math"), Path("anchor"), data).write(Path("math.safetensors"))
"""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from flexmix.documents.corpus import find_split, read_documents
from flexmix.domains.embedding import Embedding
from flexmix.packing.loaders import EvalLoader
from flexo.console import progress
from merge.formats.anchor_folder import open_anchor
from merge.formats.merged_folder import open_merged
from trainers.data import DataOptions, plain_windows
from trainers.distributed import measuring_device
from trainers.router.row_init import check_merged_on, router_input_moments


def measured_embedding(
    text: Path,
    anchor: Path,
    data: DataOptions,
    *,
    domain: str | None = None,
    model: Path | None = None,
    means_only: bool = False,
) -> Embedding:
    """The moments of the router input in every layer of an anchor or of a merged model.

    Args:
        text: a corpus file, or a folder with a `train` in it.
        anchor: its folder.
        data: `moment_windows` of `length` tokens are read, `batch_size` at once; shards are kept in `cache`.
        domain: its name; None: that of the folder or file.
        model: a merged folder to measure in; None: the anchor.
        means_only: leaves second moments out.

    Raises:
        InputError: text, anchor or model are unusable, or the model was merged on another anchor.
    """
    path, name, opened = _train_file(text), domain or _domain_name(text), open_anchor(anchor)
    loader = EvalLoader(plain_windows(path, anchor, data), data.batch_size, data.moment_windows)
    digest = opened.digest
    if model is not None:
        merged = open_merged(model)
        check_merged_on(merged, opened)
        digest = merged.weights.digest()
    loaded = AutoModelForCausalLM.from_pretrained(model or anchor, dtype=torch.float32)
    with progress(f"measuring {name}", len(loader) * data.tokens_per_step, "tokens") as advance:
        moments = router_input_moments(loaded, loader, advance, measuring_device("auto"))
    return Embedding.of(name, "router_input", digest, moments, means_only)


def encoded_embedding(
    text: Path,
    anchor: Path,
    *,
    domain: str | None = None,
    documents: int = 1000,
    seed: int = 0,
    means_only: bool = False,
) -> Embedding:
    """The moments of documents as a text encoder sees them (extra `encoder`), projected to the anchor's width.

    Args:
        text, anchor, domain, means_only: as of `measured_embedding`.
        documents: to read, at most.
        seed: of the projection.
    """
    from flexmix.domains.text_encoder import encoder_name, text_moments

    path, name, width = _train_file(text), domain or _domain_name(text), open_anchor(anchor).architecture.hidden_size
    with progress(f"embedding {name}", documents, "documents") as advance:
        moments = [text_moments(read_documents(path), width, seed, documents, advance)]
    return Embedding.of(name, "text", encoder_name(seed), moments, means_only)


def _train_file(text: Path) -> Path:
    """The file to read of a corpus folder; a file is itself."""
    return find_split(text, "train") if text.is_dir() else text


def _domain_name(text: Path) -> str:
    """What a domain is called after its folder or file."""
    return text.resolve().name if text.is_dir() else text.name.partition(".")[0]
