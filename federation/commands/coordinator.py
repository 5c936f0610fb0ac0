"""Subcommands for the coordinator: from `init` to `assemble`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from federation.commands.options import HOME, HomeOption, KeysOption, Reason, coordinator
from flexo.console import progress
from flexo.verbosity import note
from merge.commands.options import printable


def init(
    store: Annotated[str, typer.Argument(help="A folder, sftp://user@host/path, s3://..., or what fsspec writes.")],
    keys: KeysOption,
    name: Annotated[str, typer.Option(help="The federation's name, for people.")] = "federation",
    policy: Annotated[Path | None, typer.Option(help="A policy in YAML. [default: any licence, no limits]")] = None,
    root_key: Annotated[
        list[Path] | None, typer.Option(help="The public key of another holder of the root; repeated.")
    ] = None,
    threshold: Annotated[int, typer.Option(min=1, help="Root keys that it takes to change keys.")] = 1,
    home: HomeOption = HOME,
) -> None:
    """Make a federation: its root, its roles, expiry and policy. Writes root.json, which everybody needs."""
    from federation.coordinator.found import init as found
    from federation.policy.policy import Policy, read_policy
    from federation.roles.home import root_digest

    rules = read_policy(policy) if policy else Policy()
    where = store if "://" in store else str(Path(store).resolve())
    made = found(where, keys, home, rules, name, root_key or [], threshold)
    typer.echo(f"wrote {home}/root.json: hand it to every member on a way on which nobody can swap it")
    typer.echo(f"sha256 of the root: {root_digest(made.root)}")
    typer.echo(f"keep {keys}/ to yourself; root.pem belongs on no machine that is on a network")


def publish_anchor(
    anchor: Annotated[Path | None, typer.Argument(help="An anchor folder; none with --promote.")] = None,
    keys: KeysOption = Path("keys"),
    following: Annotated[bool, typer.Option("--next", help="As the next anchor, beside the one in force.")] = False,
    promote: Annotated[bool, typer.Option("--promote", help="Make the next anchor the one in force.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Put an anchor into the store, each file verified by whoever fetches it; goes on where it was interrupted."""
    from federation.coordinator import anchors
    from federation.reader.fetch import anchor_entry
    from federation.roles.trust import follow
    from merge.formats.anchor_folder import README, SHARED, anchor_files
    from merge.model_files.kept_files import left_behind

    if promote == (anchor is not None):
        raise typer.BadParameter("give an anchor folder, or --promote, one of the two.")
    member = coordinator(home, keys)
    if anchor is None:
        typer.echo(f"the anchor {anchors.promote(member)[:12]} is in force")
        return
    size = sum(path.stat().st_size for path in anchor_files(anchor).values())
    with progress("uploading", size) as advance:
        changes = anchors.publish_anchor(member, anchor, following, advance)
    if left := sorted({*left_behind(anchor)} - {SHARED, README}):
        typer.echo(f"not uploaded, for it is no part of the anchor: {printable(', '.join(left))}")
    for text in changes.harmless:
        typer.echo(f"changed, the function is the same: {text}")
    what = "is the next one; owners: fetch-anchor --next" if following else "is in force"
    typer.echo(f"the anchor {anchor_entry(follow(member.home), following)['digest'][:12]} {what}")


def add_owner(
    domain: Annotated[str, typer.Argument(help="The domain that the owner's experts are for.")],
    key: Annotated[Path, typer.Option(help="The owner's public key, made with flexo-sign --generate.")],
    keys: KeysOption = Path("keys"),
    home: HomeOption = HOME,
) -> None:
    """Let one owner in: one role for the domain, this key, and no other."""
    from federation.coordinator.found import add_owner as add

    add(coordinator(home, keys), domain, key)
    typer.echo(f"{domain}: its owner may submit now")


def remove_owner(
    domain: Annotated[str, typer.Argument(help="Whose role goes.")],
    keys: KeysOption = Path("keys"),
    reason: Reason = "",
    forget: Annotated[bool, typer.Option("--forget", help="Delete what names the domain but digests.")] = False,
    home: HomeOption = HOME,
) -> None:
    """Take an owner's role away, with everything that is in force by it."""
    from federation.coordinator.found import remove_owner as remove

    remove(coordinator(home, keys), domain, reason, forget)
    typer.echo(f"{domain}: out of the federation" + (", and forgotten but for digests" if forget else ""))


def set_policy(
    policy: Annotated[Path, typer.Argument(help="The policy in YAML; its version is higher than the last one's.")],
    keys: KeysOption = Path("keys"),
    home: HomeOption = HOME,
) -> None:
    """Put a policy in force, for what is submitted and assembled from now on."""
    from federation.coordinator.found import set_policy as put
    from federation.policy.policy import read_policy

    rules = read_policy(policy)
    put(coordinator(home, keys), rules)
    typer.echo(f"policy: version {rules.version} is in force")


def rotate(
    role: Annotated[str, typer.Argument(help="targets, snapshot, timestamp, root, or the domain of an owner.")],
    key: Annotated[Path | None, typer.Option(help="The owner's new public key, where a domain is given.")] = None,
    add: Annotated[list[Path] | None, typer.Option(help="root: the public key of a new holder; repeated.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help="root: fingerprint of a holder who goes; repeated.")] = None,
    threshold: Annotated[int | None, typer.Option(min=1, help="root: keys that a change takes from now on.")] = None,
    keys: KeysOption = Path("keys"),
    home: HomeOption = HOME,
) -> None:
    """Change keys without changing owners, or add your signature to a root that waits for it."""
    from federation.coordinator.rotate import change_key
    from federation.coordinator.rotate import rotate as change
    from federation.roles.keys import TOP_ROLES

    member = coordinator(home, keys)
    if role in TOP_ROLES:
        if key:
            raise typer.BadParameter(f"--key is for owners; {role} gets a new key by itself.")
        typer.echo(change(member, role, add or [], drop or [], threshold))
        return
    if not key:
        raise typer.BadParameter(f"{role} is an owner's domain: give the new public key with --key.")
    if change_key(member, role, key):
        typer.echo(f"{role}: signs with the new key from now on")
    else:
        typer.echo(
            f"{role}: the new key is in force, and what was submitted is not, for only the old key signed it. "
            "Its owner: flexo-federation submit EXPERT --key NEW.pem"
        )


def refresh(keys: KeysOption = Path("keys"), home: HomeOption = HOME) -> None:
    """Take up what owners submitted or withdrew, and date the store anew. For cron, within `days.timestamp`."""
    from federation.coordinator.refresh import refresh as take_up

    for line in take_up(coordinator(home, keys)):
        typer.echo(printable(line))
    typer.echo("the store is dated anew")


def assemble(
    output: Annotated[Path, typer.Option("-o", "--output", help="The folder to make; it must not hold anything yet.")],
    keys: KeysOption = Path("keys"),
    following: Annotated[bool, typer.Option("--next", help="Merge what was submitted for the next anchor.")] = False,
    check: Annotated[
        bool | None,
        typer.Option("--check/--no-check", help="Run the model before it appears. [default: up to 2 GB]"),
    ] = None,
    home: HomeOption = HOME,
) -> None:
    """Merge what is in force, under the policy; say what changed since the last model, and why."""
    from federation.coordinator.assemble import assemble as merge
    from federation.coordinator.choose import choose
    from merge.planning.check_process import SMALL, can_check, check_by_running

    chosen, report = choose(coordinator(home, keys), following)
    for line in report:
        note(printable(line))
    said: list[str] = []

    def accept(folder: Path, anchor: Path) -> None:
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        if check or (check is None and can_check() and size <= SMALL):
            said.append(check_by_running(folder, anchor))

    total = 2 * sum(one.target.length for _, one in chosen.experts)
    with progress("fetching and merging", total) as advance:
        lines = merge(coordinator(home, keys), chosen, output, advance, accept)
    typer.echo("\n".join([*map(printable, lines), *said]))
    typer.echo(f"wrote {output}/  anyone can check it: flexo-federation verify {output}")


COMMANDS = (init, publish_anchor, add_owner, remove_owner, set_policy, rotate, refresh, assemble)
