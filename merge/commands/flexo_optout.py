"""`flexo-optout`: experts leave a merged model.

flexo-optout model/ --drop news -o model2/
flexo-optout model/ --keep math --keep code -o model2/
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run
from merge.commands.options import Output, usage

optout_app = new_app("Take experts out of a merged model, exactly.")


def main() -> None:
    run(optout_app)


@optout_app.command(
    epilog="Examples:\n\n`flexo-optout model/ --drop news -o model2/`\n\n"
    "`flexo-optout model/ --keep math --keep code -o model2/`"
)
def optout_command(
    model: Annotated[Path, typer.Argument(help="A folder made by flexo-merge.")],
    output: Output,
    drop: Annotated[list[str] | None, typer.Option(help="A domain that leaves; may be repeated.")] = None,
    keep: Annotated[
        list[str] | None, typer.Option(help="A domain that stays while all others leave; may be repeated.")
    ] = None,
    forget: Annotated[
        bool, typer.Option("--forget", help="Keep no more than the digests of who leaves: no domain, key or time.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Check every tensor against the manifest.")] = True,
) -> None:
    """Write the model again without some of its experts: the same bytes as if they had never been merged."""
    from merge.planning.membership import opt_out

    with usage():
        made = opt_out(model, output, drop=drop or (), keep=keep or (), forget=forget, verify=verify, progress=progress)
    left = ", ".join(made.left)
    typer.echo(f"wrote {output}/ with {', '.join(made.domains)}; left: {left}")
    if made.history["router_training"]:
        typer.echo(
            f"note: the router was trained after the merge, so the rows that stay were trained beside {left}. The "
            "weights of the experts that left are gone; the rows are not those of a merge that never had them."
        )
    elif not verify or not made.base.stated:
        why = "the manifest lists no digests" if verify else "--no-verify"
        typer.echo(
            f"every tensor that stays was copied as it lies in {model}, and compared with nothing ({why}): if one was "
            "damaged or exchanged there, it still is."
        )
    else:
        alike = ", quantised alike" if made.scheme else ""
        typer.echo(f"every tensor file is byte for byte that of a merge which never had them{alike}.")
