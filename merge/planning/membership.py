"""Changing a folder that was merged before: experts leave, join, or are replaced by newer ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from flexo.atomic_files import refuse_occupied
from flexo.console import Progress, no_progress
from flexo.errors import ExpertFileError, InputError, ModelFolderError, UsageError, refuse_unknown
from merge.formats.anchor_folder import Anchor, find_anchor, open_anchor
from merge.formats.expert_file import ExpertFile, open_expert
from merge.formats.manifest import made_at, read_manifest
from merge.formats.merged_folder import Merged, open_merged
from merge.formats.signatures import SignatureError
from merge.planning.base_model import MergedBase
from merge.planning.compatibility import admit, check_belongs, refuse_repeats, refuse_twins
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import Member, Plan, execute, lay_out
from merge.planning.revocation import forgetting


def replan(
    folder: Path,
    options: MergeOptions = MergeOptions(),
    *,
    drop: Sequence[str] = (),
    join: Sequence[Path] = (),
    replace: Mapping[str, Path] | None = None,
    anchor_path: Path | None = None,
    forget: bool = False,
) -> Plan:
    """A merge of what a merged folder holds without some of its experts, with others, or with newer ones.

    Args:
        folder: a folder made by a merge.
        options: settings. Experts that join are given the folder's dtype and public weight; other values are refused
            where the folder's rows or weights have them already. Signatures, where required, are required of experts
            that join, and must have been verified of those that stay.
        drop: domains that leave.
        join: expert files that come after those of the folder.
        replace: domain -> expert file that takes its place.
        forget: whether the manifest keeps no more than the digests of experts that leave.
        anchor_path: the anchor folder; None looks where the headers say, and does without if it is not there. Needed
            where an expert that joins has a router bias, which the anchor's bias direction folds, or where the public
            weight is not 1.

    Raises:
        InputError: an unknown domain, nothing left, or files that do not belong to the folder.
        SignatureError: a signature is missing or does not hold.
    """
    merged = open_merged(folder, quantised=True)
    base, newer = MergedBase(merged), {domain: open_expert(path) for domain, path in (replace or {}).items()}
    _refuse_drops(merged, [*drop, *newer])
    _refuse_settings(base, options, changes_weights=bool(join or newer))
    refuse_repeats([*join, *(expert.path for expert in newer.values())], needed=False)
    members: list[Member] = [
        newer.get(domain, index) for index, domain in enumerate(merged.domains) if domain not in drop
    ]
    members += [open_expert(path) for path in join]
    if len(members) == 1:
        raise InputError(f"{folder}: only the public expert would be left, and that is the anchor. Use the anchor.")
    joining = [member for member in members if isinstance(member, ExpertFile)]
    _refuse_taken_places(merged, joining, drop, newer)
    for expert in joining:
        check_belongs(expert, base)
    refuse_twins(joining)
    vouchers = admit(joining, options)
    staying = [member for member in members[1:] if isinstance(member, int)]
    if options.listed:
        options.listed.refuse_staying([merged.manifest["experts"][index] for index in staying], str(folder))
    if options.require_signatures:
        _refuse_unsigned(merged, staying, options)
    anchor = _anchor_for(base, joining, anchor_path)
    said = merged.manifest
    history = {
        "how": said.get("how"),
        "router_training": said.get("router_training"),
        "router_bias_folding_rms": said.get("router_bias_folding_rms"),
        "left": [*said.get("left", []), *_farewell(merged, drop)],
        "replaced": [*said.get("replaced", []), *_farewell(merged, newer)],
        "readmitted": said.get("readmitted", []),
        "priors": said.get("priors", {}),
    }
    if forget:
        history = forgetting(history, drop)
    return lay_out(base, members, anchor, options, vouchers, history, said.get("left", []))


def opt_out(
    model: Path | str,
    output: Path | str,
    *,
    drop: Sequence[str] = (),
    keep: Sequence[str] = (),
    forget: bool = False,
    verify: bool = True,
    progress: Progress = no_progress,
) -> Plan:
    """What `flexo-optout` does: writes a merged model again without some of its experts.

    Args:
        model: a folder made by `flexo-merge`.
        output: the folder to make, whole or not at all.
        drop: domains that leave.
        keep: domains that stay beside the public one, in the place of `drop`.
        forget: whether the manifest keeps no more than the digests of experts that leave.
        verify: whether every tensor is compared with the manifest.
        progress: shows how far it is.

    Returns:
        What was written; `left` names the experts that are gone.

    Raises:
        InputError: an unknown domain, no expert would leave or none stay, damage, or the output is not free.
    """
    if bool(drop) == bool(keep):
        raise UsageError("say which experts leave with --drop, or which stay with --keep; one of the two.")
    folder, target = Path(model), Path(output)
    refuse_output(folder, target)
    if keep:
        domains = [expert["domain"] for expert in read_manifest(folder)["experts"]]
        refuse_unknown(keep, domains, str(folder))
        drop = [domain for domain in domains if domain not in [*keep, "public"]]
        if not drop:
            raise InputError(f"{folder}: --keep names every expert, so none would leave.")
    made = replan(folder, drop=list(dict.fromkeys(drop)), forget=forget)
    with progress("writing", made.nbytes) as advance:
        execute(made, target, advance, verify)
    return made


def refuse_output(model: Path, output: Path) -> None:
    """Raises `InputError` for an output that is not free, is the model folder that it is made from, or lies in it."""
    if output.resolve().is_relative_to(model.resolve()):
        raise InputError(
            f"{output}: this is in the model itself. A model is never changed in place; name a new folder."
        )
    refuse_occupied(output)


def _farewell(merged: Merged, domains: Iterable[str]) -> list[dict[str, Any]]:
    """What the new manifest keeps of experts that the folder had."""
    entries = [merged.manifest["experts"][merged.domains.index(domain)] for domain in domains]
    kept = [
        {name: entry[name] for name in ("domain", "digest", "sketch", "vouched") if name in entry} for entry in entries
    ]
    return [entry | {"when": made_at()} for entry in kept]


def _refuse_drops(merged: Merged, going: Sequence[str]) -> None:
    refuse_unknown(going, merged.domains, str(merged.folder))
    if "public" in going:
        raise InputError("public: the anchor's own expert, beside which all others were trained. It cannot leave.")


def _refuse_settings(base: MergedBase, options: MergeOptions, changes_weights: bool) -> None:
    """Settings that the folder's tensors have in them already, and that another merge alone could change."""
    folder, merged = base.folder, base.merged
    if merged.scheme and (changes_weights or options.dtype):
        raise InputError(
            f"{folder}: its experts are quantised to {merged.scheme.bits} bits. Experts can leave it; for any other "
            "change, take the model that it was made from, and quantise the result."
        )
    now = base.dtype(0)
    if merged.converted_from and options.stored_dtype not in (None, now):
        raise InputError(
            f"{folder}: rounded from {merged.converted_from} to {now} when it was merged. For another --dtype, merge "
            "the expert files again."
        )
    if options.public_weight not in (None, merged.public_weight):
        raise InputError(
            f"{folder}: its router rows were made with --public-weight {merged.public_weight:g}. For another weight, "
            "merge the expert files again."
        )


def _refuse_taken_places(
    merged: Merged, joining: Sequence[ExpertFile], drop: Sequence[str], newer: Mapping[str, ExpertFile]
) -> None:
    for domain, expert in newer.items():
        if expert.domain != domain:
            raise ExpertFileError(f"{expert.path}: an expert for {expert.domain!r}, which cannot replace {domain!r}.")
    for expert in joining:
        if expert.domain in merged.domains and expert.domain not in [*newer, *drop]:
            raise ExpertFileError(
                f"{expert.path}: {merged.folder} has an expert for {expert.domain!r} already. Exchange it with "
                f"--replace {expert.domain}={expert.path}."
            )


def _refuse_unsigned(merged: Merged, staying: Sequence[int], options: MergeOptions) -> None:
    assert options.trusted is not None, "checked by MergeOptions"
    for index in staying:
        if not options.trusted.vouched(merged.manifest["experts"][index].get("vouched"), merged.domains[index]):
            raise SignatureError(
                f"{merged.folder}: signatures are required, and its expert for {merged.domains[index]!r} was signed by "
                f"no key in {options.trusted_keys}. Replace that expert with a signed one, or merge all files again."
            )


def _anchor_for(base: MergedBase, joining: list[ExpertFile], path: Path | None) -> Anchor | None:
    """The anchor, if it is at hand; where a bias has to be folded, it must be: a merged folder has no directions."""
    if not joining:
        return None
    if path is not None:
        return _belonging(base, path)
    with suppress(ModelFolderError):  # found by its name, it may be anything
        return _belonging(base, find_anchor(joining))
    if base.public_weight != 1:
        raise ExpertFileError(
            f"{joining[0].path}: joins a folder with the public weight {base.public_weight:g}, which takes the anchor "
            "to work into its router row. Say where that is with --anchor FOLDER."
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
