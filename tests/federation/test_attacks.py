"""What a hostile store, a hostile owner or a thief of a key may try; each is refused in its own words."""

from __future__ import annotations

import copy
import os
import resource
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Snapshot, TargetFile, Targets, Timestamp

from federation.coordinator.refresh import refresh
from federation.coordinator.rotate import rotate
from federation.history.commit import Coordinator
from federation.owner.submit import submit
from federation.reader.fetch import anchor_entry, fetch_anchor, fetch_expert
from federation.reader.status import read_federation, status_of
from federation.roles.keys import signer, signers
from federation.roles.owners import role_of
from federation.roles.signed import described, name_of, set_ours, sign
from federation.roles.trust import TrustError, follow
from federation.store import place as place_module
from federation.store.place import StoreError
from flexo.errors import InputError
from tests.federation.conftest import MakeWorld, World
from tests.federation.web import hostile


def test_rollback_to_an_older_expert(world: World) -> None:
    """The whole store as it was yesterday, every signature in order."""
    shutil.copytree(world.store, world.folder / "yesterday")
    world.submit("math", seed=1)
    assert world.seen().owners[1].serial == 2
    shutil.rmtree(world.store)
    (world.folder / "yesterday").rename(world.store)
    with pytest.raises(TrustError, match=r"older than what was seen before .*rolled back, or has forgotten"):
        world.seen()


def test_rollback_of_one_expert(world: World) -> None:
    """The old expert's metadata under the name of the new one's."""
    role = role_of(world.seen().state, "math")
    world.submit("math", seed=1)
    shutil.copy(world.store / name_of(role, 1), world.store / name_of(role, 2))
    code, math = world.seen().owners
    assert not math.in_force and code.in_force, "and nobody else is out for it"
    assert "is not the file that was signed" in math.problem and "two versions are mixed" in math.problem


def test_freeze(world: World) -> None:
    """A store that shows nothing newer, until what it shows has expired."""
    state = world.seen().state
    data = (world.store / name_of("snapshot", state.snapshot.version)).read_bytes()
    world.coordinator.stamp(state.root, state.snapshot, data, state.timestamp.version, -1)
    with pytest.raises(TrustError, match=r"has expired \(timestamp.json is expired\). Either the store is frozen"):
        world.seen("newcomer")
    with pytest.raises(TrustError, match=r"has expired"):
        world.submit("math", seed=1, refreshed=False)
    refresh(world.coordinator)
    assert world.seen("newcomer").owners[1].serial == 1


def test_mix_and_match_of_two_versions(world: World) -> None:
    """An old list of owners in the place of the new one, both signed."""
    files = world.metadata("*.targets.json")
    shutil.copy(files[-2], files[-1])
    with pytest.raises(TrustError, match=r"files of two versions are mixed there .*Each is signed, but not together"):
        world.seen()


def forged(world: World, role: str, targets: Targets, key: Path) -> None:
    """Puts an owner's metadata into the store as its next version, signed with `key`."""
    targets.version = 2
    (world.store / name_of(role, 2)).write_bytes(sign(targets, [signer(key)], 30))


def test_a_foreign_key_for_a_domain(world: World) -> None:
    with pytest.raises(InputError, match=r"may not sign for 'math'; that takes the key [0-9a-f]{16}. A key signs"):
        submit(world.home("mallory"), world.expert("math", 9), [world.key("mallory")])
    forged(world, role_of(world.seen().state, "math"), Targets(), world.key("mallory"))
    assert refresh(world.coordinator) == []
    owner = world.seen().owners[1]
    assert (owner.serial, owner.pending, list(owner.in_force)) == (1, None, list(owner.submissions))
    assert world.submit("math", seed=1).serial == 2, "and it is not in the owner's way"
    assert world.seen().owners[1].serial == 2


def test_an_owners_key_used_for_another_domain(world: World) -> None:
    """First the other's role, which needs the other's key; then the other's folder, which needs the other's role."""
    state = world.seen().state
    code, math = role_of(state, "code"), role_of(state, "math")
    signed = Metadata.from_bytes((world.store / name_of(code, 1)).read_bytes()).signed
    forged(world, code, Targets(targets=signed.targets), world.key("math"))
    assert refresh(world.coordinator) == []
    forged(world, math, Targets(targets=signed.targets), world.key("math"))
    (line,) = refresh(world.coordinator)
    assert "math: serial 2 refused: " in line
    assert f"a key signs for its own domain, and this file is not in experts/{math}/" in line
    assert [owner.serial for owner in world.seen().owners] == [1, 1]


def test_an_owner_signs_an_expert_of_another_domain(world: World) -> None:
    state = world.seen().state
    code, math = role_of(state, "code"), role_of(state, "math")
    signed = Metadata.from_bytes((world.store / name_of(code, 1)).read_bytes()).signed
    targets = {}
    for path, target in signed.targets.items():
        target.path = path.replace(code, math)
        targets[target.path] = target
    forged(world, math, Targets(targets=targets), world.key("math"))
    (line,) = refresh(world.coordinator)
    assert "an expert for 'code', signed with the key of 'math'" in line


def test_a_stolen_timestamp_key(world: World) -> None:
    """It can neither sign a snapshot, nor show an old one to who has seen a newer, nor anything after a rotation."""
    thief = world.folder / "thief"
    thief.mkdir()
    shutil.copy(world.keys / "timestamp.pem", thief / "timestamp.pem")
    old = world.seen("reader").state
    world.submit("math", seed=1)
    new = world.seen("reader").state
    stamp = world.store / "metadata" / "timestamp.json"
    good = stamp.read_bytes()

    def show(snapshot: Snapshot, data: bytes) -> None:
        one = Timestamp(new.timestamp.version + 5, snapshot_meta=described(snapshot, data))
        stamp.write_bytes(sign(one, signers(thief, "timestamp"), 30))

    show(old.snapshot, (world.store / name_of("snapshot", old.snapshot.version)).read_bytes())
    with pytest.raises(TrustError, match=r"older than what was seen before"):
        world.seen("reader")
    fake = Snapshot(new.snapshot.version + 1, meta=new.snapshot.meta)
    data = sign(fake, signers(thief, "timestamp"), 30)
    (world.store / name_of("snapshot", fake.version)).write_bytes(data)
    show(fake, data)
    with pytest.raises(TrustError, match=r"not signed by the keys of this federation \(snapshot was signed by 0"):
        world.seen("reader2")
    stamp.write_bytes(good)
    rotate(world.coordinator, "timestamp")
    world.seen("reader3")
    show(new.snapshot, (world.store / name_of("snapshot", new.snapshot.version)).read_bytes())
    with pytest.raises(TrustError, match=r"signed with a key that was taken away"):
        world.seen("reader3")


def test_a_root_of_another_federation(world: World, make_world: MakeWorld) -> None:
    other = make_world("other")
    other.found()
    world.folder.joinpath("coordinator", "root.json").write_bytes(other.root)
    with pytest.raises(TrustError, match=r"root.json \(sha256 [0-9a-f]{16}\) is the root of another federation"):
        world.seen()


def test_a_home_keeps_its_root(world: World, make_world: MakeWorld) -> None:
    world.seen()
    other = make_world("other")
    other.found()
    (world.folder / "coordinator" / "root.json").write_bytes(other.root)
    shutil.rmtree(world.folder / "coordinator" / "metadata")
    with pytest.raises(InputError, match=r"belongs to a federation with another root"):
        world.home("outsider")
        world.home("math")


@pytest.mark.parametrize("name", ["timestamp.json", "snapshot.json", "targets.json"])
def test_endless_metadata(world: World, name: str) -> None:
    """A gigabyte and more, in little memory and time."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with hostile(world.store, endless=name) as url, pytest.raises(TrustError, match=r"larger than it may be"):
        follow(world.home("reader", url))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kB"


def test_metadata_of_a_gigabyte(world: World) -> None:
    with (world.store / "metadata" / "timestamp.json").open("r+b") as file:
        file.truncate(1 << 30)
    with pytest.raises(TrustError, match=r"metadata larger than it may be"):
        world.seen()


@pytest.mark.parametrize("how", ["a gigabyte", "a pipe"])
def test_what_lies_under_an_owners_next_name_hides_nobody(world: World, how: str) -> None:
    """Whoever may write to the store could else shut it for everybody."""
    path = world.store / name_of(role_of(world.seen().state, "math"), 2)
    if how == "a pipe":
        os.mkfifo(path)
    else:
        path.touch()
        os.truncate(path, 1 << 30)
    assert [owner.domain for owner in world.seen().owners if owner.in_force] == ["code", "math"]
    assert world.submit("math", seed=1).serial == 2, "and it is not in the owner's way"
    assert world.seen().owners[1].serial == 2


def test_endless_and_slow_experts(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    (one,) = world.seen().owners[1].submissions.values()
    most = rf"more than the {one.target.length} bytes that it may have"
    with hostile(world.store, endless=".pt") as url, pytest.raises(StoreError, match=most):
        fetch_expert(world.home("reader", url), one)
    monkeypatch.setattr(place_module, "WINDOW", 0.3)
    with hostile(world.store, slow=".pt") as url, pytest.raises(StoreError, match=r"The store holds the file back"):
        fetch_expert(world.home("reader", url), one)
    with hostile(world.store, slow="timestamp.json") as url, pytest.raises(StoreError, match=r"holds the file back"):
        follow(world.home("reader", url))
    assert not list((world.folder / "reader").rglob("*.pt"))


def test_a_target_exchanged_on_the_store(world: World) -> None:
    found = world.seen()
    (one,), (other,) = (owner.submissions.values() for owner in found.owners)
    shutil.copy(world.store / other.stored_as, world.store / one.stored_as)
    with pytest.raises(StoreError, match=r"exchanged or damaged on the store; its owner can send it again"):
        fetch_expert(found.home, one)
    assert world.submit("code").sent, "as the message says"
    fetch_expert(found.home, one)
    for path in (world.store / "targets" / "anchor").rglob("*model.safetensors"):
        path.write_bytes(path.read_bytes()[::-1])
    with pytest.raises(StoreError, match=r"exchanged or damaged"):
        fetch_anchor(found.home, found.state, world.folder / "anchor", anchor_entry(found.state))
    assert not (world.folder / "anchor").exists()


def test_a_store_that_forgets_the_last_write(world: World) -> None:
    """The owner is told by their own serial number; the coordinator writes again what this machine has seen."""
    world.submit("math", seed=1, refreshed=False)
    (world.store / name_of(role_of(world.seen().state, "math"), 2)).unlink()
    (warning,) = status_of(read_federation(world.home("math")))["warnings"]
    assert "serial 1 of 'math', and serial 2 was written from here: the store has forgotten the last write" in warning
    done = world.submit("math", seed=1)
    assert done.serial == 3
    assert len(done.notes) == 1, "said once more"
    assert status_of(read_federation(world.home("math")))["warnings"] == []
    stamp = world.store / "metadata" / "timestamp.json"
    last = world.metadata("*.timestamp.json")[-1]
    shutil.copy(world.metadata("*.timestamp.json")[-2], stamp)
    last.unlink()
    world.metadata("*.snapshot.json")[-1].unlink()
    with pytest.raises(TrustError, match=r"flexo-federation refresh writes it anew"):
        read_federation(world.coordinator.home)
    refresh(world.coordinator)
    assert world.seen().owners[1].serial == 3


def test_a_store_that_was_vandalised_is_written_anew(world: World) -> None:
    """Whoever may write to the store can break it for everybody; the coordinator's refresh mends what it has seen."""
    rotate(world.coordinator, "timestamp")
    read_federation(world.coordinator.home)
    for name in ("timestamp.json", "2.root.json", world.metadata("*.snapshot.json")[-1].name):
        (world.store / "metadata" / name).write_text("{}")
    with pytest.raises(TrustError, match=r"not the metadata of a federation"):
        world.seen("newcomer")
    said = refresh(world.coordinator)
    assert len(said) == 3 and all("the store had lost" in line for line in said)
    assert [owner.domain for owner in world.seen("newcomer").owners if owner.in_force] == ["code", "math"]


def test_keys_that_were_rotated_away_sign_nothing(world: World) -> None:
    """Left on the machine with the cron line, they would hide the store from everybody."""
    shutil.copytree(world.keys, world.folder / "old")
    for role in ("timestamp", "snapshot"):
        rotate(world.coordinator, role)
        before = world.seen().state
        with pytest.raises(InputError, match=rf"old: its key for '{role}' .* is not the federation's, or not any more"):
            refresh(Coordinator(world.coordinator.home, world.folder / "old"))
        assert world.seen().state == before
        shutil.copytree(world.keys, world.folder / "old", dirs_exist_ok=True)


def test_a_store_that_withholds_history(world: World) -> None:
    (path,) = [path for path in (world.store / "events").iterdir() if b"founded" in path.read_bytes()]
    path.unlink()
    with pytest.raises(StoreError, match=r"of the history is withheld, and nobody forgot it"):
        world.seen()


def test_a_store_that_alters_history(world: World) -> None:
    (path,) = [path for path in (world.store / "events").iterdir() if b"founded" in path.read_bytes()]
    path.write_bytes(path.read_bytes().replace(b"test", b"best"))
    with pytest.raises(StoreError, match=r"is not the file that was signed"):
        world.seen()


def test_two_submissions_at_once_with_one_key(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from federation.store.folder import FolderPlace

    create: Callable[[FolderPlace, str, bytes], bool] = FolderPlace.create

    def slower(place: FolderPlace, name: str, data: bytes) -> bool:
        monkeypatch.setattr(FolderPlace, "create", create)
        submit(world.home("second"), world.expert("math", 2), [world.key("math")])
        return create(place, name, data)

    monkeypatch.setattr(FolderPlace, "create", slower)
    with pytest.raises(StoreError, match=r"serial 2 of 'math' was written meanwhile, with the same key"):
        world.submit("math", seed=1)
    refresh(world.coordinator)
    (one,) = world.seen().owners[1].in_force.values()
    assert one.target.length == world.expert("math", 2).stat().st_size


def test_what_is_no_metadata(world: World) -> None:
    (world.store / "metadata" / "timestamp.json").write_text("<html>")
    with pytest.raises(TrustError, match=r"not the metadata of a federation"):
        world.seen()
    shutil.rmtree(world.store)
    with pytest.raises(TrustError, match=r"It is part of every federation: is the address right"):
        world.seen()


def test_metadata_that_lies_about_its_kind(world: World) -> None:
    """Signed by the right keys, for another purpose."""
    state = world.seen().state
    made = Targets(state.timestamp.version + 1)
    set_ours(made, {})
    (world.store / "metadata" / "timestamp.json").write_bytes(sign(made, signers(world.keys, "timestamp"), 30))
    with pytest.raises(TrustError, match=r"not the metadata of a federation"):
        world.seen()


@pytest.mark.parametrize(
    "change",
    [
        lambda one: setattr(one, "path", one.path.rpartition("/")[0] + "/" + "x" * 300 + ".pt"),
        lambda one: setattr(one, "path", one.path.rpartition("/")[0] + "/x\0.pt"),
        lambda one: one.hashes.update(sha256="../" * 9 + "x" * 300),
    ],
    ids=["long", "zero", "hash"],
)
def test_a_name_that_no_store_can_have_stops_nobody_else(world: World, change: Callable[[TargetFile], None]) -> None:
    """One owner's signed nonsense must not end the coordinator's refresh for everybody."""
    found = world.seen()
    (owner,) = [one for one in found.owners if one.domain == "math"]
    assert owner.signed
    made = copy.deepcopy(owner.signed)
    (target,) = made.targets.values()
    change(target)
    made.targets = {target.path: target}
    forged(world, owner.role, made, world.key("math"))
    world.submit("code", seed=1, refreshed=False)
    said = refresh(world.coordinator)
    assert any(f"math: serial 2 refused: math, serial 2: {target.path[:20]}" in line for line in said), said
    assert any("code: serial 2 in force" in line for line in said), said
