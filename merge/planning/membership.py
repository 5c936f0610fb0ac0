"""Planning a change of a folder that was merged before: experts leave, join, or make way for newer ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flexo.errors import ExpertFileError, InputError, ModelFolderError, refuse_unknown
from merge.formats.anchor_folder import Anchor, find_anchor, open_anchor
from merge.formats.expert_file import ExpertFile, open_expert
from merge.formats.manifest import made_at
from merge.formats.merged_folder import Merged, open_merged
from merge.formats.signatures import SignatureError, TrustedKeys
from merge.planning.base_model import MergedBase
from merge.planning.compatibility import check_belongs, refuse_repeats, refuse_twins
from merge.planning.merge_plan import MAX_SHARD_SIZE, Member, Plan, lay_out, vouchers_of


def replan(
    folder: Path,
    drop: Sequence[str] = (),
    join: Sequence[Path] = (),
    replace: Mapping[str, Path] | None = None,
    anchor_path: Path | None = None,
    top_k: int | None = None,
    max_shard_size: int | None = None,
    trusted: TrustedKeys | None = None,
    signed: bool = False,
    dtype: str | None = None,
    public_weight: float | None = None,
) -> Plan:
    """A merge of what a merged folder holds without some of its experts, with others, or with newer ones.

    Args:
        folder: a folder made by a merge.
        drop: domains that leave.
        join: expert files that come after those of the folder.
        replace: domain -> expert file that takes its place.
        anchor_path: the anchor folder; None looks where the headers say, and does without if it is not there. Needed
            where an expert that joins has a router bias, which the anchor's bias direction folds, or public text
            counts for more than one domain.
        top_k: as in `plan`; None keeps the folder's, at most as many as there are experts.
        max_shard_size: bytes of tensors per file; None keeps what the folder was written with.
        trusted: keys to check the signatures of those who join with; None looks at none.
        signed: with `trusted`, whether those who join must be signed, and those who stay must have been when they came.
        dtype: as in `plan`; None keeps the folder's. Who joins a folder that was converted is converted alike.
        public_weight: None or the folder's own, which those who join are given, too.

    Raises:
        InputError: an unknown domain, nothing left, or files that do not belong to the folder.
        SignatureError: a signature is missing or does not hold.
    """
    merged = open_merged(folder, quantised=True)
    base, newer = MergedBase(merged), {domain: open_expert(path) for domain, path in (replace or {}).items()}
    refuse_unknown([*drop, *newer], merged.domains, str(folder))
    if "public" in [*drop, *newer]:
        raise InputError("public: the anchor's own expert, which all others are measured against. It cannot leave.")
    if base.scheme and (join or newer or dtype):
        raise InputError(
            f"{folder}: its experts are quantised to {base.scheme.bits} bits. Experts can leave it; for any other "
            "change, take the model that it was made from, and quantise the result."
        )
    members: list[Member] = [
        newer.get(domain, index) for index, domain in enumerate(merged.domains) if domain not in drop
    ]
    refuse_repeats([*join, *(expert.path for expert in newer.values())], needed=False)
    members += [open_expert(path) for path in join]
    if len(members) == 1:
        raise InputError(f"{folder}: nobody but public would be left, and that is the anchor. Use the anchor itself.")
    joining = [member for member in members if isinstance(member, ExpertFile)]
    for domain, expert in newer.items():
        if expert.domain != domain:
            raise ExpertFileError(f"{expert.path}: an expert for {expert.domain!r}, which cannot replace {domain!r}.")
    for expert in joining:
        if expert.domain in merged.domains and expert.domain not in [*newer, *drop]:
            raise ExpertFileError(
                f"{expert.path}: {folder} has an expert for {expert.domain!r} already. Exchange it with "
                f"--replace {expert.domain}={expert.path}."
            )
        check_belongs(expert, base)
    refuse_twins(joining)
    vouchers = vouchers_of(joining, trusted, signed)
    if trusted and signed:
        _refuse_unvouched(merged, [member for member in members[1:] if isinstance(member, int)], trusted)
    if base.converted_from:
        now = base.dtype(0)
        if dtype not in (None, now):
            raise InputError(
                f"{folder}: rounded from {base.converted_from} to {now} when it was merged. For another --dtype, merge "
                "the expert files again."
            )
        dtype = now
    said, weight = merged.manifest, _kept_weight(merged, public_weight)
    history = {
        "how": said.get("how"),
        "router_training": said.get("router_training"),
        "router_bias_folding_rms": said.get("router_bias_folding_rms"),
        "left": [*said.get("left", []), *_farewell(merged, drop)],
        "replaced": [*said.get("replaced", []), *_farewell(merged, newer)],
    }
    anchor = _anchor_for(base, joining, anchor_path, weight)
    size = max_shard_size or merged.max_shard_size or MAX_SHARD_SIZE
    return lay_out(base, members, anchor, top_k, merged.top_k_at_most, size, history, vouchers, dtype, weight)


def refuse_inside(model: Path, output: Path) -> None:
    """Raises `InputError` for an output that is the model folder it is made from, or lies in it."""
    if output.resolve().is_relative_to(model.resolve()):
        raise InputError(
            f"{output}: this is in the model itself. A model is never changed in place; name a new folder."
        )


def _farewell(merged: Merged, domains: Iterable[str]) -> list[dict[str, Any]]:
    """What the manifest remembers of experts that are in it no more."""
    entries = [merged.manifest["experts"][merged.domains.index(domain)] for domain in domains]
    kept = [{name: entry[name] for name in ("domain", "digest", "vouched") if name in entry} for entry in entries]
    return [entry | {"when": made_at()} for entry in kept]


def _refuse_unvouched(merged: Merged, indices: list[int], trusted: TrustedKeys) -> None:
    for index in indices:
        if not trusted.vouched(merged.manifest["experts"][index].get("vouched")):
            raise SignatureError(
                f"{merged.folder}: signatures are required, and its expert for {merged.domains[index]!r} was signed by "
                f"no key in {trusted.folder}. Replace that expert with a signed one, or merge all files again."
            )


def _kept_weight(merged: Merged, asked: float | None) -> float:
    """The folder's public weight, which its rows have in them already."""
    weight = merged.public_weight
    if asked not in (None, weight):
        raise InputError(
            f"{merged.folder}: its router rows were made with --public-weight {weight:g}. For another weight, merge "
            "the expert files again."
        )
    return weight


def _anchor_for(base: MergedBase, joining: list[ExpertFile], path: Path | None, public_weight: float) -> Anchor | None:
    """The anchor, if it is at hand; where a bias has to be folded, it must be: a merged folder has no directions."""
    if not joining:
        return None
    if path is not None:
        return _belonging(base, path)
    with suppress(ModelFolderError):  # found by its name, it may be anything
        return _belonging(base, find_anchor(joining))
    if public_weight != 1:
        raise ExpertFileError(
            f"{joining[0].path}: joins a folder where public text counts for {public_weight:g} domains. Its row is "
            "made so with the anchor's help. Say where that is with --anchor FOLDER."
        )
    if biased := [expert for expert in joining if expert.has_bias]:
        raise ExpertFileError(
            f"{biased[0].path}: has a router bias, which is folded with the anchor's help. Say where that is with "
            "--anchor FOLDER."
        )
    return None


def _belonging(base: MergedBase, path: Path) -> Anchor:
    anchor = open_anchor(path)
    if anchor.router_digest != base.about["router_digest"]:
        raise ModelFolderError(f"{path}: not the anchor of {base.folder}, whose public router rows are others.")
    return anchor
