"""Training the router rows of a merged model on proxies and public text; experts and all else stay bit for bit.

Owners name public documents that look like theirs (`flexo-data proxies`); no private text is read here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from flexmix.documents.corpus import find_split, require_text
from flexmix.packing.mixture import WeightedWindows
from flexmix.tokens.shard import TokenShard, text_digest
from flexo.console import progress
from flexo.errors import InputError
from merge.formats.architecture import merged_router
from merge.formats.merged_folder import Merged, open_merged
from merge.planning.router_rows import write_rows
from trainers.data import packed_windows, plain_windows
from trainers.distributed import is_first
from trainers.loop.curves import draw_curves
from trainers.loop.run import Run
from trainers.loop.trainer import Metrics
from trainers.router.module import LitRouted
from trainers.router.trained_rows import train_rows_only


@dataclass(frozen=True)
class RouterOptions:
    """Which rows are trained, and on how much of what."""

    public_share: float | None = None  # of the windows; None: public text counts for as many domains as in the merge
    train_public_row: bool = False  # as published; the other rows alone can express the same routing

    def __post_init__(self) -> None:
        if self.public_share is not None and not 0 < self.public_share <= 1:
            raise InputError(f"router.public_share={self.public_share}: expected a share above 0, at most 1, or null.")


@dataclass(frozen=True)
class RouterResult:
    """What router training made."""

    path: Path
    about: dict[str, Any]  # `router_training` of the manifest
    before: Metrics
    after: Metrics
    curves: Path | None


def train_router(
    model_path: Path, public_path: Path, proxies: Mapping[str, Path], router: RouterOptions, run: Run
) -> RouterResult | None:
    """Trains the router rows of the merged folder `model_path` and writes the model with them to `run.output`.

    Args:
        model_path: a folder of `flexo-merge` or `flexo-btx`.
        public_path: a folder with public `train` and `test`.
        proxies: domain -> its documents, a `.jsonl[.gz]` file, or a folder with `train` and `test`; may be empty.
        router: which rows are trained, and on how much of what.
        run: everything else.

    Returns:
        What was made; None on every device of a run but the first.

    Raises:
        InputError: text, model or settings are unusable, or the output is not free. Nothing was written then.
    """
    run.check_whole("a router")
    merged = open_merged(model_path)
    _check_proxies(proxies, merged, run)
    train, held_out = (_texts(public_path, proxies, split) for split in ("train", "test"))
    shares = _shares(router.public_share, list(proxies), merged.public_weight)
    settings = {"model": merged.weights.digest(), "router": asdict(router), "shares": shares} | run.settings
    settings |= {"text": {name: text_digest(path) for name, path in train.items()}}
    with run.work_folder(settings) as work:
        windows = {name: packed_windows(path, model_path, run.data) for name, path in train.items()}
        texts = run.texts(
            [WeightedWindows(windows[name], share) for name, share in shares.items()],
            {name: plain_windows(path, model_path, run.data) for name, path in held_out.items()},
        )
        model = train_rows_only(
            AutoModelForCausalLM.from_pretrained(model_path, dtype=run.dtype),
            [merged.weights.tensor(merged_router(n)) for n in range(merged.architecture.num_hidden_layers)],
            router.train_public_row,
        )
        run.trainer.prepare(model)
        names = texts.held_out_names
        lit = LitRouted(model, run.optimizer, run.loss, run.data.steps, names, merged.domains, list(shares))
        before, after = run.fit(lit, texts, work, "training the router")
        if not is_first():
            return None
        read = {name: _said_of(windows[name].shard, share) for name, share in shares.items()}
        losses = {name: [before[f"{name}/loss"], after[f"{name}/loss"]] for name in held_out}
        about = _about(router, run, read, losses)
        rows = {n: layer.mlp.gate.weight().detach().cpu() for n, layer in enumerate(lit.model.model.layers)}
        _write(merged, rows, run.output, about)
        curves = draw_curves(work, f"router of {run.output.name}")
    return RouterResult(run.output, about, before, after, curves)


def _check_proxies(proxies: Mapping[str, Path], merged: Merged, run: Run) -> None:
    """Raises `InputError` for proxies of a domain that the model lacks, and says which domains have none."""
    for domain in proxies:
        if domain not in merged.domains[1:]:
            raise InputError(
                f"proxies.{domain}: no such expert in {merged.folder}. It has {', '.join(merged.domains[1:])}."
            )
    if without := [name for name in merged.domains[1:] if name not in proxies]:
        run.tell(f"no proxies for {', '.join(without)}: their rows learn from the other text alone")


def _texts(public: Path, proxies: Mapping[str, Path], split: str) -> dict[str, Path]:
    """The files of a split: that of public text, and those of the domains that have proxies."""
    return {"public": find_split(public, split)} | {name: _split(path, split) for name, path in proxies.items()}


def _said_of(shard: TokenShard, share: float) -> dict[str, Any]:
    """What the manifest says of a text that was read."""
    return {"share": share, "documents": shard.documents, "tokens": shard.tokens}


def _about(
    router: RouterOptions, run: Run, texts: dict[str, dict[str, Any]], losses: dict[str, list[float]]
) -> dict[str, Any]:
    """`router_training` of the manifest."""
    return {
        "rows": "all" if router.train_public_row else "all but the public one",
        "text": texts,
        "private_text": False,
        **run.extent,
        "learning_rate": run.optimizer.peak,
        "router_z": run.loss.router_z,
        "stay": run.loss.stay,
        "own_domain": run.loss.own_domain,
        "losses": losses,
    }


def _split(path: Path, split: str) -> Path:
    """The file of a split in a folder; a single file stands for both, and its held-out loss is then of seen text."""
    if path.is_dir():
        return find_split(path, split)
    require_text(path)
    return path


def _shares(public_share: float | None, proxies: list[str], public_weight: float) -> dict[str, float]:
    """The share of each text: public, and the rest evenly over the domains that have proxies."""
    if not proxies:
        return {"public": 1.0}
    public = public_weight / (len(proxies) + public_weight) if public_share is None else public_share
    if public == 1:
        return {"public": 1.0}
    return {"public": public} | {name: (1 - public) / len(proxies) for name in proxies}


def _write(merged: Merged, rows: dict[int, torch.Tensor], output: Path, about: dict[str, Any]) -> None:
    manifest = merged.manifest | {
        "how": f"{merged.manifest.get('how', 'merged')}; router rows trained afterwards",
        "router_training": about,
    }
    with progress("writing", merged.weights.nbytes) as advance:
        write_rows(merged, rows, output, manifest, advance)
