"""`flexo-optout`: experts leave a merged model.

flexo-optout model/ --drop news -o model2/
flexo-optout model/ --keep math --keep code -o model2/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run

optout_app = new_app("Take experts out of a merged model, exactly.")


def main() -> None:
    run(optout_app)


@optout_app.command(
    epilog="Examples:\n\n`flexo-optout model/ --drop news -o model2/`\n\n"
    "`flexo-optout model/ --keep math --keep code -o model2/`"
)
def optout_command(
    model: Annotated[Path, typer.Argument(help="A folder made by flexo-merge.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")],
    drop: Annotated[list[str] | None, typer.Option(help="A domain that leaves; may be repeated.")] = None,
    keep: Annotated[list[str] | None, typer.Option(help="A domain that stays, all others leave; repeated.")] = None,
    verify: Annotated[bool, typer.Option(help="Check every tensor against the manifest.")] = True,
) -> None:
    """Write the model again without some of its experts: the same bytes as if they had never been merged."""
    if bool(drop) == bool(keep):
        raise typer.BadParameter("say who leaves with --drop, or who stays with --keep, one of the two.")
    from flexo.atomic_files import refuse_occupied
    from flexo.errors import InputError, refuse_unknown
    from merge.formats.manifest import read_manifest
    from merge.planning.membership import refuse_inside, replan
    from merge.planning.merge_plan import execute

    refuse_inside(model, output)
    refuse_occupied(output)
    manifest = read_manifest(model)
    domains = [str(expert.get("domain")) for expert in manifest["experts"]]
    refuse_unknown(keep or [], domains, str(model))
    leaving = drop or [domain for domain in domains if domain not in [*(keep or []), "public"]]
    if not leaving:
        raise InputError(f"{model}: --keep names everybody, so nobody would leave.")
    made = replan(model, drop=list(dict.fromkeys(leaving)))
    with progress("writing", made.nbytes) as advance:
        execute(made, output, advance, verify)
    typer.echo(f"wrote {output}/ with {', '.join(made.domains)}; left: {', '.join(leaving)}")
    if made.history["router_training"]:
        typer.echo(
            f"note: the router was trained after the merge, so the rows that stay have seen {', '.join(leaving)}. "
            "The weights of who left are gone; the rows are not those of a merge that never had them."
        )
    elif not verify or not manifest.get("tensors"):
        why = "the manifest lists no digests" if verify else "--no-verify"
        typer.echo(
            f"every tensor that stays was copied as it lies in {model}, and compared with nothing ({why}): if one was "
            "damaged or exchanged there, it still is."
        )
    else:
        alike = ", quantised alike" if made.scheme else ""
        typer.echo(f"every tensor file is byte for byte that of a merge which never had them{alike}.")
