"""`flexo-serve`: a merged model over HTTP; each request uses the experts that its key allows.

flexo-serve keys add alice --experts public,math
flexo-serve model/ --keys keys.yaml
flexo-serve report serve-log/ -o statement.html
"""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from flexo.atomic_files import new_file
from flexo.console import new_app, run
from flexo.errors import InputError

OURS = ("-h", "--help", "--install-completion", "--show-completion")
KeysFile = Annotated[Path, typer.Option("--keys", help="The file of API keys.")]
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
keys = new_app("Make, list and revoke API keys, also while a server runs.")
app.add_typer(keys, name="keys")


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
    _needs_extra()
    from inference.load import quiet
    from serving.gateway.server import run as serve
    from serving.gateway.settings import read_settings

    quiet()
    if not config:
        missing = [name for name, value in (("MODEL", model), ("--keys", keys)) if value is None]
        if missing:
            raise InputError(f"{' and '.join(missing)}: not given. Type: flexo-serve model/ --keys keys.yaml")
    serve(read_settings(config, model=model, keys=keys, host=host, port=port, log=log))


@keys.command("add", epilog="Examples:\n\n`flexo-serve keys add alice --experts public,math --expires 2027-01-01`")
def add(
    name: Annotated[str, typer.Argument(help="Whose key it is.")],
    experts: Annotated[str | None, typer.Option(help="What it may use, separated by commas.")] = None,
    role: Annotated[str | None, typer.Option(help="Or a role of the file, which stands for a list of experts.")] = None,
    file: KeysFile = Path("keys.yaml"),
    requests_per_minute: Annotated[int | None, typer.Option(min=1)] = None,
    tokens_per_day: Annotated[int | None, typer.Option(min=1, help="Prompts and answers together.")] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="Requests at the same time.")] = None,
    expires: Annotated[str | None, typer.Option(help="The first day on which it is not taken any more.")] = None,
) -> None:
    """Make a key, and print it this once: the file keeps its hash."""
    _needs_extra()
    from serving.access.keys import add_key

    try:
        last = date.fromisoformat(expires) if expires else None
    except ValueError:
        raise InputError(f"--expires {expires}: expected a day such as 2027-01-01.") from None
    chosen = experts.split(",") if experts is not None else None
    limits = {"requests_per_minute": requests_per_minute, "tokens_per_day": tokens_per_day, "at_once": at_once}
    typer.echo(add_key(file, name, experts=chosen, role=role, expires=last, **limits))


@keys.command("list", epilog="Examples:\n\n`flexo-serve keys list`")
def list_command(file: KeysFile = Path("keys.yaml")) -> None:
    """Show whose keys there are, and what they allow."""
    _needs_extra()
    from serving.access.keys import KeyStore

    found = KeyStore(file).read()
    for key in found.keys:
        until = "expired" if key.expired() else f"until {key.expires}" if key.expires else "no end"
        limits = f"{key.requests_per_minute}/min, {key.tokens_per_day} tokens/day, {key.at_once} at once"
        typer.echo(f"{key.name:16} {','.join(found.experts(key)):24} {limits}; {until}")


@keys.command("revoke", epilog="Examples:\n\n`flexo-serve keys revoke alice`")
def revoke(name: Annotated[str, typer.Argument(help="Whose key it is.")], file: KeysFile = Path("keys.yaml")) -> None:
    """Take a key away, from a server that runs, too."""
    _needs_extra()
    from serving.access.keys import revoke_key

    revoke_key(file, name)
    typer.echo(f"revoked {name}")


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


def _needs_extra() -> None:
    """Raises `InputError` where the extra is not installed."""
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
        import yaml  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"flexo-serve needs the package {error.name}. Install it: pip install -c constraints.txt 'flexo[serve]'"
        ) from None


if __name__ == "__main__":
    main()
