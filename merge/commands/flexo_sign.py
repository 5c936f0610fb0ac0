"""`flexo-sign`: an owner vouches for an expert file.

flexo-sign --generate --key alice.pem
flexo-sign experts/math.pt --key alice.pem
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from flexo.console import new_app, progress, run
from flexo.verbosity import warn

app = new_app("Sign expert files, or make a key to sign with.")


def main() -> None:
    run(app)


@app.command(
    epilog="Examples:\n\n`flexo-sign --generate --key alice.pem`\n\n`flexo-sign experts/math.pt --key alice.pem`\n\n"
    "`flexo-merge experts/*.pt -o model/ --require-signatures --trusted-keys keys/`"
)
def sign_command(
    key: Annotated[Path, typer.Option(help="An Ed25519 private key in PEM, as openssl and --generate make it.")],
    experts: Annotated[list[Path] | None, typer.Argument(help="Expert files; each gets FILE.sig beside it.")] = None,
    make_key: Annotated[bool, typer.Option("--generate", help="Make the key, and its public key beside it.")] = False,
) -> None:
    """Write FILE.sig beside each expert file, which says that the owner of the key vouches for it."""
    if bool(experts) == make_key:
        raise typer.BadParameter("give expert files to sign, or --generate to make a key; one of the two.")
    from merge.formats import signing

    if make_key:
        public, fingerprint = signing.make_key(key)
        typer.echo(f"wrote {key} (keep it to yourself) and {public} (give it to those who merge)")
        typer.echo(f"fingerprint {fingerprint}")
        return
    if key.is_file() and key.stat().st_mode & 0o077:
        warn(f"{key}: others on this machine may read this private key. chmod 600 {key}")
    signed = signing.sign(experts or [], key, passphrase=_ask if sys.stdin.isatty() else None, progress=progress)
    for one in signed:
        typer.echo(f"wrote {one.path}  {one.domain}, header {one.header[:16]}")
    typer.echo(f"signed by {signed[0].key}")


def _ask() -> str:
    answer: str = typer.prompt("passphrase", hide_input=True, err=True)
    return answer
