"""A federation in a bucket: what holds in a folder holds there, too."""

from __future__ import annotations

import threading

import pytest

from federation.coordinator.refresh import refresh
from federation.history.commit import Coordinator, Draft
from federation.history.events import event
from federation.owner.submit import withdraw
from federation.reader.fetch import fetch_expert
from federation.reader.status import read_federation
from federation.roles import trust
from federation.roles.signed import name_of
from federation.roles.trust import TrustError
from tests.federation.conftest import MakeWorld


def test_a_life_in_a_bucket(make_world: MakeWorld, s3: str) -> None:
    world = make_world(store=f"{s3}/life")
    world.found()
    world.owner("math")
    world.submit("math")
    (one,) = world.seen().owners[0].in_force.values()
    assert fetch_expert(world.home("reader"), one).read_bytes() == world.expert("math").read_bytes()
    assert not world.submit("math").sent, "it is there already"
    withdraw(world.home("math"), "math", [world.key("math")], "", False)
    assert not world.seen().owners[0].in_force, "the owner's word is enough"
    world.seen("reader")
    state, place = world.seen().state, world.coordinator.place
    for name in (
        name_of("timestamp", None), name_of("timestamp", state.timestamp.version),
        name_of("snapshot", state.snapshot.version),
    ):  # fmt: skip
        place.remove(name)
    with pytest.raises(TrustError):
        world.seen("newcomer")
    refresh(world.coordinator)
    assert world.seen("newcomer").state.snapshot.version > state.snapshot.version, "the last write is there again"


def test_two_coordinators_at_once_in_a_bucket(make_world: MakeWorld, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust, "PATIENCE", (0.1, 0.3, 0.9))
    world = make_world(store=f"{s3}/two")
    world.found()
    failed: list[BaseException] = []

    def write(n: int) -> None:
        member = Coordinator(world.home(f"coordinator{n}"), world.keys)
        for k in range(4):

            def change(draft: Draft, text: str = f"{n}.{k}") -> None:
                draft.events.append(event("note", text=text))

            try:
                member.commit(change)
            except BaseException as error:
                failed.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(2)]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert not failed
    notes = sorted(one["text"] for one in read_federation(world.home("reader")).events if one["what"] == "note")
    assert notes == sorted(f"{n}.{k}" for n in range(2) for k in range(4)), "each once"
