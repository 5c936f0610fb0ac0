"""Training with privacy through the front door: what the file says, what stays, how it goes on, what is refused."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("dp_accounting", reason="the extra privacy is not installed")

from flexo.errors import InputError
from merge.formats.expert_file import open_expert
from merge.formats.expert_header import StatedPrivacy
from tests.trainers.runs import TRAINER, data_options, shard
from tests.trainers.test_distributed import ROOT, SETTINGS
from trainers.data import WeightedText
from trainers.expert.paired import PairOptions
from trainers.expert.train import Result
from trainers.loop import callbacks
from trainers.owner import Domain, OwnerOptions
from trainers.privacy.guarantee import PrivacyOptions
from trainers.privacy.randomness import KEY, KEY_BYTES
from trainers.privacy.training import planned, private_training

Train = Callable[..., Result]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Domain:
    """Six hundred documents of math, and twenty held out."""
    folder = tmp_path_factory.mktemp("math")
    train, test = (shard(folder / f"{name}.jsonl.gz", "math", n) for name, n in (("train", 600), ("test", 20)))
    return Domain("math", train=train, test=test)


@pytest.fixture
def private(train: Train, many: Domain, tmp_path: Path) -> Train:
    """`private(epsilon=4.0, output=..., ...)`: trains with privacy, the ledger in the folder of the test."""

    def run(key: bytes | None = None, /, **changes: Any) -> Result:
        names = PrivacyOptions.__dataclass_fields__.keys()
        given = {name: changes.pop(name) for name in names & changes.keys()}
        options = PrivacyOptions(**({"epsilon": 4.0, "ledger": tmp_path / "ledger.json"} | given))
        output = changes.get("output", tmp_path / "math.pt")
        if key is not None:  # so that two runs have the same noise
            output.with_suffix(".run").mkdir()
            (output.with_suffix(".run") / KEY).write_bytes(key)
        return train("math", kind=private_training(options), **({"domain": many} | changes))

    return run


def test_the_file_states_a_guarantee_and_nothing_that_has_no_noise(private: Train, tmp_path: Path) -> None:
    header = private().header
    assert header == open_expert(tmp_path / "math.pt").header and header.version == 2
    stated = header.privacy
    assert isinstance(stated, StatedPrivacy)
    assert 3.9 < stated.epsilon <= 4 and stated.delta == header.data.documents**-1.1
    assert stated.released.keys() == {"counts", "moments", "gradients"} and stated.steps == 12
    assert stated.noise_multiplier == stated.released["gradients"].noise
    losses = header.training.losses
    assert (losses.own_before, losses.own_after, header.training.router_mass) == (None, None, None)
    assert losses.public_after is not None
    assert not (tmp_path / "math.run" / KEY).exists(), "with the key, the noise could be taken off again"
    assert len(json.loads((tmp_path / "ledger.json").read_text())["runs"]) == 1


def test_a_stopped_run_goes_on_bit_for_bit_and_is_entered_once(
    private: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = bytes(range(KEY_BYTES))
    undisturbed = private(key, output=tmp_path / "whole.pt", ledger=tmp_path / "other.json").header
    calls = []
    original = callbacks.TokenProgress.on_train_batch_end

    def stop_at_5(self: callbacks.TokenProgress, *args: object) -> None:
        original(self, *args)
        calls.append(1)
        if len(calls) == 5:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(callbacks.TokenProgress, "on_train_batch_end", stop_at_5)
    with pytest.raises(SystemExit):
        private(key, output=tmp_path / "cut.pt")
    assert (tmp_path / "cut.run" / KEY).exists()
    with pytest.raises(InputError, match=r"other settings \(privacy was"):
        private(output=tmp_path / "cut.pt", epsilon=8.0)
    resumed = private(output=tmp_path / "cut.pt").header
    assert (resumed.tensors, resumed.privacy) == (undisturbed.tensors, undisturbed.privacy)
    assert len(calls) == 12
    assert len(json.loads((tmp_path / "ledger.json").read_text())["runs"]) == 1


def test_a_unit_is_who_a_column_names(private: Train, tmp_path: Path) -> None:
    rows = [{"text": f"one two three {n} plus " * 6, "patient": n % 600} for n in range(1200)]
    text = tmp_path / "notes.jsonl"
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said: list[str] = []
    header = private(domain=Domain("math", train=text), unit="patient", windows=2, say=said.append).header
    assert isinstance(header.privacy, StatedPrivacy) and header.privacy.unit == "patient"
    assert any("for one patient more or less" in line for line in said)
    with pytest.raises(InputError, match=r"document 1: .*author"):
        private(domain=Domain("math", train=text), unit="author", output=tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"12 units by privacy\.unit=ward, at least 500"):
        wards = tmp_path / "wards.jsonl"
        wards.write_text("".join(json.dumps(row | {"ward": row["patient"] % 12}) + "\n" for row in rows))
        private(domain=Domain("math", train=wards), unit="ward", output=tmp_path / "b.pt")
    rows += [{"text": "much from one " * 20000, "patient": 1}]
    text.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(InputError, match=r"one has \d\d% of the text"):
        private(domain=Domain("math", train=text), unit="patient", output=tmp_path / "b.pt", ledger=tmp_path / "b.json")
    assert not (tmp_path / "b.pt").exists() and not (tmp_path / "b.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"packing": "best_fit"}}, r"data\.packing=best_fit: a window would hold text of several units"),
        ({"data": {"batch_size": 1200}}, "would read 900 of them .data.batch_size=1200"),
        ({"trainer": {"compile": True}}, "run.compile"),
        ({"trainer": {"strategy": "fsdp"}}, "run.strategy=fsdp"),
        ({"model": PairOptions(embedding="math.safetensors")}, "model.embedding: the embedding was measured without"),
        ({"delta": 0.1}, "would allow to publish one of them whole"),
        ({"epsilon": 0.02}, "no noise on the gradients reaches 0.02"),
        ({"budget": 1.0}, r"above privacy\.budget=1"),
    ],
)
def test_what_a_guarantee_does_not_cover_is_refused_and_nothing_spent(
    private: Train, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    if "data" in changes:
        changes = changes | {"data": data_options(tmp_path / "tokens", public_share=0.25, **changes["data"])}
    if "trainer" in changes:
        changes = changes | {"trainer": replace(TRAINER, **changes["trainer"])}
    with pytest.raises(InputError, match=message):
        private(**changes)
    assert not (tmp_path / "math.pt").exists() and not (tmp_path / "ledger.json").exists()


def test_several_sources_and_the_start_of_an_expert_are_refused(
    private: Train, train: Train, shards: Path, tmp_path: Path
) -> None:
    more = shard(tmp_path / "more.jsonl.gz", "math", 40)
    both = (WeightedText(shards / "math/train.jsonl.gz"), WeightedText(more))
    data = data_options(tmp_path / "tokens", public_share=0.25, mixture=both)
    with pytest.raises(InputError, match=r"data\.mixture: somebody may be in several sources"):
        private(data=data, domain=Domain("math"))
    plain = train("math", output=tmp_path / "plain.pt").path
    with pytest.raises(InputError, match=r"model.start: .*privacy.public_start=true"):
        private(model=PairOptions(start=plain))
    assert private(model=PairOptions(start=plain, router_init="kept"), public_start=True).header.version == 2


def test_without_public_text_rows_start_at_the_public_ones_and_no_moments_are_released(
    private: Train, many: Domain, small_anchor: Path, tmp_path: Path
) -> None:
    bare = shutil.copytree(small_anchor, tmp_path / "bare")
    shutil.rmtree(bare / "flexo/public")
    owner = OwnerOptions(many, str(bare), tmp_path)
    data = data_options(tmp_path / "tokens", public_share=0.0)
    with pytest.raises(InputError, match=r"no public text.*data\.public_share=0 model\.router_init=public"):
        private(owner=owner, data=data)
    stated = private(owner=owner, data=data, model=PairOptions(router_init="public")).header.privacy
    assert isinstance(stated, StatedPrivacy) and stated.released.keys() == {"counts", "gradients"}


def test_a_plan_says_noise_and_cost_and_spends_nothing(
    small_anchor: Path, shards: Path, many: Domain, tmp_path: Path
) -> None:
    from tests.trainers.runs import expert_arguments

    given = expert_arguments("math", small_anchor, shards, tmp_path, domain=many)
    options = PrivacyOptions(4.0, ledger=tmp_path / "ledger.json")
    said = "\n".join(planned(given["owner"], given["model"], given["run"], options))
    assert "epsilon 4 at delta" in said and "600 units" in said and "in 12 steps" in said
    assert not (tmp_path / "ledger.json").exists() and not (tmp_path / "math.run").exists()


@pytest.mark.slow
def test_two_devices_make_what_one_makes(small_anchor: Path, many: Domain, tmp_path: Path) -> None:
    files = []
    for name, settings in (("one", []), ("two", ["run.devices=2", "run.strategy=ddp"])):
        output = tmp_path / f"{name}.pt"
        output.with_suffix(".run").mkdir()
        (output.with_suffix(".run") / KEY).write_bytes(bytes(range(KEY_BYTES)))
        command = [
            sys.executable, str(ROOT / "train_expert.py"), "+domain=math", f"domain.train={many.train}", "privacy=dp",
            f"anchor.path={small_anchor}", f"output={output}", f"data.cache={tmp_path / 'tokens'}", *SETTINGS,
            "run.accumulate=1", f"privacy.ledger={tmp_path / name}.json", *settings,
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        files.append(open_expert(output))
    one, two = files
    assert one.header.privacy == two.header.privacy
    for name in one.tensors:
        torch.testing.assert_close(one.tensor(name), two.tensor(name), rtol=1e-4, atol=1e-5)
