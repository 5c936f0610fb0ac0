"""`flexo-federation` from the command line: what each subcommand says, and what it refuses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from federation.commands.flexo_federation import app
from federation.roles.home import open_home
from tests.federation.conftest import World
from tests.federation.web import served


class Shell:
    """Runs subcommands as one member, in the member's folder."""

    def __init__(self, world: World, patch: pytest.MonkeyPatch) -> None:
        self.world, self.patch = world, patch

    def __call__(self, who: str, *words: object, fails: bool = False) -> str:
        folder = self.world.folder / "members" / who
        folder.mkdir(parents=True, exist_ok=True)
        with self.patch.context() as patch:
            patch.chdir(folder)
            done = CliRunner().invoke(app, [str(word) for word in words])
        assert bool(done.exit_code) == fails, (done.output, done.exception)
        return str(done.exception) + done.output if fails else done.output


@pytest.fixture
def shell(world: World, monkeypatch: pytest.MonkeyPatch) -> Shell:
    monkeypatch.delenv("FLEXO_FEDERATION", raising=False)
    return Shell(world, monkeypatch)


def parsed(text: str) -> Any:
    return json.loads(text)


def test_a_life_by_commands(shell: Shell, world: World) -> None:
    store, keys = world.folder / "second", world.folder / "second-keys"
    said = shell("boss", "init", store, "--keys", keys, "--name", "second")
    assert "sha256 of the root: " in said
    assert sorted(path.name for path in keys.glob("*.pem")) == [
        "root.pem", "snapshot.pem", "targets.pem", "timestamp.pem",
    ]  # fmt: skip
    root = world.folder / "members" / "boss" / ".flexo-federation" / "root.json"
    assert re.fullmatch(
        r"the anchor [0-9a-f]{12} is in force\n", shell("boss", "publish-anchor", world.anchor, "--keys", keys)
    )
    for domain in ("math", "code"):
        shell("boss", "add-owner", domain, "--key", world.key(domain).with_suffix(".pub"), "--keys", keys)
        assert "compare it with the coordinator's" in shell(domain, "join", store, "--root", root)
        assert "wrote anchor/" in shell(domain, "fetch-anchor")
        said = shell(domain, "submit", world.expert(domain), "--key", world.key(domain))
        assert said == f"{domain}: serial 1 submitted; in force from the coordinator's next refresh on\n"
    said = shell("boss", "assemble", "-o", "model", "--no-check", "--keys", keys)
    assert "the first model of this anchor: code, math" in said
    model = world.folder / "members" / "boss" / "model"
    with served(store) as url:
        shell("guest", "join", url, "--root", root)
        assert "exactly what is in force" in shell("guest", "verify", model)
        table = shell("guest", "status").splitlines()
        assert table[2].split()[:3] == ["code", "1", "in"] and table[2].endswith("model")
        about = parsed(shell("guest", "status", "--json"))
        assert about["owners"][1]["licence"] == "CC-BY-4.0" and about["models"][0]["name"] == "model"
        assert "  assembled  " in shell("guest", "log").splitlines()[-1]
        said = shell("guest", "withdraw", "math", "--key", world.key("math"), fails=True)
        assert "can only be read" in said
    said = shell("math", "withdraw", "math", "--key", world.key("math"), "--reason", "sold")
    assert "models that hold it: 1" in said
    notice = parsed((world.folder / "members" / "math" / "math.withdrawal.json").read_text())
    assert notice["notice"]["domain"] == "math" and len(notice["notice"]["models"]) == 1
    said = shell("boss", "verify", model, fails=True)
    assert "math: has left, and this model still holds it (its owner withdrew it: sold)" in said
    assert "the store is dated anew" in shell("boss", "refresh", "--keys", keys)
    assert "root 2 is in force" in shell("boss", "rotate", "snapshot", "--keys", keys)
    policy = world.folder / "policy.yaml"
    policy.write_text("version: 2\nquorum: 2\n")
    assert "version 2 is in force" in shell("boss", "set-policy", policy, "--keys", keys)
    assert "quorum is 2" in shell("boss", "assemble", "-o", "no", "--no-check", "--keys", keys, fails=True)
    assert "out of the federation" in shell("boss", "remove-owner", "math", "--keys", keys)
    said = shell("boss", "rotate", "code", "--key", world.key("new").with_suffix(".pub"), "--keys", keys)
    assert "only the old key signed it" in said


def test_the_coordinator_withdraws(shell: Shell, world: World) -> None:
    shell("boss", "join", world.store, "--root", world.folder / "coordinator" / "root.json")
    shell("boss", "withdraw", "math", "--keys", world.keys, "--reason", "a complaint", "--notice", "n.json")
    assert "withdrawn by the coordinator" in shell("boss", "status")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["status"], "no federation was joined here. Owners: flexo-federation join"),
        (["join", "store", "--root", "none.json"], "cannot be read as the root of a federation"),
        (["withdraw", "math"], "with the owner's --key, or with the coordinator's --keys"),
        (["publish-anchor", "--keys", "k"], "give an anchor folder, or --promote"),
        (["rotate", "math"], "give the new public key with --key"),
        (["rotate", "root", "--key", "x"], "--key is for owners"),
    ],
)
def test_what_is_refused(shell: Shell, words: list[str], says: str) -> None:
    if words[0] in ("rotate",):
        shell("lost", "join", shell.world.store, "--root", shell.world.folder / "coordinator" / "root.json")
    assert says.replace(" ", "") in "".join(shell("lost", *words, fails=True).replace("│", "").split())


def test_a_join_that_fails_leaves_nothing(shell: Shell, world: World) -> None:
    (world.store / "metadata" / "timestamp.json").write_text("{")
    root = world.folder / "coordinator" / "root.json"
    assert "not the metadata of a federation" in shell("late", "join", world.store, "--root", root, fails=True)
    assert "no federation was joined here" in shell("late", "status", fails=True)
    bad = world.folder / "bad.json"
    bad.write_text(root.read_text().replace('"version":1', '"version":7'))
    assert "not signed by itself" in shell("late", "join", world.store, "--root", bad, fails=True)


def test_a_submission_is_noted_in_the_home(shell: Shell, world: World) -> None:
    shell("math", "join", world.store, "--root", world.folder / "coordinator" / "root.json")
    shell("math", "submit", world.expert("math"), "--key", world.key("math"))
    home = open_home(world.folder / "members" / "math" / Path(".flexo-federation"))
    assert list(home.written().values()) == [2]
