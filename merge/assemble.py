"""Planning a merge and carrying it out: expert files in, one FlexOlmo folder out, no training and no data.

`plan` reads headers and shapes, and the anchor once for its digest, and refuses whatever does not fit together;
`execute` streams the tensors into a folder that appears whole or not at all, and refuses damaged values as they pass.
Between them the plan can be shown (`flexo-merge --dry-run`).
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from merge.anchor import BIAS_ERROR, Anchor, open_anchor
from merge.card import model_card
from merge.checkpoint import TOKENIZER_FILES, TensorSpec, combined_digest, read_json, write_json, write_tensors
from merge.console import progress
from merge.errors import CheckpointError, ExpertFileError
from merge.expert_file import ExpertFile, open_expert
from merge.files import new_folder
from merge.flexolmo import (
    FFN,
    ROUTER_BIAS,
    ROUTER_WEIGHT,
    anchor_ffn,
    expert_ffn,
    merged_config,
    merged_ffn,
    merged_router,
    merged_tensors,
)  # fmt: skip
from merge.screening import folded_row, screen_rows
from merge.signing import TrustedKeys, Voucher

MANIFEST = "manifest.json"
DEFAULT_TOP_K = 4
MAX_SHARD_SIZE = 5_000_000_000


@dataclass(frozen=True)
class Plan:
    """A merge that fits together: what goes where, before a byte is written."""

    anchor: Anchor
    experts: list[ExpertFile]
    top_k: int
    specs: list[TensorSpec]
    warnings: list[str] = field(default_factory=list)  # about router rows, see `screening`
    vouchers: dict[str, Voucher] = field(default_factory=dict)  # domain -> who signed, where signatures were checked

    @property
    def domains(self) -> list[str]:
        """Expert names in the order of their indices; the anchor's own expert is `public`, index 0."""
        return ["public", *(expert.domain for expert in self.experts)]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the merged model."""
        return sum(spec.nbytes for spec in self.specs)

    def bias_errors(self) -> list[float] | None:
        """Root mean square of the folding error on public text per layer, for a bias of 1; None without any bias."""
        if not any(expert.has_bias for expert in self.experts):
            return None
        return [
            self.anchor.router[BIAS_ERROR.format(n=n)].item() for n in range(self.anchor.architecture.num_hidden_layers)
        ]


def plan(
    paths: Sequence[Path],
    anchor_path: Path | None = None,
    top_k: int | None = None,
    trusted: TrustedKeys | None = None,
    signed: bool = False,
) -> Plan:
    """Reads all headers, and the anchor for its digest, and decides where every tensor of every input goes.

    Args:
        paths: expert files; their order is the order of the experts, after the public one.
        anchor_path: the anchor folder; None looks where the headers say, as seen from here and from the files.
        top_k: active experts per token of the merged model, public included; None takes all, at most 4.
        trusted: keys to check the signatures beside the files with; None looks at none.
        signed: with `trusted`, whether every file must have a signature.

    Raises:
        ExpertFileError, CheckpointError: an input is damaged, or does not belong with the others.
        SignatureError: a signature is missing or does not hold.
    """
    _refuse_repeats(paths)
    experts = [open_expert(path) for path in paths]
    for domain, count in Counter(expert.domain for expert in experts).items():
        if count > 1:
            same = ", ".join(str(expert.path) for expert in experts if expert.domain == domain)
            raise ExpertFileError(
                f"{same}: {count} experts for the domain {domain!r}. A merge takes one per domain; rename or drop one."
            )
    vouchers = {expert.domain: trusted.verify(expert, signed) for expert in experts} if trusted else {}
    anchor = open_anchor(anchor_path or _find_anchor(experts))
    with progress("reading the anchor", anchor.checkpoint.nbytes) as anchor.advance:
        for expert in experts:
            check_belongs(expert, anchor)
    total = len(experts) + 1
    top_k = min(total, DEFAULT_TOP_K) if top_k is None else top_k
    if not 1 <= top_k <= total:
        raise ExpertFileError(f"--top-k {top_k}: this merge has {total} experts, public included; give 1 to {total}.")
    specs, used = _specs(anchor, experts)
    _check_used_once(anchor, experts, used)
    warnings = screen_rows(anchor, experts)
    return Plan(
        anchor, experts, top_k, specs, warnings, {domain: voucher for domain, voucher in vouchers.items() if voucher}
    )


def execute(
    plan: Plan,
    output: Path,
    max_shard_size: int = MAX_SHARD_SIZE,
    advance: Callable[[float], None] = lambda _amount: None,
    accept: Callable[[Path], None] = lambda _folder: None,
) -> None:
    """Writes the merged model into `output`, which must be free; it appears whole or not at all.

    Every expert tensor is checked against its header's sha256, and against NaN and infinity, as it passes.
    `advance` is told the bytes written. `accept` gets the finished folder before it appears, and may refuse it by
    raising.
    """
    with new_folder(output) as folder:
        write_tensors(folder, plan.specs, max_shard_size, advance)
        config = merged_config(plan.anchor.checkpoint.config, len(plan.domains), plan.top_k)
        write_json(folder / "config.json", config)
        for name in TOKENIZER_FILES:
            if (source := plan.anchor.folder / name).exists():
                shutil.copyfile(source, folder / name)
        manifest = _manifest(plan)
        write_json(folder / MANIFEST, manifest)
        (folder / "README.md").write_text(model_card(manifest, output.resolve().name), encoding="utf-8")
        accept(folder)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a merged folder; raises `CheckpointError` if the folder is not one of ours."""
    if not (folder / MANIFEST).exists():
        raise CheckpointError(f"{folder}: no {MANIFEST}. Is it a folder made by flexo-merge?")
    manifest = read_json(folder / MANIFEST)
    experts = manifest.get("experts")
    if manifest.get("format") != "flexo.manifest" or manifest.get("version") != 1 or not isinstance(experts, list):
        raise CheckpointError(f"{folder / MANIFEST}: not a flexo manifest of version 1.")
    return manifest


def made_at() -> str:
    """The time for a manifest: now, or SOURCE_DATE_EPOCH, under which two runs give the same bytes."""
    made = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(made))


def _refuse_repeats(paths: Sequence[Path]) -> None:
    if not paths:
        raise ExpertFileError("no expert files given. Example: flexo-merge experts/*.pt -o model/")
    for path, count in Counter(os.path.realpath(path) for path in paths).items():
        if count > 1:
            raise ExpertFileError(f"{path}: this file was given {count} times.")


def _find_anchor(experts: list[ExpertFile]) -> Path:
    """The first folder that a header names and that is there, as seen from here or from beside the expert file."""
    for expert in experts:
        beside = expert.path.resolve().parent
        for folder in (Path(), beside, beside.parent):
            candidate = folder / expert.header.anchor.name
            with suppress(OSError):  # a name that no file system takes
                if (candidate / "config.json").exists():
                    return candidate
    raise CheckpointError(
        f"{experts[0].path}: its header names the anchor {experts[0].header.anchor.name[:200]!r}, which is not here. "
        "Say where it is with --anchor FOLDER."
    )


def check_belongs(expert: ExpertFile, anchor: Anchor) -> None:
    """The expert was trained against exactly this anchor, tokenizer and public rows, in the anchor's dtype."""
    reference = expert.header.anchor
    for name, size in anchor.architecture.to_dict().items():
        if (found := reference.architecture.to_dict()[name]) != size:
            raise ExpertFileError(
                f"{expert.path}: its anchor has {name} {found}, {anchor.folder} has {size}. "
                "Was it trained against another anchor?"
            )
    digests = (
        ("tokenizer", reference.tokenizer_digest, anchor.tokenizer_digest),
        ("public router", reference.router_digest, anchor.router_digest),
        ("anchor", reference.digest, anchor.digest),
    )
    for what, theirs_hex, ours_hex in digests:
        if theirs_hex != ours_hex:
            raise ExpertFileError(
                f"{expert.path}: trained against the {what} {theirs_hex[:12]}, {anchor.folder} has {ours_hex[:12]}. "
                f"Experts only fit the anchor that they were trained with (theirs was called {reference.name!r})."
            )
    for n in range(anchor.architecture.num_hidden_layers):
        for part in FFN:
            ours, theirs = anchor.checkpoint.dtype(anchor_ffn(n, part)), expert.dtype(expert_ffn(n, part))
            if ours != theirs:
                raise ExpertFileError(
                    f"{expert.path}: {expert_ffn(n, part)} has dtype {theirs}, the anchor's tensors are {ours}. "
                    "Export the expert in the anchor's dtype."
                )


def _specs(anchor: Anchor, experts: list[ExpertFile]) -> tuple[list[TensorSpec], list[Counter[str]]]:
    """The tensors of the merged model, and per input (anchor first) how often each of its tensors was used."""
    arch, checkpoint = anchor.architecture, anchor.checkpoint
    used: list[Counter[str]] = [Counter() for _ in range(len(experts) + 1)]
    sources: dict[str, tuple[torch.dtype, Callable[[], torch.Tensor]]] = {}

    def from_anchor(name: str) -> tuple[torch.dtype, Callable[[], torch.Tensor]]:
        used[0][name] += 1
        return checkpoint.dtype(name), partial(checkpoint.tensor, name)

    def from_expert(e: int, name: str) -> tuple[torch.dtype, Callable[[], torch.Tensor]]:
        used[e][name] += 1
        return experts[e - 1].dtype(name), partial(experts[e - 1].tensor, name)

    for n in range(arch.num_hidden_layers):
        for e, expert in enumerate(experts, 1):
            used[e][ROUTER_WEIGHT.format(n=n)] += 1
            used[e][ROUTER_BIAS.format(n=n)] += expert.has_bias
            for part in FFN:
                sources[merged_ffn(n, e, part)] = from_expert(e, expert_ffn(n, part))
        for part in FFN:
            sources[merged_ffn(n, 0, part)] = from_anchor(anchor_ffn(n, part))
        dtype = checkpoint.dtype(anchor_ffn(n, FFN[0]))
        sources[merged_router(n)] = dtype, partial(_router_rows, anchor, experts, n, dtype)
    specs = []
    for name, shape in merged_tensors(arch, len(experts) + 1).items():
        dtype, load = sources.pop(name) if name in sources else from_anchor(name)
        specs.append(TensorSpec(name, dtype, shape, load))
    assert not sources, f"planned but without a place in the merged model: {sorted(sources)[:4]}"
    return specs, used


def _router_rows(anchor: Anchor, experts: list[ExpertFile], n: int, dtype: torch.dtype) -> torch.Tensor:
    """The router [E, D] of layer `n`: the public row, then the owners' rows with their bias folded in (r + b v)."""
    rows = [anchor.public_row(n).float(), *(folded_row(anchor, expert, n) for expert in experts)]
    return torch.stack(rows).to(dtype)


def _check_used_once(anchor: Anchor, experts: list[ExpertFile], used: list[Counter[str]]) -> None:
    inputs = [(str(anchor.folder), anchor.checkpoint.names)]
    inputs += [(str(expert.path), set(expert.header.tensors)) for expert in experts]
    for (where, names), counts in zip(inputs, used, strict=True):
        wrong = sorted(name for name in names | set(+counts) if (name in names) != (counts[name] == 1))
        assert not wrong, f"{where}: not used exactly once: {wrong[:4]}"


def _manifest(plan: Plan) -> dict[str, Any]:
    anchor = plan.anchor
    reference = plan.experts[0].header.anchor
    public = {"index": 0, "domain": "public", "title": "the anchor's own feed-forward network"}
    return {
        "format": "flexo.manifest",
        "version": 1,
        "made": made_at(),
        "how": "merged without training",
        "top_k": plan.top_k,
        "anchor": {
            "name": reference.name,
            "digest": anchor.digest,
            "tokenizer_digest": anchor.tokenizer_digest,
            "router_digest": anchor.router_digest,
            "architecture": anchor.architecture.to_dict(),
        },
        "experts": [public]
        + [
            _manifest_entry(index, expert, plan.vouchers.get(expert.domain))
            for index, expert in enumerate(plan.experts, 1)
        ],
        "router_bias_folding_rms": plan.bias_errors(),
    }


def _manifest_entry(index: int, expert: ExpertFile, voucher: Voucher | None) -> dict[str, Any]:
    about = expert.header.to_dict()
    tensors = about.pop("tensors")
    about.pop("anchor")
    digest = combined_digest((name, info["sha256"]) for name, info in tensors.items())
    vouched = {"vouched": voucher.to_dict()} if voucher else {}
    return {"index": index, "file": expert.path.name, "digest": digest} | about | vouched
