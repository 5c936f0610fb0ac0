"""Whoever has left a model stays out of it, by digest and by key, unless somebody says why not."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from flexo.errors import ExpertFileError, InputError, UsageError
from merge.commands.flexo_merge import app
from merge.commands.flexo_optout import optout_app
from merge.formats.expert_file import open_expert, write_expert
from merge.formats.manifest import read_manifest
from merge.formats.signing import make_key, sign
from merge.planning.membership import replan
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import execute, plan
from merge.planning.revocation import Revoked, model_digest, notice, read_revoked
from tests.conftest import MakeExpert


def merge(*words: object, fails: bool = False) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert bool(done.exception) == fails, done.output
    return str(done.exception) if fails else done.output


@pytest.fixture
def left(tmp_path: Path, make_expert: MakeExpert) -> tuple[Path, Path]:
    """A model that `news` has left, and its file."""
    news = make_expert("news")
    merge(make_expert("math"), news, make_expert("code"), "-o", tmp_path / "model", "--no-check")
    CliRunner().invoke(optout_app, [str(tmp_path / "model"), "--drop", "news", "-o", str(tmp_path / "without")])
    return tmp_path / "without", news


def test_an_expert_that_left_is_refused(left: tuple[Path, Path], tmp_path: Path, make_expert: MakeExpert) -> None:
    model, news = left
    said = merge(model, news, "-o", tmp_path / "again", fails=True)
    assert "this very expert has left" in said and "as news. Whoever leaves stays out" in said
    assert not (tmp_path / "again").exists()
    merge(model, make_expert("news", seed=1), "-o", tmp_path / "another", "--no-check")


def test_it_is_taken_back_with_a_reason_that_the_manifest_keeps(left: tuple[Path, Path], tmp_path: Path) -> None:
    model, news = left
    done = CliRunner().invoke(app, [str(model), str(news), "-o", str(tmp_path / "m"), "--readmit", "news"])
    assert done.exit_code == 2 and "say why with --reason TEXT" in done.output
    merge(model, news, "-o", tmp_path / "again", "--no-check", "--readmit", "news", "--reason", "asked back")
    (back,) = read_manifest(tmp_path / "again")["readmitted"]
    assert (back["domain"], back["reason"]) == ("news", "asked back")
    assert back["digest"] == read_manifest(tmp_path / "again")["experts"][-1]["digest"]


def test_readmitting_who_does_not_come_is_a_mistake(left: tuple[Path, Path], make_expert: MakeExpert) -> None:
    model, _ = left
    with pytest.raises(InputError, match=r"--readmit legal: no expert of that name that has left is joining"):
        replan(model, MergeOptions(readmit=("legal",), reason="x"), join=[make_expert("legal")])
    with pytest.raises(UsageError, match="say why"):
        MergeOptions(readmit=("news",), reason=" ")


def test_forgetting_keeps_a_digest_alone(left: tuple[Path, Path], tmp_path: Path) -> None:
    model, news = left
    words = [str(tmp_path / "model"), "--drop", "news", "-o", str(tmp_path / "forgot"), "--forget"]
    assert CliRunner().invoke(optout_app, words).exit_code == 0
    manifest = read_manifest(tmp_path / "forgot")
    entry = read_manifest(model)["left"][0]
    assert manifest["left"] == [{name: entry[name] for name in ("digest", "sketch")}]
    for path in (tmp_path / "forgot").iterdir():
        assert path.suffix == ".safetensors" or "news" not in path.read_text(), path
    for shard in model.glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "forgot" / shard.name).read_bytes()
    said = merge(tmp_path / "forgot", news, "-o", tmp_path / "again", fails=True)
    assert "as an owner who is forgotten" in said


def test_a_list_refuses_digests_and_keys(tmp_path: Path, make_expert: MakeExpert, left: tuple[Path, Path]) -> None:
    math, code = make_expert("math", path=tmp_path / "math.pt"), make_expert("code")
    digest = read_manifest(left[0])["experts"][1]["digest"]
    listed = tmp_path / "revoked.json"
    listed.write_text(json.dumps(notice("math", [digest], [], "owner", "sold", [])))
    with pytest.raises(ExpertFileError, match=rf"{math}: revoked by {listed} \(digest {digest[:16]}\)"):
        plan([math, code], options=MergeOptions(revoked=listed))
    with pytest.raises(ExpertFileError, match=r"holds the expert for 'math', which .* revokes. Take it out first"):
        replan(left[0], MergeOptions(revoked=listed), join=[make_expert("legal")])
    _, fingerprint = make_key(tmp_path / "alice.pem")
    sign([math], tmp_path / "alice.pem")
    listed.write_text(json.dumps({"format": "flexo.revoked", "version": 1, "digests": [], "keys": [fingerprint]}))
    trusted = MergeOptions(trusted_keys=tmp_path / "keys", revoked=listed)
    (tmp_path / "keys").mkdir()
    (tmp_path / "alice.pub").rename(tmp_path / "keys" / "alice.pub")
    with pytest.raises(ExpertFileError, match=rf"signed by the key {fingerprint[:16]}, which {listed} revokes"):
        plan([math], options=trusted)


def test_a_revoked_key_is_not_believed_about_itself(
    tmp_path: Path, make_expert: MakeExpert, left: tuple[Path, Path]
) -> None:
    """Another fingerprint written into the signature, or none there: nobody can say whose it is, so it is refused."""
    math = make_expert("math", path=tmp_path / "math.pt")
    _, fingerprint = make_key(tmp_path / "thief.pem")
    _, other = make_key(tmp_path / "alice.pem")
    sign([math], tmp_path / "thief.pem")
    listed, signed = tmp_path / "revoked.json", tmp_path / "math.pt.sig"
    listed.write_text(json.dumps({"format": "flexo.revoked", "version": 1, "digests": [], "keys": [fingerprint]}))
    signed.write_text(signed.read_text().replace(fingerprint, other))
    for _ in range(2):
        with pytest.raises(ExpertFileError, match=r"revokes keys, and no signature of this expert was verified"):
            plan([math], options=MergeOptions(revoked=listed))
        signed.unlink(missing_ok=True)
    with pytest.raises(ExpertFileError, match=r"whose signature nobody verified, and .* revokes keys"):
        replan(left[0], MergeOptions(revoked=listed), drop=["math"])


@pytest.mark.parametrize("change", ["one bit", "noise", "half the precision"])
def test_who_left_is_known_again_when_changed_a_little(
    left: tuple[Path, Path], tmp_path: Path, make_expert: MakeExpert, change: str
) -> None:
    model, news = left
    (entry,) = read_manifest(model)["left"]
    changed, listed = altered(news, tmp_path / "gnus.pt", change), tmp_path / "list.json"
    said = merge(model, changed, "-o", tmp_path / "again", fails=True)
    assert "gnus.pt: but for little changes, an expert that has left" in said and "as news" in said
    listed.write_text(json.dumps(notice("news", [], [entry["sketch"]], "owner", "sold", [])))
    words = (changed, make_expert("math"), "-o", tmp_path / "again", "--no-check", "--revoked", listed)
    assert "but for little changes, an expert that has left" in merge(*words, fails=True)
    merge(*words, "--readmit", "gnus", "--reason", "asked back")
    assert read_manifest(tmp_path / "again")["readmitted"][0]["reason"] == "asked back"
    (tmp_path / "list.json").write_text(json.dumps(notice("gnus", [], [entry["sketch"]], "owner", "sold", [])))
    with pytest.raises(ExpertFileError, match=r"holds the expert for 'gnus', which .* revokes"):
        replan(tmp_path / "again", MergeOptions(revoked=listed), drop=["math"])


def altered(expert: Path, path: Path, how: str) -> Path:
    """The same expert under the name `gnus`, changed in every tensor."""
    opened, dice, tensors = open_expert(expert), torch.Generator().manual_seed(1), {}
    for name in opened.tensors:
        value = opened.tensor(name).clone()
        if how == "one bit":
            value.view(torch.int32).view(-1)[0] ^= 1
        elif how == "noise":  # a third of what `make_expert` changes
            value += 0.03 * torch.randn(value.shape, generator=dice)
        else:
            value = value.to(torch.bfloat16).to(value.dtype)
        tensors[name] = value
    write_expert(path, replace(opened.header, domain="gnus"), tensors)
    return path


@pytest.mark.parametrize(
    "text",
    ["{}", '{"format": "flexo.revoked", "version": 1, "digests": ["x"]}', "[]",
     '{"format": "flexo.revoked", "version": 1, "more": 1}'],
)  # fmt: skip
def test_what_is_no_list_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputError, match=r"list.json: "):
        read_revoked(tmp_path / "list.json")


def test_a_models_digest_is_that_of_its_tensors(tmp_path: Path, make_expert: MakeExpert) -> None:
    made = plan([make_expert("math")], options=MergeOptions(public_weight=1.0))
    execute(made, tmp_path / "one")
    execute(made, tmp_path / "two")
    one, two = read_manifest(tmp_path / "one"), read_manifest(tmp_path / "two")
    assert model_digest(one) == model_digest(two | {"made": "later"})
    assert model_digest(one) != model_digest(one | {"tensors": {}})


def test_an_owners_prior_moves_the_row_as_far_as_the_public_weight(tmp_path: Path, make_expert: MakeExpert) -> None:
    """A prior of 4 against a public weight of 4 is the same as neither."""
    math, code = make_expert("math"), make_expert("code")
    execute(plan([math, code], options=MergeOptions(public_weight=4.0, priors={"math": 4.0})), tmp_path / "prior")
    execute(plan([math, code], options=MergeOptions(public_weight=1.0)), tmp_path / "plain")
    from merge.formats.merged_folder import open_merged

    prior, plain = open_merged(tmp_path / "prior"), open_merged(tmp_path / "plain")
    name = "model.layers.0.mlp.gate.weight"
    one, other = prior.weights.tensor(name), plain.weights.tensor(name)
    assert one[:2].equal(other[:2]) and not one[2].equal(other[2])
    assert prior.manifest["priors"] == {"math": 4.0} and "priors" not in plain.manifest


def test_a_manifest_may_hold_anything_for_digests_and_keys() -> None:
    listed = Revoked(frozenset({"a" * 64}), frozenset(), frozenset({"b" * 64}), "list.json")
    listed.refuse_staying([{"domain": "math", "digest": [], "vouched": {"key": {"of": "somebody"}}}], "model")
    with pytest.raises(ExpertFileError, match=r"which list\.json revokes"):
        listed.refuse_staying([{"domain": "math", "digest": "a" * 64, "vouched": {"key": []}}], "model")
