"""`flexo-merge`: expert files into one model, without training and without data.

flexo-merge experts/*.pt -o model/
flexo-merge experts/*.pt -o model/ --dry-run
flexo-merge model/ experts/legal.pt --replace math=experts/math-v2.pt -o model2/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from flexo.console import new_app, progress, run, size_text
from flexo.verbosity import note, warn
from merge.commands.options import Output, TrustedKeysOption, parse_size, printable, usage
from merge.planning.merge_options import ROUNDED_TO

app = new_app("Assemble expert files into one FlexOlmo model. No training, no data.")


def main() -> None:
    run(app)


def _parse_dtype(text: str) -> str:
    if text not in ROUNDED_TO:
        raise typer.BadParameter(f"{text!r}: expected one of {', '.join(ROUNDED_TO)}.")
    return text


@app.command(
    epilog="Examples:\n\n"
    "`flexo-merge experts/*.pt -o model/`\n\n"
    "`flexo-merge experts/math.pt experts/news.pt -o model/ --anchor anchor/ --top-k 2`\n\n"
    "`flexo-merge experts/*.pt -o model/ --require-signatures --trusted-keys keys/`\n\n"
    "`flexo-merge experts/*.pt -o model/ --dtype bfloat16 --max-shard-size 2GB`\n\n"
    "`flexo-merge experts/*.pt -o model/ --require-privacy --max-epsilon 8`\n\n"
    "`flexo-merge model/ experts/legal.pt -o model2/`\n\n"
    "`flexo-merge model/ --replace math=experts/math-v2.pt -o model2/`\n\n"
    "`flexo-merge experts/*.pt -o model/ --revoked math.withdrawal.json`\n\n"
    "`flexo-merge model/ experts/math.pt -o model2/ --readmit math --reason 'asked back by its owner'`\n\n"
    "`flexo-merge experts/*.pt -o model/ --dry-run`"
)
def merge_command(
    experts: Annotated[
        list[Path],
        typer.Argument(help="Expert files, in the order of the experts; before them, a merged folder that they join."),
    ],
    output: Output,
    replace: Annotated[
        list[str] | None,
        typer.Option(metavar="DOMAIN=FILE", help="Replace an expert of the folder by another; may be repeated."),
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
            help="Prior weight of the public expert, in units of one domain: more keeps the anchor's abilities, less "
            "favours the owners' experts. "
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
    revoked: Annotated[
        Path | None,
        typer.Option(help="A list of revoked experts and keys, or a notice of withdrawal."),
    ] = None,
    max_epsilon: Annotated[
        float | None, typer.Option(help="Refuse experts that state a larger epsilon of differential privacy.")
    ] = None,
    require_privacy: Annotated[
        bool, typer.Option("--require-privacy", help="Refuse experts that state no guarantee of differential privacy.")
    ] = False,
    readmit: Annotated[
        list[str] | None, typer.Option(metavar="DOMAIN", help="Take an expert back that has left the folder; repeated.")
    ] = None,
    reason: Annotated[str, typer.Option(help="Why it is taken back; the manifest keeps it.")] = "",
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

    Give a folder that was merged before first, and experts join it or are replaced by newer ones; all else stays.
    """
    from merge.planning.merge_options import MergeOptions
    from merge.planning.merging import plan_merge, write_merge

    with usage():
        options = MergeOptions(
            top_k, max_shard_size, dtype, public_weight, trusted_keys, require_signatures, revoked,
            tuple(readmit or ()), reason, max_epsilon, require_privacy, verify=verify, check=check,
        )  # fmt: skip
        made = plan_merge(experts, output, anchor=anchor, replace=_replacements(replace or []), options=options)
    typer.echo(_plan_text(made))
    for warning in made.warnings:
        warn(printable(warning))
    if made.warnings:
        note("flexo-audit measures what such rows do to public text, flexo-eval --credit what they do to everybody's.")
    if made.history.get("router_training"):
        note("this model's router was trained after its merge; the rows of experts that join now were not.")
    if dry_run:
        with progress("reading the anchor", made.base.weights.nbytes) as advance:
            made.base.verify(advance)
        typer.echo("dry run: nothing was written.")
        return
    with usage():
        report = write_merge(made, output, options, progress)
    anchor = made.anchor.folder if made.anchor else None
    typer.echo(report or f"not checked; run: flexo-check {output} --anchor {anchor or 'ANCHOR'}")
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
            stated = member.header.privacy
            private = f"  epsilon {stated.epsilon:.3g}" if stated else ""
            lines.append(f"expert {index} {domain}  {member.path}  {size}  {member.header.licence}{private}{signed}")
    lines.append(
        f"output   FlexOlmo, {len(plan.domains)} experts, {plan.top_k} active per token, {len(plan.tensors)} tensors, "
        f"{size_text(plan.nbytes)}" + (f", rounded from {plan.converted_from}" if plan.converted_from else "")
    )
    if plan.public_weight != 1:
        lines.append(f"prior    the public expert weighs as much as {plan.public_weight:g} domains")
    if errors := plan.bias_errors():
        worst = max(range(len(errors)), key=errors.__getitem__)
        lines.append(
            "router   biases are folded into the rows; root mean square error of the fold on public text, for a bias "
            f"of 1: {sum(errors) / len(errors):.2f} over layers, worst {errors[worst]:.2f} in layer {worst}"
        )
    return "\n".join(lines)
