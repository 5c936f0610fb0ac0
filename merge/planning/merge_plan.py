"""Planning a merge and carrying it out: expert files in, one FlexOlmo folder out, no training and no data.

`plan` reads headers and shapes and refuses whatever does not fit together (`merge.planning.membership` does the same
for a folder that was merged before). `execute` streams the tensors into a folder that appears whole or not at all, and
refuses damaged values, or another anchor, as they pass. Between them the plan can be shown.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from flexo.atomic_files import new_folder
from flexo.console import Advance
from flexo.errors import ExpertFileError, InputError
from merge.formats.anchor_folder import BIAS_ERROR, Anchor, find_anchor, open_anchor
from merge.formats.architecture import FFN, expert_ffn, merged_ffn, merged_router, with_dtype
from merge.formats.expert_file import ExpertFile, open_expert
from merge.formats.manifest import FORMAT, expert_entry, new_record
from merge.formats.merged_folder import finish
from merge.formats.quantization import PARTS, Scheme, packed_tensors
from merge.formats.signatures import Voucher
from merge.planning.base_model import AnchorBase, Base
from merge.planning.compatibility import admit, check_belongs, refuse_repeats, refuse_twins
from merge.planning.merge_options import MergeOptions
from merge.planning.revocation import readmissions
from merge.planning.router_screening import folded_row, screen_rows
from merge.planning.twins import moved_by_training, sketch_of, twin_warnings
from merge.tensor_io.float_formats import all_finite, rounded, to_float32
from merge.tensor_io.shard_writer import Digests, write_tensors
from merge.tensor_io.stored_tensor import DTYPES, FLOATS, OutputTensor, StoredTensor

KEPT = ("left", "replaced", "readmitted", "priors", "federation")  # what a manifest has of a plan's history, as it is
Member = int | ExpertFile  # an expert that the base holds, by its index there, or one that joins


@dataclass(frozen=True)
class Plan:
    """A merge that fits together: what goes where, before a byte is written."""

    base: Base
    members: list[Member]
    anchor: Anchor | None  # absent where a merged folder is changed and no bias has to be folded
    top_k_at_most: int
    max_shard_size: int
    tensors: list[OutputTensor]
    history: dict[str, Any]  # what the manifest keeps of earlier merges, and of this one
    vouchers: dict[str, Voucher]  # domain -> its verified signature, where signatures were checked
    sketches: dict[str, str]  # domain -> by what each expert that joins is known again, see `twins`
    warnings: list[str]  # about router rows, see `router_screening`, and twins
    dtype: str | None  # what all weights are rounded to, such as BF16; None keeps the base's
    scheme: Scheme | None  # how experts are quantised
    public_weight: float  # prior weight of the public expert, in units of one domain

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
    def left(self) -> list[str]:
        """Domains that the base has and this merge has no more."""
        return [domain for entry in self.base.experts if (domain := entry["domain"]) not in self.domains]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """What the manifest says of each expert, without its index."""
        return [
            self.base.experts[m]
            if isinstance(m, int)
            else expert_entry(m, self.vouchers.get(m.domain), self.sketches.get(m.domain, ""))
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
        return sum(tensor.nbytes for tensor in self.tensors)

    def bias_errors(self) -> list[float] | None:
        """Root mean square of the folding error on public text per layer, for a bias of 1; None without any bias."""
        if (
            self.public_weight == 1
            and not self.history["priors"]
            and not any(entry.get("router_bias") for entry in self.entries)
        ):
            return None
        if self.anchor is None:
            kept: list[float] | None = self.history["router_bias_folding_rms"]
            return kept
        layers = range(self.base.architecture.num_hidden_layers)
        errors = [self.anchor.shared[BIAS_ERROR.format(n=n)] for n in layers]
        return [to_float32(stored.read(), stored.dtype).item() for stored in errors]


def plan(paths: Sequence[Path], anchor_path: Path | None = None, options: MergeOptions = MergeOptions()) -> Plan:
    """Reads all headers and decides where every tensor of every input goes.

    Args:
        paths: expert files; their order is the order of the experts, after the public one.
        anchor_path: the anchor folder; None looks where the headers say, as seen from here and from the files.
        options: settings. A pair's margin is the log odds of own to public text where both are as frequent; the
            logarithm of the public weight is taken from all margins, by a bias that is folded into the rows.

    Raises:
        ExpertFileError, ModelFolderError: an input is damaged, or does not belong with the others.
        SignatureError: a signature is missing or does not hold.
    """
    refuse_repeats(paths)
    experts = [open_expert(path) for path in paths]
    refuse_twins(experts)
    vouchers = admit(experts, options)
    anchor = open_anchor(anchor_path or find_anchor(experts))
    reference = experts[0].header.anchor
    base = AnchorBase(anchor, reference.name, reference.digest)
    for expert in experts:
        check_belongs(expert, base)
    return lay_out(base, [0, *experts], anchor, options, vouchers)


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
        digests = write_tensors(folder, plan.tensors, plan.max_shard_size, advance, verify)
        if verify:
            plan.base.check(digests.read)
        finish(folder, output, _config(plan), plan.base.folder, _manifest(plan, digests))
        accept(folder)


def lay_out(
    base: Base,
    members: list[Member],
    anchor: Anchor | None,
    options: MergeOptions,
    vouchers: dict[str, Voucher],
    history: dict[str, Any] | None = None,
    left: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """The plan of a merge of `members`, which belong to `base` and were admitted; `history` is for its manifest.

    `left` is the base's own list of who has left before, and does not come back by itself.
    """
    total, top_k = len(members), options.top_k
    if top_k is not None and not 1 <= top_k <= total:
        raise ExpertFileError(f"--top-k {top_k}: this merge has {total} experts, public included; give 1 to {total}.")
    dtype = base.dtype(0) if base.converted_from else options.stored_dtype  # what was rounded once stays as it is
    weight = base.public_weight if options.public_weight is None else options.public_weight
    joining = [member for member in members if isinstance(member, ExpertFile)]
    priors = {one.domain: options.priors[one.domain] for one in joining if options.priors.get(one.domain, 1) != 1}
    weights = {one.domain: weight / priors.get(one.domain, 1) for one in joining}
    moved = moved_by_training(base, joining)
    sketches = {domain: sketch_of(one) for domain, one in moved.items()}
    history = dict(history or {})
    gone = [(one, str(base.folder)) for one in left]
    if options.listed:
        gone += [({"sketch": one, "domain": "listed there"}, options.listed.where) for one in options.listed.sketches]
    if back := readmissions(gone, joining, sketches, options.readmit, options.reason):
        history["readmitted"] = [*history.get("readmitted", []), *back]
    history["priors"] = {**history.get("priors", {}), **priors}
    return Plan(
        base=base,
        members=members,
        anchor=anchor,
        top_k_at_most=base.top_k_at_most if top_k is None else top_k,
        max_shard_size=options.max_shard_size or base.max_shard_size,
        tensors=_tensors(base, members, anchor, dtype, weights),
        history=history,
        vouchers=vouchers,
        sketches=sketches,
        warnings=[*screen_rows(base, anchor, joining), *twin_warnings(moved, joining)],
        dtype=dtype,
        scheme=base.scheme,
        public_weight=weight,
    )


def _tensors(
    base: Base, members: list[Member], anchor: Anchor | None, to: str | None, weights: Mapping[str, float]
) -> list[OutputTensor]:
    """Every tensor of the merged model; asserts that every tensor of every input goes to exactly one place."""
    given: dict[str, StoredTensor] = {}
    made: dict[str, partial[bytes]] = {}  # routers, and weights that experts hold as factors
    for n in range(base.architecture.num_hidden_layers):
        dtype = to or base.dtype(n)
        made[merged_router(n)] = partial(_router, base, members, anchor, n, weights, dtype)
        for index, member in enumerate(members):
            for part, stored_as in product(FFN, PARTS if base.scheme else ("",)):
                name = merged_ffn(n, index, part) + stored_as
                if isinstance(member, int):
                    given[name] = base.ffn(member, n, part, stored_as)
                elif (weight := expert_ffn(n, part)) in member.tensors:
                    given[name] = member.tensors[weight]
                else:
                    public = base.ffn(0, n, part)
                    made[name] = partial(_formed, member, weight, public, to or public.dtype)
    tensors = []
    for name, shape in packed_tensors(base.architecture, len(members), base.scheme).items():
        if name in made:
            tensors.append(OutputTensor(name, made[name].args[-1], shape, made[name]))
        else:
            stored = given[name] if name in given else base.tensor(name)
            tensors.append(OutputTensor(name, to if to and stored.dtype in FLOATS else stored.dtype, shape, stored))
    origins = [tensor.origin for tensor in tensors if isinstance(tensor.origin, StoredTensor)]
    places = Counter((stored.path, stored.name) for stored in origins)
    assert not (twice := [place for place, count in places.items() if count > 1]), f"used more than once: {twice[:4]}"
    if isinstance(base, AnchorBase):
        unused = [name for name in base.weights.names if (base.weights.stored(name).path, name) not in places]
        assert not unused, f"{base.folder}: not used: {sorted(unused)[:4]}"
    return tensors


def _formed(expert: ExpertFile, weight: str, public: StoredTensor, dtype: str) -> bytes:
    """A weight that `expert` holds as factors, in another dtype if the merge is to have one."""
    whole = expert.formed(weight, public)
    if dtype == public.dtype:
        return bytes(whole)
    data = rounded(to_float32(whole, public.dtype), dtype)
    if not all_finite(data, dtype):
        raise InputError(f"{expert.path}: {weight} holds values that {dtype} cannot hold. Choose another --dtype.")
    return data


def _router(
    base: Base, members: list[Member], anchor: Anchor | None, n: int, weights: Mapping[str, float], dtype: str
) -> bytes:
    """The router [E, D] of layer `n`: the base's rows, then the owners' with their bias folded in (r + b v).

    `weights` are the prior weights of the public expert for each that joins, in units of that expert's own.
    """
    before = base.rows(n)
    rows = [
        before[member] if isinstance(member, int) else folded_row(anchor, member, n, weights[member.domain])
        for member in members
    ]
    data = rounded(np.stack(rows), dtype)
    if not all_finite(data, dtype):
        raise InputError(f"the router rows of layer {n} hold values that {dtype} cannot hold. Choose another --dtype.")
    return data


def _config(plan: Plan) -> dict[str, Any]:
    config = plan.base.config(len(plan.members), plan.top_k)
    if plan.dtype:
        config = with_dtype(config, DTYPES[plan.dtype][0])
    return config | ({"quantization_config": plan.scheme.config()} if plan.scheme else {})


def _manifest(plan: Plan, digests: Digests) -> dict[str, Any]:
    history = plan.history
    manifest = new_record(
        FORMAT,
        history.get("how") or "merged without training",
        router_training=history.get("router_training"),
        public_weight=plan.public_weight,
        top_k=plan.top_k,
        top_k_at_most=plan.top_k_at_most,
        max_shard_size=plan.max_shard_size,
        anchor=plan.base.about,
        experts=[{"index": index} | entry for index, entry in enumerate(plan.entries)],
        router_bias_folding_rms=plan.bias_errors(),
    )
    if plan.scheme:
        manifest["quantised"] = plan.scheme.to_dict()
    if plan.converted_from:
        manifest["converted_from"] = plan.converted_from
    manifest |= {name: history[name] for name in KEPT if history.get(name)}
    return manifest | {"tensors": digests.written if plan.base.stated and digests.written else None}
