"""The anchors of a federation: published file by file as verified targets, and how one makes way for the next.

A federation has one anchor, or two while it moves: the one in force, and the next. Owners train again against the next
and submit to both; `promote` makes the next the one in force, and what was trained against the old one is out.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

from tuf.api.metadata import TargetFile

from federation.history.commit import Coordinator, Draft
from federation.history.events import event
from federation.reader.fetch import kept_anchor
from federation.roles.signed import ours, stored_as
from federation.roles.trust import latest
from federation.store.place import Advance, Place
from federation.store.transfer import holds, send
from flexo.atomic_files import sha256_file
from flexo.errors import InputError
from merge.formats.anchor_changes import Changes, compare_anchors
from merge.formats.anchor_folder import anchor_files, open_anchor
from merge.model_files.weight_files import weight_files


def publish_anchor(
    coordinator: Coordinator, folder: Path, as_next: bool = False, advance: Advance = lambda _amount: None
) -> Changes:
    """Uploads an anchor and puts it in force; returns what differs from the one before.

    Where the function is the same, only files that differ are uploaded, and experts stay. Where it is not, the anchor
    is refused unless it is published `as_next`.

    Raises:
        InputError: another function than the anchor in force.
    """
    anchor, state = open_anchor(folder), latest(coordinator.home)
    anchors = ours(state.targets)["anchors"]
    changes, kept = Changes(), None
    if anchors and not as_next:
        kept = kept_anchor(coordinator.home, state, anchors[0])
        changes = compare_anchors(open_anchor(kept), anchor)
        if not changes.same_function:
            raise InputError(
                f"{folder}: not the function of the anchor in force; different are {', '.join(changes.grave)}. Experts "
                "would no longer fit. To move the federation to it: publish-anchor --next, and owners train again."
            )
    files = anchor_files(folder)
    if kept:  # what means the same stays as it is: experts name the sha256 of tokenizer.json
        for path in weight_files(folder):
            del files[path.name]
        files |= {path.name: path for path in (kept / "tokenizer.json", *weight_files(kept))}
    entry = {"digest": anchor.digest, "where": f"anchor/{anchor.digest[:12]}"}
    uploaded = _uploaded(coordinator.place, files, entry["where"], advance)

    def change(draft: Draft) -> None:
        before = draft.about["anchors"]
        if as_next and (not before or before[0]["digest"] == anchor.digest):
            raise InputError(f"{folder}: the next anchor follows another one. Publish it without --next.")
        if not as_next and before and before[0]["digest"] != anchor.digest:
            raise InputError(f"{folder}: another anchor was published meanwhile. Look with status.")
        anchors = [before[0], entry] if as_next else [entry, *before[1:]]
        others = tuple(f"{one['where']}/" for one in anchors if one["where"] != entry["where"])
        targets = uploaded | {path: one for path, one in draft.targets.targets.items() if path.startswith(others)}
        if targets == draft.targets.targets and anchors == before:
            return
        draft.targets.targets = targets
        draft.set(anchors=anchors)
        what = "next anchor" if as_next else "anchor"
        draft.events.append(event(what, digest=anchor.digest, harmless=changes.harmless))

    coordinator.commit(change)
    return changes


def promote(coordinator: Coordinator) -> str:
    """Makes the next anchor the one in force and drops the old one; returns its digest."""

    def change(draft: Draft) -> None:
        anchors = draft.about["anchors"]
        if len(anchors) != 2:
            raise InputError("there is no next anchor. Publish one: flexo-federation publish-anchor NEW/ --next")
        old, new = anchors
        for path in [path for path in draft.targets.targets if path.startswith(f"{old['where']}/")]:
            del draft.targets.targets[path]
        draft.set(anchors=[new])
        draft.events.append(event("anchor promoted", digest=new["digest"], instead_of=old["digest"]))

    (anchor,) = coordinator.commit(change).about["anchors"]
    return str(anchor["digest"])


def _uploaded(place: Place, files: dict[str, Path], where: str, advance: Advance) -> dict[str, TargetFile]:
    """Uploads what the store has not yet; returns what to sign of each file."""
    targets = {}
    for name, path in files.items():
        sha256 = sha256_file(path)
        target = TargetFile(path.stat().st_size, {"sha256": sha256}, f"{where}/{name}")
        if holds(place, stored_as(target), target.length, sha256):
            advance(target.length)
        else:
            send(place, f"anchor/{sha256}", path, partial(_stored_as, target), advance=advance)
        targets[target.path] = target
    return targets


def _stored_as(target: TargetFile, _sha256: str) -> str:
    return stored_as(target)
