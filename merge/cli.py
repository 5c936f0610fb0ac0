"""`flexo-merge` and `flexo-inspect`.

flexo-merge experts/*.pt -o model/
flexo-merge experts/*.pt -o model/ --dry-run
flexo-inspect experts/math.pt
flexo-inspect model/
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from merge.console import new_app, progress, run

merge_app = new_app("Assemble expert files into one FlexOlmo model. No training, no data.")
inspect_app = new_app("Show what an expert file, a merged model or an anchor says about itself.")

TrustedKeysOption = Annotated[
    Path | None, typer.Option("--trusted-keys", help="A folder of public keys to check signatures FILE.sig with.")
]


def merge() -> None:
    run(merge_app)


def inspect() -> None:
    run(inspect_app)


@merge_app.command(
    epilog="Examples:\n\n"
    "`flexo-merge experts/*.pt -o model/`\n\n"
    "`flexo-merge experts/math.pt experts/news.pt -o model/ --anchor anchor/ --top-k 2`\n\n"
    "`flexo-merge experts/*.pt -o model/ --require-signatures --trusted-keys keys/`\n\n"
    "`flexo-merge experts/*.pt -o model/ --dry-run`"
)
def merge_command(
    experts: Annotated[list[Path], typer.Argument(help="Expert files; their order is the order of the experts.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")],
    anchor: Annotated[Path | None, typer.Option(help="The anchor folder. [default: where the headers say]")] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Active experts per token, public included. [default: all, at most 4]")
    ] = None,
    max_shard_size: Annotated[float, typer.Option(help="Gigabytes of tensors per file.", min=0.001)] = 5.0,
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
    """Assemble expert files into one FlexOlmo model folder that transformers and vLLM load."""
    from merge.assemble import execute, plan
    from merge.checking import SMALL, can_check, check_by_running
    from merge.files import refuse_occupied
    from merge.signing import read_trusted_keys

    if require_signatures and not trusted_keys:
        raise typer.BadParameter("--require-signatures needs --trusted-keys FOLDER: whose signatures?")
    refuse_occupied(output)
    trusted = read_trusted_keys(trusted_keys) if trusted_keys else None
    made = plan(experts, anchor, top_k, int(max_shard_size * 1e9), trusted, require_signatures)
    typer.echo(_plan_text(made))
    for warning in made.warnings:
        sys.stderr.write(f"warning: {_printable(warning)}\n")
    if dry_run:
        with progress("reading the anchor", made.base.checkpoint.nbytes) as advance:
            made.base.check_digest(made.base.checkpoint.digest(advance))
        typer.echo("dry run: nothing was written.")
        return
    if check and not can_check():
        raise typer.BadParameter("--check needs transformers, which is not installed here.")
    wanted = made.nbytes <= SMALL and can_check() if check is None else check
    report: list[str] = []

    def accept(folder: Path) -> None:
        if wanted:
            report.append(check_by_running(folder, made.base.folder))

    with progress("merging", made.nbytes) as advance:
        execute(made, output, advance, accept=accept)
    typer.echo("\n".join(report) if wanted else f"not checked; run: flexo-check {output} --anchor {made.base.folder}")
    typer.echo(f"wrote {output}/  try: echo 'Once upon a time' | flexo-generate {output}")


@inspect_app.command(epilog="Examples:\n\n`flexo-inspect experts/math.pt`\n\n`flexo-inspect model/ --json`")
def inspect_command(
    path: Annotated[Path, typer.Argument(help="An expert file (.pt or .safetensors), a merged folder or an anchor.")],
    as_json: Annotated[bool, typer.Option("--json", help="Everything, as JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Check every tensor of an expert file for damage.")] = False,
    trusted_keys: TrustedKeysOption = None,
) -> None:
    """Show what an expert file, a merged model or an anchor says about itself."""
    about = _about(path, verify, trusted_keys)
    typer.echo(
        json.dumps(about, indent=2, ensure_ascii=False) if as_json else "\n".join(map(_printable, _lines(about)))
    )


def _about(path: Path, verify: bool, trusted_keys: Path | None) -> dict[str, Any]:
    if not path.is_dir():
        from merge.expert_file import open_expert
        from merge.signing import signature_about

        expert = open_expert(path)
        if verify:
            with progress("verifying", expert.nbytes) as advance:
                for name in expert.header.tensors:
                    advance(len(expert.read(name)))
        about = {"file": str(path), "bytes": path.stat().st_size, "verified": verify} | expert.header.to_dict()
        about["signature"] = signature_about(expert, trusted_keys)
        about["tensors"] = {
            name: f"{info.dtype} {list(info.shape)} {info.sha256[:12]}" for name, info in expert.header.tensors.items()
        }
        return about
    from merge.anchor import SHARED
    from merge.anchor import about as about_anchor
    from merge.manifest import read_manifest

    return about_anchor(path) if (path / SHARED).is_dir() else read_manifest(path)


def _lines(value: Any, indent: str = "") -> list[str]:
    """Nested values as indented `name: value` lines."""
    lines: list[str] = []
    for name, entry in value.items():
        if isinstance(entry, dict):
            lines += [f"{indent}{name}:", *_lines(entry, indent + "  ")]
        elif isinstance(entry, list) and any(isinstance(item, dict) for item in entry):
            lines.append(f"{indent}{name}:")
            for item in entry:
                lines += [f"{indent}  - {line.strip()}" if not i else f"{indent}    {line}"
                          for i, line in enumerate(_lines(item))]  # fmt: skip
        else:
            lines.append(f"{indent}{name}: {'-' if entry is None else entry}")
    return lines


def _printable(line: str) -> str:
    """A stranger's text without what could steer a terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in line)


def _plan_text(plan: Any) -> str:
    arch = plan.base.architecture
    lines = [
        f"anchor   {plan.base.folder}  {arch.num_hidden_layers} layers, hidden {arch.hidden_size}, "
        f"FFN {arch.intermediate_size}, vocabulary {arch.vocab_size}  digest {plan.base.about['digest'][:12]}",
        "expert 0 public",
    ]
    lines += [
        f"expert {index} {expert.domain}  {expert.path}  {_size(expert.nbytes)}  {expert.header.licence}"
        + (f"  signed by {plan.vouchers[expert.domain].name}" if expert.domain in plan.vouchers else "")
        for index, expert in enumerate(plan.experts, 1)
    ]
    lines.append(
        f"output   FlexOlmo, {len(plan.domains)} experts, {plan.top_k} active per token, {len(plan.pieces)} tensors, "
        f"{_size(plan.nbytes)}"
    )
    if errors := plan.bias_errors():
        worst = max(range(len(errors)), key=errors.__getitem__)
        lines.append(
            "router   biases are folded into the rows; root mean square error of the fold on public text, for a bias "
            f"of 1: {sum(errors) / len(errors):.2f} over layers, worst {errors[worst]:.2f} in layer {worst}"
        )
    return "\n".join(lines)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.2f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.2f} MB"
