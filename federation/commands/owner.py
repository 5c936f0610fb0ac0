"""Subcommands for owners: join, fetch-anchor, submit, withdraw."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from federation.commands.options import HOME, HomeOption, OwnerKey, Reason, coordinator
from flexo.console import progress
from flexo.verbosity import note
from merge.commands.options import printable


def join(
    url: Annotated[str, typer.Argument(help="Where the store is read: a folder, https://..., sftp://..., s3://...")],
    root: Annotated[Path, typer.Option(help="The root.json that the coordinator handed over.")],
    write: Annotated[str | None, typer.Option(help="Where the store is written, if that is another address.")] = None,
    home: HomeOption = HOME,
) -> None:
    """Trust a federation by the root that was handed over; everything else follows from it."""
    from federation.coordinator.found import refuse_no_root
    from federation.roles.home import make_home, root_digest
    from federation.roles.trust import follow

    data = refuse_no_root(root)
    read_at, write_at = [place if "://" in place else str(Path(place).resolve()) for place in (url, write or url)]
    known = (home / "member.json").exists()
    made = make_home(home, read_at, write_at, data)
    try:
        state = follow(made)
    except BaseException:
        if not known:
            (home / "member.json").unlink()
            (home / "root.json").unlink()
        raise
    typer.echo(f"joined; sha256 of the root: {root_digest(data)}  compare it with the coordinator's")
    typer.echo(f"the store is dated until {state.timestamp.expires:%Y-%m-%d %H:%M} UTC")


def fetch_anchor(
    output: Annotated[Path, typer.Option("-o", "--output", help="The anchor folder to make.")] = Path("anchor"),
    following: Annotated[bool, typer.Option("--next", help="The next anchor, which the federation moves to.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Fetch the anchor, verified on the way; goes on where it was interrupted."""
    from federation.reader.fetch import anchor_entry, anchor_files
    from federation.reader.fetch import fetch_anchor as fetch
    from federation.roles.home import open_home
    from federation.roles.trust import follow

    member = open_home(home)
    state = follow(member)
    entry = anchor_entry(state, following)
    with progress("fetching", sum(one.length for one in anchor_files(state, entry).values())) as advance:
        fetch(member, state, output, entry, advance)
    typer.echo(f"wrote {output}/  anchor {entry['digest'][:12]}")


def submit(
    expert: Annotated[Path, typer.Argument(help="An expert file, as train_expert.py writes it.")],
    key: OwnerKey,
    anchor: Annotated[Path | None, typer.Option(help="The anchor folder, to run the policy's audit before.")] = None,
    readmit: Annotated[str, typer.Option(metavar="REASON", help="Submit again what you withdrew, saying why.")] = "",
    home: HomeOption = HOME,
) -> None:
    """Check an expert as the coordinator will, sign it, upload it. The same file again renews its signature."""
    from federation.owner.submit import submit as send
    from federation.roles.home import open_home

    with progress("checking and sending", 2 * expert.stat().st_size if expert.is_file() else None) as advance:
        done = send(open_home(home), expert, key, anchor, readmit, advance)
    for text in done.notes:
        note(printable(text))
    kept = "" if done.sent else " (the store has the file already)"
    typer.echo(f"{done.domain}: serial {done.serial} submitted{kept}; in force from the coordinator's next refresh on")


def withdraw(
    domain: Annotated[str, typer.Argument(help="Whose experts are not to be used any more.")],
    key: Annotated[list[Path] | None, typer.Option(help="The owner's private key.")] = None,
    keys: Annotated[Path | None, typer.Option(help="The coordinator's keys, to withdraw for the owner.")] = None,
    reason: Reason = "",
    forget: Annotated[bool, typer.Option("--forget", help="Ask that nothing but digests is kept of you.")] = False,
    notice: Annotated[Path | None, typer.Option(help="Where it goes. [default: DOMAIN.withdrawal.json]")] = None,
    home: HomeOption = HOME,
) -> None:
    """Take an owner's experts out: the owner's signature is enough. Writes a notice that names affected models."""
    from federation.coordinator.refresh import withdraw_by_coordinator
    from federation.history.notice import notice_of, submitted_digests
    from federation.owner.submit import withdraw as sign_out
    from federation.reader.status import read_federation
    from federation.roles.home import open_home
    from flexo.atomic_files import new_file

    if bool(key) == bool(keys):
        raise typer.BadParameter("sign with the owner's --key, or with the coordinator's --keys, one of the two.")
    if keys and forget:
        raise typer.BadParameter("the coordinator forgets an owner with: flexo-federation remove-owner DOMAIN --forget")
    path = notice or Path(f"{domain}.withdrawal.json")
    with new_file(path, replace=True) as partial:  # a place that cannot be written is found before anything is signed
        found = read_federation(open_home(home))
        before = [owner for owner in found.owners if owner.domain == domain]
        if keys:
            withdraw_by_coordinator(coordinator(home, keys), domain, reason)
        else:
            reason = sign_out(open_home(home), domain, key or [], reason, forget)["reason"]
        digests = submitted_digests(found.events, before[0])
        by = "coordinator" if keys else "owner"
        about = notice_of(found.events, domain, digests, by, reason)
        partial.write_text(json.dumps(about, indent=2) + "\n")
    said = "; the coordinator's next refresh forgets it" if forget else ""
    typer.echo(f"{domain}: withdrawn; models that hold it: {len(about['notice']['models'])}{said}")
    typer.echo(f"wrote {path}: whoever merges can take it as flexo-merge --revoked {path}")


COMMANDS = (join, fetch_anchor, submit, withdraw)
