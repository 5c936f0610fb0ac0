"""What experts do to public text: each alone beside the public expert, and all together, judged by a policy.

A merge looks at files and router rows without running a model (`merge.planning.router_screening`). Here the model runs:
how much router mass an expert takes from the public one in every layer, and how the loss on public text changes. No
private text is needed, so anyone can audit a stranger's file.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from evals.audit.policy import Audit, Audited, Layer, Limits, judge
from evals.scoring.held_out import read_texts
from evals.scoring.measure import Measurement, measure
from evals.scoring.sliding_windows import TokenisedText
from flexmix.documents.corpus import find_split
from flexo.console import progress
from flexo.errors import InputError
from inference.load import load_model
from inference.select import select_experts
from merge.formats.anchor_folder import Anchor, open_anchor
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import Plan, execute, plan
from merge.planning.router_screening import look_at

AS_TRAINED = MergeOptions(public_weight=1.0)  # margins as they were trained, whatever a merge makes of them


def audit(
    paths: Sequence[Path],
    anchor_path: Path,
    limits: Limits = Limits(),
    public: Path | None = None,
    max_bytes: int = 100_000,
    dtype: str = "auto",
    device: str = "auto",
) -> Audit:
    """Merges the files into a temporary folder, runs the model on public text, and judges every expert.

    A file that a merge would refuse is refused with the merge's message, and takes no part in the merge.

    Args:
        paths: expert files trained against one anchor.
        anchor_path: the folder of that anchor.
        limits: the policy.
        public: a file of documents, or a folder with a test split; None reads the anchor's reference text.
        max_bytes: how much text is read, up to the end of the document that passes it.
        dtype, device: as in `load_model`.

    Raises:
        InputError: there is no public text, or two files cannot be in one merge.
    """
    anchor = open_anchor(anchor_path)
    file = _text_file(anchor, public)
    experts = [_opened(path, anchor_path) for path in paths]
    sound = [path for path, expert in zip(paths, experts, strict=True) if not expert.refusals]
    if not sound:
        return Audit(str(file), 0, experts)
    made = plan(sound, anchor_path, AS_TRAINED)
    with TemporaryDirectory(prefix="flexo-audit-") as name:
        folder = Path(name) / "model"
        execute(made, folder)
        text = read_texts({"public": file}, folder, max_bytes)["public"]
        found = _measured(folder, made.domains[1:], text, dtype, device)
    whole, alone = found[frozenset(made.domains)], found[frozenset(["public"])]
    result = Audit(str(file), text.tokens, experts, alone.nats_per_token, whole.nats_per_token)
    for expert in experts:
        if not expert.refusals:
            _fill(expert, made, found)
    for expert in experts:
        if expert.layers:
            judge(expert, result, limits)
    return result


def _text_file(anchor: Anchor, public: Path | None) -> Path:
    if public is not None:
        return find_split(public, "test") if public.is_dir() else public
    if not anchor.reference.is_dir():
        raise InputError(f"{anchor.folder}: ships no reference text. Name the public text to read: --public FILE.")
    return find_split(anchor.reference, "test")


def _opened(path: Path, anchor: Path) -> Audited:
    """The verdict of a merge of this file alone, in which every tensor is compared with its sha256."""
    try:
        made = plan([path], anchor, AS_TRAINED)
        (expert,) = made.experts
        expert.verify()
    except InputError as error:
        return Audited(str(path), "-", refusals=[str(error).removeprefix(f"{path}: ")])
    return Audited(str(path), expert.domain, warnings=[text.removeprefix(f"{path}: ") for text in made.warnings])


def _measured(
    folder: Path, domains: list[str], text: TokenisedText, dtype: str, device: str
) -> dict[frozenset[str], Measurement]:
    """Public text measured with the public expert alone, with each pair, with all experts, and without each."""
    model, _ = load_model(folder, dtype, device)
    whole = ["public", *domains]
    wanted = [["public"], *(["public", domain] for domain in domains), whole]
    wanted += [[name for name in whole if name != domain] for domain in domains]
    choices = {frozenset(names): names for names in wanted}  # with one or two experts some sets are the same
    found: dict[frozenset[str], Measurement] = {}
    with progress("reading public text", len(choices) * text.tokens, "tokens") as advance:
        for key, names in choices.items():
            with select_experts(model, names):
                found[key] = measure(model, text, experts=names, advance=advance)
    return found


def _fill(expert: Audited, made: Plan, found: dict[frozenset[str], Measurement]) -> None:
    pair, whole = found[frozenset(["public", expert.domain])], found[frozenset(made.domains)]
    assert pair.routing and whole.routing, "a mixture has routers"
    index = made.domains.index(expert.domain)
    opened = made.experts[index - 1]
    for n in range(made.base.architecture.num_hidden_layers):
        row = look_at(made.base, made.anchor, opened, n)
        expert.layers.append(
            Layer(
                mass_alone=pair.routing.mass[n][1],
                mass_all=whole.routing.mass[n][index],
                entropy=pair.routing.entropy[n],
                norm=row.norm / max(row.public, 1e-30),
                margin=row.margin.rms if row.margin else None,
            )
        )
    expert.loss_alone = pair.nats_per_token
    expert.loss_without = found[frozenset(made.domains) - {expert.domain}].nats_per_token
