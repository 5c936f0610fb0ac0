"""Planning a change of a folder that was merged before: experts leave, join, or make way for newer ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from merge.anchor import Anchor, open_anchor
from merge.assemble import MAX_SHARD_SIZE, Member, Plan, check_belongs, lay_out, refuse_repeats, refuse_twins
from merge.base import MergedBase
from merge.errors import CheckpointError, ExpertFileError, InputError
from merge.expert_file import ExpertFile, open_expert
from merge.manifest import made_at
from merge.names import refuse_unknown


def replan(
    folder: Path,
    drop: Sequence[str] = (),
    join: Sequence[Path] = (),
    replace: Mapping[str, Path] | None = None,
    anchor_path: Path | None = None,
    top_k: int | None = None,
    max_shard_size: int | None = None,
) -> Plan:
    """A merge of what a merged folder holds without some of its experts, with others, or with newer ones.

    Args:
        folder: a folder made by a merge.
        drop: domains that leave.
        join: expert files that come after those of the folder.
        replace: domain -> expert file that takes its place.
        anchor_path: needed where an expert that joins has a router bias, which the anchor's bias direction folds.
        top_k: as in `plan`; None keeps the folder's, at most as many as there are experts.
        max_shard_size: bytes of tensors per file; None keeps what the folder was written with.

    Raises:
        InputError: an unknown domain, nothing left, or files that do not belong to the folder.
    """
    base, newer = MergedBase(folder), {domain: open_expert(path) for domain, path in (replace or {}).items()}
    refuse_unknown([*drop, *newer], base.domains, str(folder))
    if "public" in [*drop, *newer]:
        raise InputError("public: the anchor's own expert, which all others are measured against. It cannot leave.")
    members: list[Member] = [
        newer.get(domain, index) for index, domain in enumerate(base.domains) if domain not in drop
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
        if expert.domain in base.domains and expert.domain not in [*newer, *drop]:
            raise ExpertFileError(
                f"{expert.path}: {folder} has an expert for {expert.domain!r} already. Exchange it with "
                f"--replace {expert.domain}={expert.path}."
            )
        check_belongs(expert, base)
    refuse_twins(joining)
    anchor = _anchor_for(base, joining, anchor_path)
    said = base.manifest
    gone = [{"domain": d, "digest": base.experts[base.domains.index(d)].get("digest"), "when": made_at()} for d in drop]
    swapped = [
        {"domain": d, "digest": base.experts[base.domains.index(d)].get("digest"), "when": made_at()} for d in newer
    ]
    history = {
        "how": said.get("how"),
        "router_training": said.get("router_training"),
        "router_bias_folding_rms": said.get("router_bias_folding_rms"),
        "left": [*said.get("left", []), *gone],
        "replaced": [*said.get("replaced", []), *swapped],
    }
    size = max_shard_size or base.max_shard_size or MAX_SHARD_SIZE
    return lay_out(base, members, anchor, top_k, base.top_k_at_most, size, history, {})


def _anchor_for(base: MergedBase, experts: list[ExpertFile], path: Path | None) -> Anchor | None:
    """The anchor, where an expert's bias has to be folded; a merged folder does not carry the bias directions."""
    biased = [expert for expert in experts if expert.has_bias]
    if not biased:
        return None
    if path is None:
        raise ExpertFileError(
            f"{biased[0].path}: has a router bias, which is folded with the anchor's help. Say where that is with "
            "--anchor FOLDER."
        )
    anchor = open_anchor(path)
    if anchor.router_digest != base.about["router_digest"]:
        raise CheckpointError(f"{path}: not the anchor of {base.folder}, whose public router rows are others.")
    return anchor
