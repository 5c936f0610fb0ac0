"""Do these expert files belong together and to this anchor, and may they come in?"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from flexo.errors import ExpertFileError
from merge.formats.architecture import FFN, expert_ffn
from merge.formats.expert_file import ExpertFile
from merge.formats.expert_header import Header
from merge.formats.signatures import Voucher
from merge.planning.base_model import Base
from merge.planning.merge_options import MergeOptions


def refuse_repeats(paths: Sequence[Path], needed: bool = True) -> None:
    """Raises `ExpertFileError` for a file given twice, and for none where one is needed."""
    if needed and not paths:
        raise ExpertFileError("no expert files given. Example: flexo-merge experts/*.pt -o model/")
    for path, count in Counter(os.path.realpath(path) for path in paths).items():
        if count > 1:
            raise ExpertFileError(f"{path}: this file was given {count} times.")


def refuse_twins(experts: list[ExpertFile]) -> None:
    """Raises `ExpertFileError` for two experts of one domain."""
    for domain, count in Counter(expert.domain for expert in experts).items():
        if count > 1:
            same = ", ".join(str(expert.path) for expert in experts if expert.domain == domain)
            raise ExpertFileError(
                f"{same}: {count} experts for the domain {domain!r}. A merge takes one per domain; rename or drop one."
            )


def admit(joining: Sequence[ExpertFile], options: MergeOptions) -> dict[str, Voucher]:
    """Lets experts join, or raises for the first that `options` keep out.

    Returns:
        domain -> the verified signature of its expert, where there is one.

    Raises:
        ExpertFileError: an expert, or the key that signed it, is revoked, or its guarantee of privacy does not do.
        SignatureError: a signature does not hold, or is missing and required.
    """
    trusted = options.trusted
    found = {expert.domain: trusted.verify(expert, options.require_signatures) for expert in joining} if trusted else {}
    vouchers = {domain: voucher for domain, voucher in found.items() if voucher}
    if options.listed:
        options.listed.refuse(joining, vouchers)
    for expert in joining:
        if said := privacy_objection(expert.header, options.max_epsilon, options.require_privacy):
            raise ExpertFileError(f"{expert.path}: {said}.")
    return vouchers


def privacy_objection(header: Header, most: float | None, required: bool) -> str:
    """What speaks against the guarantee of privacy that an expert states; "" if nothing does.

    Args:
        header: of the expert.
        most: the largest epsilon; None: any.
        required: whether there must be a guarantee.
    """
    stated = header.privacy
    if stated is None:
        return (
            "it states no guarantee of differential privacy. Its owner can train it with privacy=dp" if required else ""
        )
    if stated.delta * header.data.documents > 1:
        return (
            f"its guarantee has a delta of {stated.delta:g} for {header.data.documents:,} documents, which would allow "
            "to publish one of them whole. Its owner can train it with privacy.delta=null"
        )
    if most is not None and not stated.epsilon <= most:
        return (
            f"its epsilon is {stated.epsilon:g}, at most {most:g} is asked for. Its owner can train it with a smaller "
            "privacy.epsilon"
        )
    return ""


def check_belongs(expert: ExpertFile, base: Base) -> None:
    """The expert was trained against exactly this anchor, tokenizer and public rows, in the anchor's dtype."""
    reference = expert.header.anchor
    for name, size in base.architecture.to_dict().items():
        if (found := reference.architecture.to_dict()[name]) != size:
            raise ExpertFileError(
                f"{expert.path}: its anchor has {name} {found}, {base.folder} has {size}. "
                "Was it trained against another anchor?"
            )
    digests = (
        ("tokenizer", reference.tokenizer_digest, base.about["tokenizer_digest"]),
        ("public router", reference.router_digest, base.about["router_digest"]),
        ("anchor", reference.digest, base.about["digest"]),
    )
    others = [what for what, theirs_hex, ours_hex in digests if theirs_hex != ours_hex]
    for what, theirs_hex, ours_hex in digests:
        if theirs_hex != ours_hex:
            advice = " If tokenizer.json was only saved again, put the one that owners have in its place."
            raise ExpertFileError(
                f"{expert.path}: trained against the {what} {theirs_hex[:12]}, {base.folder} has {ours_hex[:12]}. "
                f"Experts only fit the anchor that they were trained with (theirs was called {reference.name!r})."
                + (advice if others == ["tokenizer"] else "")
            )
    for n in range(base.architecture.num_hidden_layers):
        for part in FFN:
            ours = base.converted_from or base.ffn(0, n, part).dtype
            theirs = expert.header.tensors[expert_ffn(n, part)].dtype
            if ours != theirs:
                raise ExpertFileError(
                    f"{expert.path}: {expert_ffn(n, part)} has dtype {theirs}, the anchor's tensors are {ours}. "
                    "Export the expert in the anchor's dtype."
                )
    if expert.header.factored and (base.scheme or base.converted_from):
        raise ExpertFileError(
            f"{expert.path}: holds factors, to be added to the public network as it was, and {base.folder} has it "
            "rounded. Merge from the anchor, or write the expert whole first: "
            f"flexo-compress {expert.path} --whole -o FILE"
        )
