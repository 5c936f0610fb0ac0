"""`flexo-serve`: a merged model over HTTP; each request uses the experts that its key allows.

flexo-serve keys add alice --experts public,math
flexo-serve model/ --keys keys.yaml
flexo-serve report serve-log/ -o statement.html
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flexo.atomic_files import new_file
from flexo.console import new_app, run
from flexo.errors import InputError
from serving.commands import key_commands

OURS = ("-h", "--help", "--install-completion", "--show-completion")
LogFolder = Annotated[Path, typer.Argument(help="The log of a server.")]
PublicKey = Annotated[Path | None, typer.Option("--public", help="Public key that closed files are signed with.")]


class ModelOrCommand(TyperGroup):
    """`flexo-serve model/` is `flexo-serve run model/`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *OURS):
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = new_app("Serve a merged model; each request uses the experts that its key allows.")
app.info.cls = ModelOrCommand
app.add_typer(key_commands.app, name="keys")


def main() -> None:
    run(app)


@app.command(
    "run",
    epilog="Examples:\n\n`flexo-serve model/ --keys keys.yaml`\n\n`flexo-serve --config serve.yaml`",
)
def run_command(
    model: Annotated[Path | None, typer.Argument(help="A merged folder, or a link to it.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The file of API keys.")] = None,
    config: Annotated[Path | None, typer.Option(help="All settings, as YAML.")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on. [default: 8080]")] = None,
    log: Annotated[Path | None, typer.Option(help="Folder of the log. [default: serve-log]")] = None,
) -> None:
    """Serve until it is stopped with Ctrl-C or SIGTERM; SIGHUP loads the model anew."""
    key_commands.needs_extra()
    from inference.load import quiet
    from serving.gateway.server import run as serve
    from serving.gateway.settings import read_settings

    quiet()
    if not config:
        missing = [name for name, value in (("MODEL", model), ("--keys", keys)) if value is None]
        if missing:
            raise InputError(f"{' and '.join(missing)}: not given. Type: flexo-serve model/ --keys keys.yaml")
    serve(read_settings(config, model=model, keys=keys, host=host, port=port, log=log))


@app.command(epilog="Examples:\n\n`flexo-serve report serve-log/`\n\n`flexo-serve report serve-log/ -o statement.html`")
def report(
    log: LogFolder,
    output: Annotated[
        list[Path] | None, typer.Option("--output", "-o", help="A new file .csv or .html; may be repeated.")
    ] = None,
    public: PublicKey = None,
) -> None:
    """Say what each owner's experts did in each month."""
    from serving.receipts.log import read_log
    from serving.receipts.statement import as_csv, as_html, statement

    files = output or []
    for path in files:
        if path.suffix not in (".csv", ".html"):
            raise InputError(f"-o {path}: expected a name that ends in .csv or .html.")
    rows = statement(read_log(log, public))
    for path in files:
        with new_file(path) as partial:
            partial.write_text(as_html(rows) if path.suffix == ".html" else as_csv(rows), encoding="utf-8")
    if not files:
        typer.echo(as_csv(rows), nl=False)


@app.command(epilog="Examples:\n\n`flexo-serve check serve-log/ --receipts mine.jsonl --public server.pub`")
def check(
    log: LogFolder,
    receipts: Annotated[Path | None, typer.Option(help="Receipts as JSON lines, which must be in the log.")] = None,
    public: PublicKey = None,
) -> None:
    """For owners: whether a log is whole, and says of answers what their receipts say."""
    from serving.receipts.log import read_log
    from serving.receipts.statement import check_receipts

    lines = list(read_log(log, public))
    typer.echo(f"{len(lines)} lines, and the chain is whole")
    if receipts:
        typer.echo(f"{check_receipts(lines, receipts)} receipts, all in the log as they are")


if __name__ == "__main__":
    main()
