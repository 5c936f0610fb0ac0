"""Training the router rows of a merged model on proxies and public text; experts and all else stay bit for bit.

Owners name public documents that look like theirs (`flexo-data proxies`); no private text is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning as L  # noqa: N812 - the name everyone uses
import torch
from transformers import AutoModelForCausalLM

from flexmix.documents.corpus import find_split, require_text
from flexmix.packing.datamodule import BatchOptions, TextModule
from flexmix.packing.mixture import WeightedWindows
from flexmix.tokens.shard import text_digest
from flexo.atomic_files import refuse_occupied
from flexo.console import progress
from flexo.errors import InputError
from merge.formats.architecture import merged_router
from merge.formats.manifest import public_weight_of
from merge.formats.merged_folder import Merged, open_merged
from merge.planning.router_rows import write_rows
from trainers.data import DataOptions
from trainers.distributed import is_first
from trainers.loop.curves import draw_curves
from trainers.loop.module import LossOptions
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.run_folder import work_folder
from trainers.loop.trainer import Metrics, RunOptions, fit, resolve_precision
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
    *,
    model_path: Path,
    output: Path,
    public_path: Path,
    proxies: Mapping[str, Path],
    data: DataOptions,
    router: RouterOptions,
    optimizer: OptimizerOptions,
    loss: LossOptions,
    run: RunOptions,
    logger: Any = None,
    seed: int = 0,
    resume: bool = True,
    say: Callable[[str], None] = print,
) -> RouterResult | None:
    """Trains the router rows of the merged folder `model_path` and writes the model with them to `output`.

    Args:
        model_path: a folder of `flexo-merge` or `flexo-btx`.
        output: the folder to make.
        public_path: a folder with public `train` and `test`.
        proxies: domain -> its documents, a `.jsonl[.gz]` file, or a folder with `train` and `test`; may be empty.
        data, router, optimizer, loss, run: options.
        logger: of Lightning, or None.
        seed: of the order of windows.
        resume: go on with an unfinished run of the same settings.
        say: told in a line each what is read.

    Returns:
        What was made; None on every device of a run but the first.

    Raises:
        InputError: text, model or settings are unusable, or `output` is not free. Nothing was written then.
    """
    refuse_occupied(output)
    if run.strategy == "fsdp":
        raise InputError("run.strategy=fsdp: a router is trained whole on every device. Use ddp.")
    merged = open_merged(model_path)
    for domain in proxies:
        if domain not in merged.domains[1:]:
            raise InputError(
                f"proxies.{domain}: no such expert in {model_path}. It has {', '.join(merged.domains[1:])}."
            )
    if is_first() and (without := [name for name in merged.domains[1:] if name not in proxies]):
        say(f"no proxies for {', '.join(without)}: their rows learn from the other text alone")
    train = {"public": find_split(public_path, "train")} | {
        name: _split(path, "train") for name, path in proxies.items()
    }
    held = {"public": find_split(public_path, "test")} | {name: _split(path, "test") for name, path in proxies.items()}
    shares = _shares(router.public_share, list(proxies), public_weight_of(model_path, merged.manifest))
    L.seed_everything(seed, verbose=False)
    settings = {
        "model": merged.checkpoint.digest(), "data": data.settings(), "router": asdict(router), "shares": shares,
        "optimizer": asdict(optimizer), "loss": asdict(loss), "precision": run.precision, "seed": seed,
        "text": {name: text_digest(path) for name, path in train.items()},
    }  # fmt: skip
    with work_folder(output, settings, resume) as work:
        windows = {name: data.training_windows(path, model_path) for name, path in train.items()}
        module = TextModule(
            [WeightedWindows(windows[name], share) for name, share in shares.items()],
            {name: data.windows(path, model_path) for name, path in held.items()},
            BatchOptions(data.batch_size, data.steps, seed, eval_windows=data.eval_windows, parts=run.accumulate),
        )
        dtype = torch.bfloat16 if resolve_precision(run.precision).startswith("bf16") else torch.float32
        model = train_rows_only(
            AutoModelForCausalLM.from_pretrained(model_path, dtype=dtype),
            [merged.checkpoint.tensor(merged_router(n)) for n in range(merged.architecture.num_hidden_layers)],
            router.train_public_row,
        )
        run.prepare(model)
        lit = LitRouted(model, optimizer, loss, data.steps, module.held_out_names, merged.domains, list(shares))
        before, after = fit(lit, module, run, work, logger, "training the router", data.tokens_per_step)
        if not is_first():
            return None
        read = {name: windows[name].shard for name in shares}
        about = {
            "rows": "all" if router.train_public_row else "all but the public one",
            "text": {
                name: {"share": share, "documents": read[name].documents, "tokens": read[name].tokens}
                for name, share in shares.items()
            },
            "private_text": False,
            "tokens": data.steps * data.tokens_per_step, "steps": data.steps, "seed": seed,
            "learning_rate": optimizer.lr, "router_z": loss.router_z, "stay": loss.stay, "own_domain": loss.own_domain,
            "losses": {name: [before[f"{name}/loss"], after[f"{name}/loss"]] for name in held},
        }  # fmt: skip
        rows = {n: layer.mlp.gate.weight().detach().cpu() for n, layer in enumerate(lit.model.model.layers)}
        _write(merged, rows, output, about)
        (work / "last.ckpt").unlink(missing_ok=True)
        curves = draw_curves(work, f"router of {output.name}")
    return RouterResult(output, about, before, after, curves)


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
    with progress("writing", merged.checkpoint.nbytes) as advance:
        write_rows(merged, rows, output, manifest, advance)
