"""Merging what is in force, and saying what changed since the last model and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from federation.coordinator.choose import Chosen
from federation.coordinator.merging import merge
from federation.history.commit import Coordinator
from federation.history.events import Event, about, event, models
from federation.policy.admission import audit
from federation.reader.fetch import fetch_expert, kept_anchor
from federation.reader.status import domain_names, read_federation
from federation.store.place import Advance
from flexo.atomic_files import refuse_occupied, sha256_file
from flexo.errors import InputError
from merge.formats.expert_file import open_expert
from merge.formats.manifest import MANIFEST, read_manifest
from merge.model_files.kept_files import TOKENIZER_FILES
from merge.planning.revocation import model_digest


def assemble(
    coordinator: Coordinator, chosen: Chosen, output: Path, advance: Advance, accept: Callable[[Path, Path], None]
) -> list[str]:
    """Merges what was chosen into `output` and notes it in the history; returns what changed since the last model.

    `accept` gets the finished folder and the anchor before the folder appears, and may refuse it by raising.
    """
    refuse_occupied(output)
    home = coordinator.home
    anchor = kept_anchor(home, chosen.found.state, chosen.anchor, advance)
    files = [fetch_expert(home, one, advance) for _, one in chosen.experts]
    for path, (owner, one) in zip(files, chosen.experts, strict=True):
        if open_expert(path).header != one.header:
            raise InputError(
                f"{owner.domain}: its file has another header than its owner signed. Leave it out: withdraw it, or ask "
                "the owner to submit it again."
            )
    if why := audit(files, anchor, chosen.policy):
        raise InputError(f"the policy's audit refuses {'; '.join(why)}. Withdraw it, or change the policy.")

    def finish(folder: Path) -> None:
        accept(folder, anchor)
        left = read_federation(home).left
        if gone := [owner.domain for owner, one in chosen.experts if one.digest in left]:
            raise InputError(f"{', '.join(gone)}: withdrawn while this model was merged. Assemble it again.")
        record(coordinator, chosen, folder, output.resolve().name)

    return changes(chosen, merge(chosen, files, anchor, output, advance, finish))


def changes(chosen: Chosen, lines: list[str]) -> list[str]:
    """What differs from the last model of the same anchor, and why, from the history."""
    before = [one for one in models(chosen.found.events) if one["anchor"] == chosen.anchor["digest"]]
    if not before:
        return [*lines, f"the first model of this anchor: {', '.join(owner.domain for owner, _ in chosen.experts)}"]
    last = before[-1]
    then = {one["role"]: one for one in last["experts"]}
    now = {owner.role: (owner, one) for owner, one in chosen.experts}
    names = domain_names(chosen.found)
    for role, (owner, one) in now.items():
        if role not in then:
            lines.append(f"joined: {owner.domain}, serial {owner.serial}")
        elif then[role]["digest"] != one.digest:
            lines.append(f"replaced: {owner.domain}, serial {then[role]['serial']} by serial {owner.serial}")
    for role in then.keys() - now.keys():
        domain = names.get(role, "somebody who is forgotten")
        out = ("withdrawn", "owner removed", "refused")
        why = [one for one in about(chosen.found.events, domain) if one["what"] in out]
        lines.append(f"left: {domain}{_because(why[-1]) if why else ', not in force any more'}")
    if chosen.policy.version != last["policy"]:
        lines.append(f"policy: version {last['policy']} before, {chosen.policy.version} now")
    return lines or [f"nothing changed since {last['name']}"]


def record(coordinator: Coordinator, chosen: Chosen, folder: Path, name: str) -> None:
    """Notes a model in the signed history, so that owners see where they are, and `verify` knows it.

    This comes before the model appears: whoever is killed in between has noted one that nobody has, and no model is
    there that a notice of withdrawal would not name.
    """
    manifest = read_manifest(folder)
    sketches = {one["domain"]: one.get("sketch", "") for one in manifest["experts"]}
    small = ("config.json", *TOKENIZER_FILES)
    one = event(
        "assembled",
        name=name,
        model=model_digest(manifest),
        manifest=sha256_file(folder / MANIFEST),
        files={one: sha256_file(folder / one) for one in small if (folder / one).exists()},
        anchor=chosen.anchor["digest"],
        policy=chosen.policy.version,
        experts=[
            {"role": owner.role, "serial": owner.serial, "digest": one.digest, "sketch": sketches[owner.domain]}
            for owner, one in chosen.experts
        ],
    )
    coordinator.commit(lambda draft: draft.events.append(one))


def _because(one: Event) -> str:
    reason = one.get("reason") or one.get("why")
    return f", {one['what']}" + (f" by {one['by']}" if "by" in one else "") + (f": {reason}" if reason else "")
