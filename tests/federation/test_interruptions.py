"""kill -9, a full disk and rivals at every step: what readers see is the state before or after, and never less."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from federation.coordinator.anchors import publish_anchor
from federation.coordinator.assemble import assemble
from federation.coordinator.choose import choose
from federation.coordinator.found import add_owner, init, remove_owner
from federation.coordinator.refresh import refresh
from federation.coordinator.refresh import withdraw_by_coordinator as withdraw_other
from federation.coordinator.rotate import change_key, rotate
from federation.history.commit import Coordinator, Draft
from federation.history.events import Event, event
from federation.owner.submit import submit, withdraw
from federation.policy.policy import Policy
from federation.reader.status import Federation
from federation.reader.verify import verify_model
from federation.roles import trust
from federation.store.folder import FolderPlace
from flexo.errors import InputError
from tests.federation.conftest import MakeWorld, World

Step = Callable[[World], object]


def picture(found: Federation) -> list[tuple[str, int, int, bool]]:
    """What readers see of a federation."""
    return [
        (one.domain, one.serial, one.pending.version if one.pending else 0, bool(one.in_force)) for one in found.owners
    ]


def submit_math(world: World) -> object:
    return submit(world.home("math"), world.expert("math", 1), [world.key("math")])


def withdraw_math(world: World) -> object:
    return withdraw(world.home("math"), "math", [world.key("math")], "", False)


def refresh_after_submission(world: World) -> object:
    return refresh(world.coordinator)


def add_news(world: World) -> object:
    return add_owner(world.coordinator, "news", world.key("news").with_suffix(".pub"))


def remove_math(world: World) -> object:
    with suppress(InputError):  # gone already
        remove_owner(world.coordinator, "math", "", forget=True)
    return None


def rotate_snapshot(world: World) -> object:
    return rotate(world.coordinator, "snapshot")


def publish_again(world: World) -> object:
    return publish_anchor(world.coordinator, world.folder / "changed")


def withdraw_by_coordinator(world: World) -> object:
    return withdraw_other(world.coordinator, "math", "a complaint")


def change_key_of_math(world: World) -> object:
    return change_key(world.coordinator, "math", world.key("news").with_suffix(".pub"))


def assemble_model(world: World) -> object:
    chosen, _ = choose(world.coordinator)
    return assemble(world.coordinator, chosen, world.folder / "model", lambda _a: None, lambda _folder, _anchor: None)


STEPS: list[Step] = [
    submit_math, withdraw_math, refresh_after_submission, add_news, remove_math, rotate_snapshot, publish_again,
    withdraw_by_coordinator, change_key_of_math, assemble_model,
]  # fmt: skip


def interrupted(world: World, step: Step, count: int, how: str) -> bool:
    """Runs `step` in a process that is stopped at its `count`-th write to the disk; says whether it was."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        status = os.waitpid(pid, 0)[1]
        if os.WIFSIGNALED(status):
            assert os.WTERMSIG(status) == signal.SIGKILL
            return True
        assert os.WEXITSTATUS(status) in (0, 3)
        return os.WEXITSTATUS(status) == 3
    try:
        left = [count]

        def stopping(call: Callable[..., object]) -> Callable[..., object]:
            def stopped(*args: object, **more: object) -> object:
                left[0] -= 1
                if left[0] == 0:
                    if how == "kill":
                        os.kill(os.getpid(), signal.SIGKILL)
                    raise OSError(28, "No space left on device", str(args[0]))
                return call(*args, **more)

            return stopped

        for name in ("link", "replace", "rename", "write", "sendfile", "mkdir", "unlink"):
            setattr(os, name, stopping(getattr(os, name)))
        step(world)
    except InputError as error:
        print(error, file=sys.stderr, flush=True)
        os._exit(3 if how == "full" and "full" in str(error) else 4)
    except OSError as error:
        traceback.print_exc()
        os._exit(3 if how == "full" and error.errno == 28 else 5)
    except BaseException:
        traceback.print_exc()
        os._exit(6)
    os._exit(0 if left[0] > 0 else 3)  # where somebody took the error for another, it was met all the same


@pytest.mark.slow  # a process for each write of each step
@pytest.mark.parametrize("how", ["kill", "full"])
@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.__name__)
def test_every_write_can_be_the_last(world: World, step: Step, how: str) -> None:
    for domain in ("math", "news"):
        world.key(domain)
    world.expert("math", 1)
    if step is refresh_after_submission:
        world.submit("math", 1, refreshed=False)
    if step is publish_again:
        shutil.copytree(world.anchor, world.folder / "changed")
        (world.folder / "changed" / "generation_config.json").write_text("{}")
    before = picture(world.seen())
    states = [before]
    for count in range(1, 200):
        was = interrupted(world, step, count, how)
        found = world.seen()
        if picture(found) not in states:
            states.append(picture(found))
        for path in (world.store / "metadata").iterdir():
            assert path.name.startswith(".") or path.read_bytes().endswith(b"}"), f"{path} is half there"
        for owner in found.owners:
            for one in owner.submissions.values():
                assert (world.store / one.stored_as).stat().st_size == one.target.length
        if (world.folder / "model").exists():
            assert verify_model(found, world.folder / "model").faults == []
            shutil.rmtree(world.folder / "model")
        if not was:
            break
    else:
        pytest.fail("it never came to an end")
    assert count > 3, "it was interrupted"
    step(world) if step is not rotate_snapshot else None
    assert len(states) <= 3 or step is submit_math, "the state before or the one after"
    assert world.seen().events[0]["what"] == "founded", "the chain holds"
    refresh(world.coordinator)
    world.seen()


def test_two_coordinators_at_once_lose_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three processes with the same keys, each writing five events, and refreshing between them."""
    monkeypatch.setattr(trust, "PATIENCE", (0.1, 0.3, 0.9))
    children = []
    for n in range(3):
        world.home(f"coordinator{n}")
        if not (pid := os.fork()):
            try:
                member = Coordinator(world.home(f"coordinator{n}"), world.keys)
                for k in range(5):
                    one = event("note", text=f"{n}.{k}")

                    def change(draft: Draft, one: Event = one) -> None:
                        draft.events.append(one)

                    member.commit(change)
                    if k % 3 == 0:
                        refresh(member)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0] * 3
    notes = sorted(one["text"] for one in world.seen().events if one["what"] == "note")
    assert notes == sorted(f"{n}.{k}" for n in range(3) for k in range(5)), "each once"
    state = world.seen().state
    assert state.timestamp.version == max(int(path.name.split(".")[0]) for path in world.metadata("*.timestamp.json"))


def test_a_snapshot_that_was_not_stamped_is_taken_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_about: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Coordinator, "stamp", killed)
        add_owner(world.coordinator, "news", world.key("news").with_suffix(".pub"))
    assert [one.domain for one in world.seen().owners] == ["code", "math"], "readers follow the timestamp"
    add_owner(world.coordinator, "legal", world.key("legal").with_suffix(".pub"))
    assert [one.domain for one in world.seen().owners] == ["code", "legal", "math", "news"]


def test_a_timestamp_that_was_claimed_and_not_shown_is_no_obstacle(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_about: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(FolderPlace, "replace", killed)
        refresh(world.coordinator)
    refresh(world.coordinator)
    shown = world.seen().state.timestamp.version
    assert shown == len(world.metadata("*.timestamp.json"))


def test_rubbish_under_the_next_names_is_no_obstacle(world: World) -> None:
    state = world.seen().state
    for name in (
        f"{state.snapshot.version + 1}.snapshot", f"{state.timestamp.version + 1}.timestamp",
        f"{state.targets.version + 1}.targets",
    ):  # fmt: skip
        Path(world.store / "metadata" / f"{name}.json").write_text("{}")
    add_owner(world.coordinator, "news", world.key("news").with_suffix(".pub"))
    assert [one.domain for one in world.seen().owners] == ["code", "math", "news"]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "full"])
def test_founding_can_end_at_every_write(make_world: MakeWorld, how: str) -> None:
    """The same command goes on, with the keys that are there."""
    for count in range(1, 200):
        world = make_world(f"world{count}")
        was = interrupted(world, found_federation, count, how)
        with suppress(InputError):  # it had got to its end
            found_federation(world)
        assert world.seen().events[0]["what"] == "founded"
        if not was:
            break
    else:
        pytest.fail("it never came to an end")
    assert count > 10, "it was interrupted"


def found_federation(world: World) -> object:
    return init(world.url, world.keys, world.folder / "coordinator", Policy(), "test", [], 1)
