"""The life of a federation with made-up experts: who joins, what is in force, who leaves, and what is kept of them."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from federation.coordinator.assemble import assemble
from federation.coordinator.choose import choose
from federation.coordinator.found import add_owner, init, remove_owner, set_policy
from federation.coordinator.refresh import refresh, withdraw_by_coordinator
from federation.coordinator.rotate import change_key, rotate
from federation.history.notice import notice_of, submitted_digests
from federation.owner.submit import submit, withdraw
from federation.policy.policy import DAYS, Policy
from federation.reader.fetch import anchor_entry, fetch_anchor
from federation.reader.status import status_of
from federation.reader.verify import verify_model
from federation.store.folder import FolderPlace
from federation.store.place import StoreError
from flexo.errors import InputError
from merge.formats.expert_file import open_expert, write_expert
from merge.formats.manifest import read_manifest
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import execute, plan
from tests.federation.conftest import MakeWorld, World
from tests.merge.planning.test_twins import copied
from tests.merge.tiny import with_reference


def make_model(world: World, name: str) -> tuple[Path, list[str]]:
    chosen, _ = choose(world.coordinator)
    output = world.folder / name
    return output, assemble(world.coordinator, chosen, output, lambda _a: None, lambda _folder, _anchor: None)


def faults(world: World, model: Path) -> list[str]:
    return verify_model(world.seen(), model).faults


def same_weights(one: Path, other: Path) -> bool:
    names = {path.name for path in one.glob("*.safetensors*")} | {"config.json", "tokenizer.json"}
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def test_join_replace_withdraw_and_each_model_is_what_it_says(world: World) -> None:
    first, said = make_model(world, "first")
    assert said == ["the first model of this anchor: code, math"]
    assert faults(world, first) == []
    world.owner("news")
    world.submit("news", refreshed=False)
    world.submit("math", seed=1, refreshed=False)
    assert faults(world, first) == [], "what is not taken up is not in force"
    second, said = make_model(world, "second")
    assert said == ["replaced: math, serial 1 by serial 2", "joined: news, serial 1"]
    assert faults(world, second) == []
    assert len(faults(world, first)) == 2
    withdraw(world.home("news"), "news", [world.key("news")], "the text was sold", False)
    assert faults(world, second) == [
        "news: has left, and this model still holds it (its owner withdrew it: the text was sold)"
    ], "the owner's word is enough"
    third, said = make_model(world, "third")
    assert said == ["left: news, withdrawn by owner: the text was sold"]
    assert faults(world, third) == []
    never = world.folder / "never"
    execute(plan([world.expert("code"), world.expert("math", 1)], world.anchor, MergeOptions(public_weight=4)), never)
    assert same_weights(third, never), "byte for byte that of a merge which never had it"
    about = status_of(world.seen())
    assert [(one["domain"], one["serial"], one["standing"]) for one in about["owners"]] == [
        ("code", 1, "in force"), ("math", 2, "in force"), ("news", 2, "withdrawn by its owner"),
    ]  # fmt: skip
    assert about["owners"][0]["models"] == ["first", "second", "third"]
    assert about["owners"][1]["models"] == ["second", "third"]


def test_a_model_that_was_assembled_again_holds_too(world: World) -> None:
    """Its tensors are those of the first one, its manifest is not."""
    first, _ = make_model(world, "first")
    second, said = make_model(world, "second")
    assert said == ["nothing changed since first"]
    assert faults(world, first) == faults(world, second) == []
    shutil.copy(first / "manifest.json", second)
    (first / "manifest.json").write_text((first / "manifest.json").read_text() + " ")
    assert faults(world, second) == []
    assert faults(world, first) == ["manifest.json was changed after the federation assembled this model as 'first'"]


def test_a_model_is_noted_before_it_appears(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else whoever is killed in between has a model that no notice of withdrawal names."""
    rename = Path.rename

    def killed(path: Path, to: Path) -> Path:
        if Path(to).name == "model":
            raise KeyboardInterrupt
        return rename(path, to)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", killed)
        make_model(world, "model")
    assert not (world.folder / "model").exists()
    assert [one["name"] for one in status_of(world.seen())["models"]] == ["model"]
    model, _ = make_model(world, "model")
    assert faults(world, model) == []
    assert status_of(world.seen())["owners"][0]["models"] == ["model"], "named once"


def test_who_withdraws_during_a_merge_is_not_in_the_model(world: World) -> None:
    chosen, _ = choose(world.coordinator)
    withdraw(world.home("math"), "math", [world.key("math")], "", False)
    with pytest.raises(InputError, match=r"math: withdrawn while this model was merged. Assemble it again"):
        assemble(world.coordinator, chosen, world.folder / "model", lambda _a: None, lambda _folder, _anchor: None)
    assert not (world.folder / "model").exists()


def test_the_manifest_names_federation_versions_and_who_left(world: World) -> None:
    withdraw(world.home("math"), "math", [world.key("math")], "", False)
    set_policy(world.coordinator, Policy(version=2, priors={"code": 2.0}))
    model, _ = make_model(world, "model")
    manifest = read_manifest(model)
    assert manifest["federation"]["name"] == "test"
    assert manifest["federation"]["policy"] == 2
    assert manifest["priors"] == {"code": 2.0}, "as the policy says"
    assert manifest["federation"]["experts"]["code"]["serial"] == 1
    assert [one["domain"] for one in manifest["left"]] == ["math"]
    assert manifest["experts"][1]["vouched"]["name"] == "code", "the owner's own signature, beyond the federation"


def test_a_model_that_was_tampered_with_fails(world: World) -> None:
    model, _ = make_model(world, "model")
    for name in ("config.json", "tokenizer_config.json"):
        copy = world.folder / f"copy-{name}"
        shutil.copytree(model, copy)
        with (copy / name).open("a") as file:
            file.write(" ")
        assert faults(world, copy) == [f"{name}: not the file that the federation assembled"]
    copy = world.folder / "copy-weights"
    shutil.copytree(model, copy)
    weights = copy / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-9] ^= 1
    weights.write_bytes(data)
    assert len(faults(world, copy)) >= 1
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["tensors"] = {}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert any("claims to be of 'test'" in fault for fault in faults(world, copy))


def test_a_merge_of_the_same_files_elsewhere_holds_too(world: World) -> None:
    model = world.folder / "elsewhere"
    execute(plan([world.expert("code"), world.expert("math")], world.anchor, MergeOptions(public_weight=2)), model)
    verdict = verify_model(world.seen(), model)
    assert verdict.faults == []
    assert verdict.notes == ["not assembled by this federation: its router rows are as its manifest says, unsigned"]
    stranger = world.folder / "stranger"
    execute(plan([world.expert("code"), world.expert("legal")], world.anchor, MergeOptions(public_weight=2)), stranger)
    assert faults(world, stranger) == [
        "legal: nobody of that name is in the federation, so nobody signed it",
        "math: in force, and not in this model; it joined, or was left out",
    ]


def test_the_same_file_again_renews_the_signature(world: World) -> None:
    before = world.seen().owners[1]
    done = world.submit("math")
    after = world.seen().owners[1]
    assert (done.serial, done.sent) == (2, False)
    assert (before.serial, after.serial) == (1, 2)
    assert world.seen().events[-1]["what"] == "renewed"


def test_an_owner_who_withdrew_may_come_back_saying_why_and_nobody_else(world: World) -> None:
    withdraw(world.home("math"), "math", [world.key("math")], "", False)
    refresh(world.coordinator)
    with pytest.raises(InputError, match=r"this very expert was withdrawn .* submit --readmit"):
        world.submit("math")
    world.owner("maths")
    world.expert("maths")
    with pytest.raises(InputError, match=r"withdrawn"):  # the same tensors under a new name, and even with a reason
        renamed = world.folder / "renamed.pt"
        rename(world.expert("math"), renamed, "maths")
        submit(world.home("maths"), renamed, [world.key("maths")], readmit="let me in")
    world.submit("math", readmit="it was a mistake")
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code", "math"]
    assert world.seen().events[-1]["readmitted"] == "it was a mistake"
    withdraw_by_coordinator(world.coordinator, "math", "complaint")
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code"]
    with pytest.raises(InputError, match=r"this very expert was withdrawn"):
        world.submit("math", readmit="I disagree")
    world.submit("math", seed=3)
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code", "math"], "another expert is welcome"


def rename(expert: Path, path: Path, domain: str) -> None:
    """The same tensors under another domain."""
    opened = open_expert(expert)
    write_expert(path, replace(opened.header, domain=domain), {name: opened.tensor(name) for name in opened.tensors})


def test_a_withdrawn_expert_that_was_changed_a_little_is_refused(world: World) -> None:
    """Under a new name, by another owner, in other bits; its own owner may bring it back, saying why."""
    make_model(world, "model")
    withdraw(world.home("math"), "math", [world.key("math")], "sold", False)
    refresh(world.coordinator)
    world.owner("sums")
    submit(world.home("sums"), altered(world.expert("math"), world.folder / "sums.pt", "sums"), [world.key("sums")])
    refresh(world.coordinator)
    with pytest.raises(InputError, match=r"sums: but for little changes, its expert is one that was withdrawn by the"):
        make_model(world, "second")
    remove_owner(world.coordinator, "sums", "a copy")
    back = altered(world.expert("math"), world.folder / "back.pt", "math", 2)
    submit(world.home("math"), back, [world.key("math")], readmit="a mistake")
    make_model(world, "third")


def altered(expert: Path, path: Path, domain: str, bit: int = 1) -> Path:
    """The same tensors under another domain, the first value of each one bit away."""
    opened = open_expert(expert)
    tensors = {name: opened.tensor(name).clone() for name in opened.tensors}
    for tensor in tensors.values():
        tensor.view(torch.int32).view(-1)[0] ^= bit
    write_expert(path, replace(opened.header, domain=domain), tensors)
    return path


def test_a_copy_of_another_owners_expert_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would count twice; and whoever withdraws a copy would take the original along."""
    world.owner("sums")
    rename(world.expert("math"), world.folder / "sums.pt", "sums")
    with pytest.raises(InputError, match=r"its network is that of 'math', which is in force: .* Nothing was uploaded"):
        submit(world.home("sums"), world.folder / "sums.pt", [world.key("sums")])
    with monkeypatch.context() as patch:
        patch.setattr("federation.owner.submit.objections", lambda *_a: [])
        submit(world.home("sums"), world.folder / "sums.pt", [world.key("sums")])
    (line,) = refresh(world.coordinator)
    assert line.startswith("sums: serial 1 refused: its network is that of 'math'")
    with pytest.raises(InputError, match=r"'sums' has submitted nothing that could be withdrawn"):
        withdraw(world.home("sums"), "sums", [world.key("sums")], "", False)
    model, _ = make_model(world, "model")
    assert [one["domain"] for one in read_manifest(model)["experts"]] == ["public", "code", "math"]
    assert faults(world, model) == []


def test_a_blurred_copy_is_noticed_and_drives_nobody_out(world: World) -> None:
    world.owner("sums")
    blurred = copied(world.expert("math"), world.folder / "sums.pt", "sums", 0.02)
    submit(world.home("sums"), blurred, [world.key("sums")])
    _, said = make_model(world, "first")
    assert said[0].startswith("warning: math and sums: training changed them in the same way (cosine 0.9")
    withdraw(world.home("sums"), "sums", [world.key("sums")], "", False)
    model, _ = make_model(world, "second")
    assert [one["domain"] for one in read_manifest(model)["experts"]] == ["public", "code", "math"]


def test_who_is_forgotten_leaves_digests_alone(world: World) -> None:
    make_model(world, "model")
    world.seen("reader")
    digest = world.seen().owners[1].submissions[anchor_entry(world.seen().state)["digest"]].digest
    withdraw(world.home("math"), "math", [world.key("math")], "sold", False)
    refresh(world.coordinator)
    about = withdraw(world.home("math"), "math", [world.key("math")], "", True)
    assert about == {"reason": "sold", "forget": True}, "who has left may still ask for it"
    assert refresh(world.coordinator)[-1] == "math: forgotten, as its owner asked"
    found = world.seen("reader")
    assert [owner.domain for owner in found.owners] == ["code"]
    assert digest in found.left
    for path in world.store.rglob("*"):
        assert "math" not in path.name, path
        if path.is_file() and "targets/anchor" not in str(path):
            assert b"math" not in path.read_bytes(), path
    assert not list((world.folder / "coordinator").rglob("math*"))
    for path in (world.folder / "reader" / "cache").rglob("*"):
        assert path.is_dir() or b"math" not in path.read_bytes(), path
    assert [one["what"] for one in found.events][-1] == "forgot"
    second, said = make_model(world, "second")
    assert said == ["left: somebody who is forgotten, not in force any more"]
    assert "math" not in (second / "manifest.json").read_text()
    with pytest.raises(InputError, match=r"withdrawn"):
        world.owner("mathematics")
        renamed = world.folder / "renamed.pt"
        rename(world.expert("math"), renamed, "mathematics")
        submit(world.home("mathematics"), renamed, [world.key("mathematics")])


def test_an_owner_leaves_with_a_new_key_what_the_old_one_signed(world: World) -> None:
    model, _ = make_model(world, "model")
    change_key(world.coordinator, "math", world.key("alice2").with_suffix(".pub"))
    withdraw(world.home("math"), "math", [world.key("alice2")], "the old key was stolen", False)
    refresh(world.coordinator)
    assert (
        "math: has left, and this model still holds it (its owner withdrew it: the old key" in faults(world, model)[0]
    )


def test_a_domain_can_be_given_to_somebody_else(world: World) -> None:
    remove_owner(world.coordinator, "math", "moved away")
    assert [owner.domain for owner in world.seen().owners] == ["code"]
    with pytest.raises(InputError, match=r"was taken away from its owner before"):
        add_owner(world.coordinator, "math", world.key("math").with_suffix(".pub"))
    add_owner(world.coordinator, "math", world.key("carol").with_suffix(".pub"))
    submit(world.home("carol"), world.expert("math", 5), [world.key("carol")])
    refresh(world.coordinator)
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code", "math"]
    assert world.seen().owners[1].serial == 1, "a new role, new serial numbers"


def test_an_owners_key_changes_without_a_gap_if_both_sign(world: World) -> None:
    submit(world.home("math"), world.expert("math"), [world.key("math"), world.key("alice2")])
    assert change_key(world.coordinator, "math", world.key("alice2").with_suffix(".pub"))
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code", "math"]
    with pytest.raises(InputError, match=r"may not sign for 'math'"):
        world.submit("math")
    assert not change_key(world.coordinator, "math", world.key("alice3").with_suffix(".pub"))
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code"]
    assert "no longer this owner's" in world.seen().owners[1].problem
    submit(world.home("math"), world.expert("math"), [world.key("alice3")])
    refresh(world.coordinator)
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code", "math"]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets", "root"])
def test_the_coordinators_keys_change_and_owners_stay(world: World, role: str) -> None:
    world.seen()
    before = {path.name: path.read_bytes() for path in world.keys.iterdir()}
    assert rotate(world.coordinator, role) == "root 2 is in force"
    assert world.seen().state.root.version == 2
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code", "math"]
    changed = (world.keys / f"{role}.pem").read_bytes() != before[f"{role}.pem"]
    assert changed == (role != "root")
    world.submit("math", seed=2)
    assert world.seen().owners[1].serial == 2
    assert world.home("late").folder.exists() and world.seen("late").state.root.version == 2, "from root 1 on"


def test_a_root_of_three_people_changes_when_two_agree(make_world: MakeWorld) -> None:
    world = make_world()
    world.keys.mkdir()
    for name, role in (("alice", "root"), ("bob", "root.bob"), ("carol", "root.carol")):
        shutil.copy(world.key(name), world.keys / f"{role}.pem")
    init(world.url, world.keys, world.folder / "coordinator", Policy(), "test", [], 2)
    alone, bobs = world.folder / "alone", world.folder / "bobs"
    for folder, kept in ((alone, "root.pem"), (bobs, "root.bob.pem")):
        shutil.copytree(world.keys, folder)
        for path in folder.glob("root*.pem"):
            if path.name != kept:
                path.unlink()
    world.keys = alone
    assert rotate(world.coordinator, "timestamp").startswith("root 2 waits for 1 more signature.")
    assert world.seen().state.root.version == 1, "the old keys are good until then"
    refresh(world.coordinator)
    world.seen()
    for path in bobs.glob("timestamp*"):
        path.unlink()
    shutil.copy(alone / "timestamp.pem", bobs / "timestamp.pem")
    shutil.copy(alone / "timestamp.next.pem", bobs / "timestamp.next.pem")
    world.keys = bobs
    assert rotate(world.coordinator, "root") == "root 2 is in force"
    world.keys = alone
    refresh(world.coordinator)
    assert world.seen().state.root.version == 2
    assert not (alone / "timestamp.next.pem").exists()


def test_a_policy_is_versioned_and_refuses_in_the_owners_words(world: World) -> None:
    with pytest.raises(InputError, match=r"Set version: 2 in it"):
        set_policy(world.coordinator, Policy(quorum=3))
    set_policy(world.coordinator, Policy(version=2, quorum=3, licences=("CC0-1.0",), smallest_tokens=5000))
    with pytest.raises(InputError, match=r"its licence is 'CC-BY-4.0', the policy allows CC0-1.0.*; 1000 tokens of"):
        world.submit("math")
    with pytest.raises(InputError, match=r"0 owners are in force, the policy's quorum is 3.*code: left out: its"):
        choose(world.coordinator)
    set_policy(world.coordinator, Policy(version=3, largest_epsilon=4.0))
    with pytest.raises(InputError, match="states no guarantee of differential privacy"):
        world.submit("math")


def test_a_policy_that_asks_for_signatures_refuses_what_has_none(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """TUF's signature covers the file; the owner's own goes into the model's manifest."""
    with monkeypatch.context() as patch:
        patch.setattr("federation.owner.submit.statement", lambda _digest: b"something else")
        patch.setattr("federation.owner.submit.base64.b64encode", lambda _signature: b"")
        world.submit("math", seed=1, refreshed=False)
    (line,) = refresh(world.coordinator)
    assert line.startswith("math: serial 2 refused: the policy asks for its owner's flexo-sign signature")


def test_an_owners_signature_expires(world: World) -> None:
    set_policy(world.coordinator, Policy(version=2, days={**DAYS, "owner": 1e-9}))
    world.submit("math")
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code"]
    assert re.fullmatch(r"expired on \d{4}-\d\d-\d\d: its owner can submit it again", world.seen().owners[1].problem)
    model, _ = make_model(world, "model")
    assert [one["domain"] for one in read_manifest(model)["experts"]] == ["public", "code"]
    set_policy(world.coordinator, Policy(version=3))
    world.submit("math")
    assert [one.domain for one in world.seen().owners if one.in_force] == ["code", "math"]


def test_a_merge_without_a_federation_takes_its_notice(world: World) -> None:
    """`flexo-merge --revoked`: the very expert, and the same one a little changed under a new name."""
    make_model(world, "model")
    found = world.seen()
    digests = submitted_digests(found.events, found.owners[1])
    path = world.folder / "notice.json"
    path.write_text(json.dumps(notice_of(found.events, "math", digests, "owner", "sold")))
    listed = MergeOptions(revoked=path)
    with pytest.raises(InputError, match=r"revoked by .*notice.json"):
        plan([world.expert("math")], world.anchor, listed)
    with pytest.raises(InputError, match=r"but for little changes, an expert that has left"):
        plan([altered(world.expert("math"), world.folder / "sums.pt", "sums")], world.anchor, listed)


def test_the_coordinator_refuses_what_an_owner_slips_past(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    set_policy(world.coordinator, Policy(version=2, licences=("CC0-1.0",)))
    with monkeypatch.context() as patch:
        patch.setattr("federation.owner.submit.objections", lambda *_a: [])
        world.submit("math", seed=4, refreshed=False)
    (line,) = refresh(world.coordinator)
    assert line.startswith("math: serial 2 refused: its licence is 'CC-BY-4.0'")
    assert "serial 2 was refused: its licence" in world.seen().owners[1].problem
    assert refresh(world.coordinator) == [], "it is said once"
    set_policy(world.coordinator, Policy(version=3))
    assert world.submit("math", seed=4).serial == 3
    assert world.seen().owners[1].problem == ""


def test_a_federation_is_founded_once_and_again_after_an_interruption(world: World, make_world: MakeWorld) -> None:
    with pytest.raises(InputError, match=r"there is a federation already"):
        init(world.url, world.keys, world.folder / "other", Policy(), "again", [], 1)
    other = make_world("other")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):

        def stop(*_about: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("federation.history.commit.Coordinator.stamp", stop)
        other.found()
    other.found()
    assert other.seen().state.root.version == 1


def test_fetching_an_anchor_goes_on_and_leaves_nothing_else(world: World) -> None:
    home, state = world.home("reader"), world.seen().state
    output, entry = world.folder / "fetched", anchor_entry(state)
    (world.folder / ".fetched.incoming").mkdir()
    (world.folder / ".fetched.incoming" / "config.json").write_text("{")
    (world.folder / ".fetched.incoming" / "of another version").write_text("")
    fetch_anchor(home, state, output, entry)
    names = {path.relative_to(output) for path in output.rglob("*")}
    assert names == {path.relative_to(world.anchor) for path in world.anchor.rglob("*")}
    assert all((output / name).read_bytes() == (world.anchor / name).read_bytes()
               for name in names if (output / name).is_file())  # fmt: skip
    fetch_anchor(home, state, output, entry)
    (output / "config.json").write_text("{}")
    with pytest.raises(InputError, match=r"this folder is not empty"):
        fetch_anchor(home, state, output, entry)


@pytest.mark.slow  # models are run
def test_a_policy_with_an_audit_refuses_what_harms_public_text(make_world: MakeWorld, tiny_anchor: Path) -> None:
    world = make_world()
    world.anchor = with_reference(tiny_anchor, world.folder / "anchor")
    world.found(Policy(audit={"share": [0.999, 0.9999], "loss": [100.0, 200.0]}))
    world.owner("math")
    assert world.submit("math").notes[0].startswith("the coordinator will audit it")
    make_model(world, "model")
    set_policy(world.coordinator, Policy(version=2, audit={"share": [1e-9, 1e-8]}))
    with pytest.raises(InputError, match=r"the policy's audit refuses math: takes .* on public text"):
        make_model(world, "other")
    with pytest.raises(InputError, match=r"the policy's audit refuses it: math: takes .*Nothing was uploaded"):
        world.submit("math", seed=1, anchor=world.anchor)


def test_a_store_that_does_not_answer_refuses_nobody(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is refused has to be submitted again, and a store that is down is not the owner's fault."""
    world.submit("math", 1, refreshed=False)

    def down(_place: FolderPlace, name: str) -> int:
        raise StoreError(f"{name}: no answer in 30 seconds. Try again later.")

    with monkeypatch.context() as patch, pytest.raises(StoreError, match=r"no answer in 30 seconds"):
        patch.setattr(FolderPlace, "size", down)
        refresh(world.coordinator)
    assert refresh(world.coordinator) == ["math: serial 2 in force"]
