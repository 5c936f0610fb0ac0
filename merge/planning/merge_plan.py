"""Planning a merge and carrying it out: expert files in, one FlexOlmo folder out, no training and no data.

`plan` reads headers and shapes and refuses whatever does not fit together (`merge.planning.membership` does the same
for a folder that was merged before). `execute` streams the tensors into a folder that appears whole or not at all, and
refuses damaged values, or another anchor, as they pass. Between them the plan can be shown.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from flexo.atomic_files import new_folder
from flexo.errors import ExpertFileError, InputError
from merge.formats.anchor_folder import BIAS_ERROR, Anchor, find_anchor, open_anchor
from merge.formats.architecture import FFN, expert_ffn, merged_ffn, merged_router, with_dtype
from merge.formats.expert_file import ExpertFile, open_expert
from merge.formats.manifest import MANIFEST, expert_entry, made_at
from merge.formats.model_card import model_card
from merge.formats.model_folder import TOKENIZER_FILES
from merge.formats.quantization import PARTS, Scheme, packed_tensors
from merge.formats.signatures import TrustedKeys, Voucher
from merge.planning.base_model import AnchorBase, Base, MergedBase
from merge.planning.compatibility import check_belongs, refuse_repeats, refuse_twins
from merge.planning.router_screening import folded_row, screen_rows
from merge.tensor_io.float_formats import all_finite, rounded, to_float32
from merge.tensor_io.json_file import write_json
from merge.tensor_io.shard_writer import Advance, Digests, write_pieces
from merge.tensor_io.stored_tensor import DTYPES, FLOATS, Piece, Stored

DEFAULT_TOP_K = 4
MAX_SHARD_SIZE = 5_000_000_000
PUBLIC_WEIGHT = 4.0  # of a new merge, unless another is asked for; docs/log.md

KEPT = ("left", "replaced", "readmitted", "federation")  # what a manifest has of a plan's history, as it is
Member = int | ExpertFile  # an expert that the base holds, by its index there, or one that joins


@dataclass(frozen=True)
class Plan:
    """A merge that fits together: what goes where, before a byte is written."""

    base: Base
    members: list[Member]
    anchor: Anchor | None  # absent where a merged folder is changed and no bias has to be folded
    top_k_at_most: int
    max_shard_size: int
    pieces: list[Piece]
    history: dict[str, Any] = field(default_factory=dict)  # what the manifest keeps of earlier merges, and of this one
    vouchers: dict[str, Voucher] = field(default_factory=dict)  # domain -> who signed, where signatures were checked
    warnings: list[str] = field(default_factory=list)  # about router rows, see `screening`
    dtype: str | None = None  # what all weights are rounded to; None keeps the base's
    scheme: Scheme | None = None  # how experts are quantised
    public_weight: float = 1.0  # how many domains public text counts for

    @property
    def top_k(self) -> int:
        return min(self.top_k_at_most, len(self.members))

    @property
    def experts(self) -> list[ExpertFile]:
        """The experts that join."""
        return [member for member in self.members if isinstance(member, ExpertFile)]

    @property
    def domains(self) -> list[str]:
        """Expert names in the order of their indices; the anchor's own expert is `public`, index 0."""
        return [entry["domain"] for entry in self.entries]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What the manifest says of each expert, without its index."""
        return [
            self.base.experts[m] if isinstance(m, int) else expert_entry(m, self.vouchers.get(m.domain))
            for m in self.members
        ]

    @property
    def converted_from(self) -> str | None:
        """The dtype that the experts were trained in, where it is not the one that is written."""
        trained = self.base.converted_from or self.base.dtype(0)
        return None if self.dtype in (None, trained) else trained

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors of the merged model."""
        return sum(piece.nbytes for piece in self.pieces)

    def bias_errors(self) -> list[float] | None:
        """Root mean square of the folding error on public text per layer, for a bias of 1; None without any bias."""
        if self.public_weight == 1 and not any(entry.get("router_bias") for entry in self.entries):
            return None
        if self.anchor is None:
            kept: list[float] | None = self.history["router_bias_folding_rms"]
            return kept
        layers = range(self.base.architecture.num_hidden_layers)
        errors = [self.anchor.shared[BIAS_ERROR.format(n=n)] for n in layers]
        return [to_float32(stored.read(), stored.dtype).item() for stored in errors]


def plan(
    paths: Sequence[Path],
    anchor_path: Path | None = None,
    top_k: int | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    trusted: TrustedKeys | None = None,
    signed: bool = False,
    dtype: str | None = None,
    public_weight: float = 1.0,
) -> Plan:
    """Reads all headers and decides where every tensor of every input goes.

    Args:
        paths: expert files; their order is the order of the experts, after the public one.
        anchor_path: the anchor folder; None looks where the headers say, as seen from here and from the files.
        top_k: active experts per token of the merged model, public included; None takes all, at most 4.
        max_shard_size: bytes of tensors per file.
        trusted: keys to check the signatures beside the files with; None looks at none.
        signed: with `trusted`, whether every file must have a signature.
        dtype: `F32`, `BF16` or `F16`, which all weights are rounded to; None keeps the anchor's.
        public_weight: how many domains public text counts for. A pair's margin is the log odds of own to public text
            where both are as frequent; here the logarithm of this is taken from all margins, by a bias that is
            folded into the rows.

    Raises:
        ExpertFileError, CheckpointError: an input is damaged, or does not belong with the others.
        InputError: the weight is no positive number.
        SignatureError: a signature is missing or does not hold.
    """
    if not 0 < public_weight < inf:  # nor NaN
        raise InputError(f"--public-weight {public_weight}: expected a positive number of domains.")
    refuse_repeats(paths)
    experts = [open_expert(path) for path in paths]
    refuse_twins(experts)
    vouchers = vouchers_of(experts, trusted, signed)
    anchor = open_anchor(anchor_path or find_anchor(experts))
    reference = experts[0].header.anchor
    base = AnchorBase(anchor, reference.name, reference.digest)
    for expert in experts:
        check_belongs(expert, base)
    return lay_out(
        base, [0, *experts], anchor, top_k, DEFAULT_TOP_K, max_shard_size, {}, vouchers, dtype, public_weight
    )


def execute(
    plan: Plan,
    output: Path,
    advance: Advance = lambda _amount: None,
    verify: bool = True,
    accept: Callable[[Path], None] = lambda _folder: None,
) -> None:
    """Writes the merged model into `output`, which must be free; it appears whole or not at all.

    With `verify`, every tensor is checked against the sha256 that its header or manifest states, the anchor against the
    digest that its experts name, and all against NaN and infinity, as they pass. `advance` is told the bytes written.
    `accept` gets the finished folder before it appears, and may refuse it by raising.
    """
    with new_folder(output) as folder:
        digests = write_pieces(folder, plan.pieces, plan.max_shard_size, advance, verify)
        if verify:
            plan.base.check(digests.read)
        config = plan.base.config(len(plan.members), plan.top_k)
        if plan.dtype:
            config = with_dtype(config, DTYPES[plan.dtype][0])
        if plan.scheme:
            config |= {"quantization_config": plan.scheme.config()}
        write_json(folder / "config.json", config)
        for name in TOKENIZER_FILES:
            if (source := plan.base.folder / name).exists():
                shutil.copyfile(source, folder / name)
        manifest = _manifest(plan, digests)
        write_json(folder / MANIFEST, manifest)
        (folder / "README.md").write_text(model_card(manifest, output.resolve().name), encoding="utf-8")
        accept(folder)


def vouchers_of(experts: list[ExpertFile], trusted: TrustedKeys | None, signed: bool) -> dict[str, Voucher]:
    """Who vouches for which domain, among the keys `trusted`; raises `SignatureError`, also for none where `signed`."""
    found = {expert.domain: trusted.verify(expert, signed) for expert in experts} if trusted else {}
    return {domain: voucher for domain, voucher in found.items() if voucher}


def lay_out(
    base: Base,
    members: list[Member],
    anchor: Anchor | None,
    top_k: int | None,
    at_most: int,
    max_shard_size: int,
    history: dict[str, Any],
    vouchers: dict[str, Voucher],
    dtype: str | None,
    public_weight: float,
) -> Plan:
    """The plan of a merge of `members`, which have been found to belong to `base`; `history` is for its manifest."""
    total = len(members)
    if top_k is not None and not 1 <= top_k <= total:
        raise ExpertFileError(f"--top-k {top_k}: this merge has {total} experts, public included; give 1 to {total}.")
    pieces = _pieces(base, members, anchor, dtype, public_weight)
    warnings = screen_rows(base, anchor, [member for member in members if isinstance(member, ExpertFile)])
    at_most = at_most if top_k is None else top_k
    return Plan(
        base, members, anchor, at_most, max_shard_size, pieces, history, vouchers, warnings, dtype, base.scheme,
        public_weight,
    )  # fmt: skip


def _pieces(
    base: Base, members: list[Member], anchor: Anchor | None, to: str | None, public_weight: float
) -> list[Piece]:
    """Every tensor of the merged model with its source; asserts that every tensor of every input has one place."""
    sources: dict[str, Stored] = {}
    routers: dict[str, partial[bytes]] = {}
    for n in range(base.architecture.num_hidden_layers):
        dtype = to or base.dtype(n)
        routers[merged_router(n)] = partial(_router, base, members, anchor, n, public_weight, dtype)
        for index, member in enumerate(members):
            for part, stored_as in product(FFN, PARTS if base.scheme else ("",)):
                name = merged_ffn(n, index, part) + stored_as
                if isinstance(member, int):
                    sources[name] = base.ffn(member, n, part, stored_as)
                else:
                    sources[name] = member.tensors[expert_ffn(n, part)]
    pieces = []
    for name, shape in packed_tensors(base.architecture, len(members), base.scheme).items():
        if name in routers:
            n_dtype = routers[name].args[-1]
            pieces.append(Piece(name, n_dtype, shape, routers[name]))
        else:
            stored = sources[name] if name in sources else base.tensor(name)
            pieces.append(Piece(name, to if to and stored.dtype in FLOATS else stored.dtype, shape, stored))
    places = Counter((piece.source.path, piece.source.name) for piece in pieces if isinstance(piece.source, Stored))
    assert not (twice := [place for place, count in places.items() if count > 1]), f"used more than once: {twice[:4]}"
    if isinstance(base, AnchorBase):
        unused = [name for name in base.checkpoint.names if (base.checkpoint.stored(name).path, name) not in places]
        assert not unused, f"{base.folder}: not used: {sorted(unused)[:4]}"
    return pieces


def _router(
    base: Base, members: list[Member], anchor: Anchor | None, n: int, public_weight: float, dtype: str
) -> bytes:
    """The router [E, D] of layer `n`: the base's rows, then the owners' with their bias folded in (r + b v)."""
    before = base.rows(n)
    rows = [
        before[member] if isinstance(member, int) else folded_row(anchor, member, n, public_weight)
        for member in members
    ]
    data = rounded(np.stack(rows), dtype)
    if not all_finite(data, dtype):
        raise InputError(f"the router rows of layer {n} hold values that {dtype} cannot hold. Choose another --dtype.")
    return data


def _manifest(plan: Plan, digests: Digests) -> dict[str, Any]:
    history = plan.history
    manifest = {
        "format": "flexo.manifest",
        "version": 1,
        "made": made_at(),
        "how": history.get("how") or "merged without training",
        "router_training": history.get("router_training"),
        "public_weight": plan.public_weight,
        "top_k": plan.top_k,
        "top_k_at_most": plan.top_k_at_most,
        "max_shard_size": plan.max_shard_size,
        "anchor": plan.base.about,
        "experts": [{"index": index} | entry for index, entry in enumerate(plan.entries)],
        "router_bias_folding_rms": plan.bias_errors(),
    }
    if plan.scheme:
        manifest["quantised"] = plan.scheme.to_dict()
    if plan.converted_from:
        manifest["converted_from"] = plan.converted_from
    manifest |= {name: history[name] for name in KEPT if history.get(name)}
    unknown = isinstance(plan.base, MergedBase) and plan.base.digests is None  # nothing could be compared
    return manifest | {"tensors": None if unknown else digests.written or None}
