"""`flexo-merge`: expert files into one model, without training and without data.

flexo-merge experts/*.pt -o model/
flexo-merge experts/*.pt -o model/ --dry-run
flexo-merge model/ experts/legal.pt --replace math=experts/math-v2.pt -o model2/
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from flexo.console import new_app, parse_size, progress, run, size_text
from merge.commands.options import TrustedKeysOption, printable
from merge.tensor_io.stored_tensor import DTYPES, FLOATS

app = new_app("Assemble expert files into one FlexOlmo model. No training, no data.")


def main() -> None:
    run(app)


def _parse_dtype(text: str) -> str:
    names = {DTYPES[name][0]: name for name in FLOATS if name != "F64"}
    if text not in names:
        raise typer.BadParameter(f"{text!r}: expected one of {', '.join(sorted(names))}.")
    return names[text]


@app.command(
    epilog="Examples:\n\n"
    "`flexo-merge experts/*.pt -o model/`\n\n"
    "`flexo-merge experts/math.pt experts/news.pt -o model/ --anchor anchor/ --top-k 2`\n\n"
    "`flexo-merge experts/*.pt -o model/ --require-signatures --trusted-keys keys/`\n\n"
    "`flexo-merge experts/*.pt -o model/ --dtype bfloat16 --max-shard-size 2GB`\n\n"
    "`flexo-merge model/ experts/legal.pt -o model2/`\n\n"
    "`flexo-merge model/ --replace math=experts/math-v2.pt -o model2/`\n\n"
    "`flexo-merge experts/*.pt -o model/ --dry-run`"
)
def merge_command(
    experts: Annotated[
        list[Path],
        typer.Argument(help="Expert files, in the order of the experts; before them, a merged folder that they join."),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")],
    replace: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=FILE", help="Put another expert in the place of one of the folder; repeated."),
    ] = None,
    anchor: Annotated[Path | None, typer.Option(help="The anchor folder. [default: where the headers say]")] = None,
    top_k: Annotated[
        int | None,
        typer.Option(help="Active experts per token, public included. [default: the folder's, or all, at most 4]"),
    ] = None,
    max_shard_size: Annotated[
        Any,
        typer.Option(
            parser=parse_size,
            metavar="SIZE",
            help="Tensors per file: 5GB, 500MB, or bytes. [default: the folder's, or 5GB]",
        ),
    ] = None,
    dtype: Annotated[
        Any,
        typer.Option(
            parser=_parse_dtype,
            metavar="DTYPE",
            help="Round all weights to float32, bfloat16 or float16. [default: the anchor's or the folder's]",
        ),
    ] = None,
    public_weight: Annotated[
        float | None,
        typer.Option(
            min=0.001,
            max=1000,
            help="How many domains public text counts for: more keeps the anchor's abilities, less favours the owners. "
            "[default: the folder's, or 4]",
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="Compare every tensor with its sha256, and the anchor with its digest. Without, tensors are copied as "
            "they are, and a damaged or exchanged one is not noticed.",
        ),
    ] = True,
    trusted_keys: TrustedKeysOption = None,
    require_signatures: Annotated[
        bool, typer.Option("--require-signatures", help="Refuse an expert that no trusted key has signed.")
    ] = False,
    check: Annotated[
        bool | None,
        typer.Option(
            "--check/--no-check",
            help="Run the merged model and compare it with the anchor before it appears. [default: up to 2 GB]",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check what fits, print the plan, write nothing.")] = False,
) -> None:
    """Assemble expert files into one FlexOlmo model folder that transformers and vLLM load.

    A folder that was merged before, given first, is taken as it is: experts join it, or make way for newer ones.
    """
    from flexo.atomic_files import refuse_occupied
    from merge.formats.signatures import read_trusted_keys
    from merge.planning.check_process import SMALL, can_check, check_by_running
    from merge.planning.membership import refuse_inside, replan
    from merge.planning.merge_plan import MAX_SHARD_SIZE, PUBLIC_WEIGHT, execute, plan

    if require_signatures and not trusted_keys:
        raise typer.BadParameter("--require-signatures needs --trusted-keys FOLDER: whose signatures?")
    if trusted_keys and not verify:
        raise typer.BadParameter("a signature is for tensors that are compared with it: --no-verify cannot go with it.")
    newer = _replacements(replace or [])
    folder = experts[0] if experts[0].is_dir() else None
    if newer and not folder:
        raise typer.BadParameter("--replace changes a merged folder. Give that first: flexo-merge model/ --replace ...")
    if folder and not newer and len(experts) == 1:
        raise typer.BadParameter(f"{folder}: a folder and no expert to join it. Give expert files, or --replace.")
    refuse_occupied(output)
    trusted = read_trusted_keys(trusted_keys) if trusted_keys else None
    if folder:
        refuse_inside(folder, output)
        made = replan(
            folder, (), experts[1:], newer, anchor, top_k, max_shard_size, trusted, require_signatures, dtype,
            public_weight,
        )  # fmt: skip
    else:
        size, weight = max_shard_size or MAX_SHARD_SIZE, public_weight or PUBLIC_WEIGHT
        made = plan(experts, anchor, top_k, size, trusted, require_signatures, dtype, weight)
    typer.echo(_plan_text(made))
    for warning in made.warnings:
        sys.stderr.write(f"warning: {printable(warning)}\n")
    if made.warnings:
        sys.stderr.write("note: flexo-audit measures what such rows do to public text.\n")
    if made.history.get("router_training"):
        sys.stderr.write("note: this model's router was trained after its merge; the rows of who joins were not.\n")
    if dry_run:
        with progress("reading the anchor", made.base.weights.nbytes) as advance:
            made.base.verify(advance)
        typer.echo("dry run: nothing was written.")
        return
    anchor = made.anchor.folder if made.anchor else None
    if check and not can_check():
        raise typer.BadParameter("--check needs transformers, which is not installed here.")
    if check and not anchor:
        raise typer.BadParameter("--check compares with the anchor, which is not where the headers say: add --anchor.")
    wanted = made.nbytes <= SMALL and can_check() if check is None else check
    report: list[str] = []

    def accept(finished: Path) -> None:
        if wanted and anchor:
            report.append(check_by_running(finished, anchor))

    with progress("merging", made.nbytes) as advance:
        execute(made, output, advance, verify, accept)
    typer.echo("\n".join(report) or f"not checked; run: flexo-check {output} --anchor {anchor or 'ANCHOR'}")
    typer.echo(f"wrote {output}/  try: echo 'Once upon a time' | flexo-generate {output}")


def _replacements(given: list[str]) -> dict[str, Path]:
    """`DOMAIN=FILE` by domain."""
    pairs = [text.partition("=") for text in given]
    for domain, _, file in pairs:
        if not domain or not file:
            raise typer.BadParameter("--replace takes DOMAIN=FILE, as in --replace math=experts/math-v2.pt.")
    if len({domain for domain, _, _ in pairs}) != len(pairs):
        raise typer.BadParameter("--replace names a domain twice; one expert can take its place.")
    return {domain: Path(file) for domain, _, file in pairs}


def _plan_text(plan: Any) -> str:
    arch = plan.base.architecture
    lines = [
        f"{plan.base.kind:8} {plan.base.folder}  {arch.num_hidden_layers} layers, hidden {arch.hidden_size}, "
        f"FFN {arch.intermediate_size}, vocabulary {arch.vocab_size}  anchor's digest {plan.base.about['digest'][:12]}"
    ]
    for index, (member, domain) in enumerate(zip(plan.members, plan.domains, strict=True)):
        if isinstance(member, int):
            lines.append(f"expert {index} {printable(domain)}" + ("  from the model" if member else ""))
        else:
            signed = f"  signed by {plan.vouchers[domain].name}" if domain in plan.vouchers else ""
            size = size_text(member.nbytes)
            lines.append(f"expert {index} {domain}  {member.path}  {size}  {member.header.licence}{signed}")
    lines.append(
        f"output   FlexOlmo, {len(plan.domains)} experts, {plan.top_k} active per token, {len(plan.tensors)} tensors, "
        f"{size_text(plan.nbytes)}" + (f", rounded from {plan.converted_from}" if plan.converted_from else "")
    )
    if plan.public_weight != 1:
        lines.append(f"prior    public text counts for {plan.public_weight:g} domains")
    if errors := plan.bias_errors():
        worst = max(range(len(errors)), key=errors.__getitem__)
        lines.append(
            "router   biases are folded into the rows; root mean square error of the fold on public text, for a bias "
            f"of 1: {sum(errors) / len(errors):.2f} over layers, worst {errors[worst]:.2f} in layer {worst}"
        )
    return "\n".join(lines)
