"""Training an expert through the front door: what it writes, how it resumes, what it refuses."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO

import pytest
import torch

from flexo.errors import InputError
from flexo.locks import hold
from merge.formats.anchor_folder import MOMENTS, open_anchor
from merge.formats.architecture import FFN, ROUTER_WEIGHT, anchor_ffn, expert_ffn
from merge.formats.expert_file import open_expert
from merge.formats.model_folder import ModelFolderError
from tests.trainers.runs import TRAINER, data_options, expert_arguments, shard
from trainers.data import WeightedText
from trainers.expert.paired import PairOptions
from trainers.expert.train import Result
from trainers.loop import callbacks
from trainers.loop.optimizer import OptimizerOptions
from trainers.loop.trainer import TrainerOptions
from trainers.owner import Domain, find_owner

Train = Callable[..., Result]


def test_the_file_tells_how_it_was_made_and_the_expert_learned(train: Train, tmp_path: Path) -> None:
    result = train("math")
    header = open_expert(result.path).header
    assert header == result.header and header.domain == "math"
    assert (header.training.steps, header.training.tokens) == (12, 12 * 4 * 32)
    assert (header.training.weight_decay, header.training.public_share) == (0.1, 0.25)
    assert header.data.documents == 200
    losses = header.training.losses
    assert losses.own_before is not None and losses.own_after is not None
    assert losses.own_after < losses.own_before - 0.05
    assert 0.5 < (header.training.router_mass or 0) < 1
    assert header.anchor.name == "anchor", "a path is private"
    assert str(tmp_path) not in header.to_json()


def test_the_same_seed_gives_the_same_file_and_another_seed_another(train: Train, tmp_path: Path) -> None:
    digests = [
        train("math", output=tmp_path / f"{name}.pt", seed=seed).header.tensors
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert digests[0] == digests[1] != digests[2]


def stop_at(patch: pytest.MonkeyPatch, step: int) -> list[int]:
    """Has the run told to stop in its step of this number; the list grows by one for each step."""
    calls: list[int] = []
    original = callbacks.TokenProgress.on_train_batch_end

    def stop(self: callbacks.TokenProgress, *args: object) -> None:
        original(self, *args)
        calls.append(1)
        if len(calls) == step:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)  # SLURM sends several

    patch.setattr(callbacks.TokenProgress, "on_train_batch_end", stop)
    return calls


def test_a_run_stopped_by_a_signal_goes_on_bit_for_bit(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = train("math", output=tmp_path / "whole.pt").header.tensors
    calls = stop_at(monkeypatch, 5)
    with pytest.raises(SystemExit) as stopped:
        train("math", output=tmp_path / "cut.pt")
    assert stopped.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "cut.pt").exists() and (tmp_path / "cut.run/last.ckpt").exists()
    kept = torch.load(tmp_path / "cut.run/last.ckpt", weights_only=True)["state_dict"]
    assert kept and all(".mlp.expert." in name or name.endswith("row_D") for name in kept), "frozen weights were saved"
    with pytest.raises(InputError, match=r"other settings \(optimizer .*resume=false"):
        train("math", output=tmp_path / "cut.pt", optimizer=OptimizerOptions(lr=1.0))
    assert train("math", output=tmp_path / "cut.pt").header.tensors == undisturbed
    assert len(calls) == 12
    assert not (tmp_path / "cut.run/last.ckpt").exists()


@pytest.mark.parametrize(("began", "now"), [("32-true", "bf16-mixed"), ("bf16-mixed", "32-true")])
def test_a_run_goes_on_in_the_precision_that_it_began_in(
    train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    began: str,
    now: str,
) -> None:
    """What `auto` means is found out once, also where the other hardware would compute in another precision."""

    def machine(precision: str) -> None:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": precision == "bf16-mixed"})

    auto = replace(TRAINER, precision="auto")
    undisturbed = train("math", output=tmp_path / "whole.pt", trainer=replace(TRAINER, precision=began)).header
    machine(began)
    with monkeypatch.context() as patch:
        stop_at(patch, 5)
        with pytest.raises(SystemExit):
            train("math", output=tmp_path / "cut.pt", trainer=auto)
    machine(now)
    with pytest.raises(InputError, match=f"precision was {began}, now {now}"):
        train("math", output=tmp_path / "cut.pt", trainer=replace(TRAINER, precision=now))
    capsys.readouterr()
    made = train("math", output=tmp_path / "cut.pt", trainer=auto).header
    assert f"run.precision=auto would be {now} here. This run was begun in {began}, and" in capsys.readouterr().err
    assert (made.tensors, made.training.precision) == (undisturbed.tensors, began)
    assert train("math", output=tmp_path / "cut.pt", trainer=auto).header == made, "its own file, requeued elsewhere"


def test_settings_that_were_cut_off_are_named(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at(monkeypatch, 3)
    with pytest.raises(SystemExit):
        train("math")
    (tmp_path / "math.run/settings.json").write_text('{"domain": "ma')
    with pytest.raises(InputError, match=r"settings\.json: damaged\. Start over with resume=false"):
        train("math")


def test_a_run_killed_outright_goes_on_bit_for_bit(
    train: Train, small_anchor: Path, shards: Path, tmp_path: Path
) -> None:
    undisturbed = train("math", output=tmp_path / "whole.pt").header.tensors
    program = f"""
import sys, time
from pathlib import Path
from typing import IO
from dataclasses import replace
from tests.trainers.runs import TRAINER, expert_arguments
from trainers.loop import callbacks
from trainers.expert.train import train_expert
slow = callbacks.TokenProgress.on_train_batch_end
callbacks.TokenProgress.on_train_batch_end = lambda *a: (slow(*a), time.sleep(0.2))
places = [Path({str(small_anchor)!r}), Path({str(shards)!r}), Path({str(tmp_path)!r})]
changes = {{"output": Path({str(tmp_path / "cut.pt")!r}), "trainer": replace(TRAINER, checkpoint_seconds=0.0)}}
train_expert(**expert_arguments("math", *places, **changes))
"""
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    checkpoint = tmp_path / "cut.run/last.ckpt"
    deadline = time.monotonic() + 60
    while not checkpoint.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.5)
    process.kill()
    _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said
    assert checkpoint.exists() and not (tmp_path / "cut.pt").exists()
    options = TrainerOptions(**{**TRAINER.__dict__, "checkpoint_seconds": 0.0})
    assert train("math", output=tmp_path / "cut.pt", trainer=options).header.tensors == undisturbed


def test_a_failed_export_does_not_cost_the_training(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trainers.expert import train as expert

    whole = train("math", output=tmp_path / "whole.pt").header
    with monkeypatch.context() as patch:
        patch.setattr(expert, "write_expert", lambda *_a, **_k: (_ for _ in ()).throw(InputError("disk full")))
        with pytest.raises(InputError, match="disk full"):
            train("math", output=tmp_path / "cut.pt")
    again = train("math", output=tmp_path / "cut.pt").header
    assert (again.tensors, again.training.losses) == (whole.tensors, whole.training.losses)


def test_an_existing_expert_is_kept_unless_told_otherwise(train: Train, tmp_path: Path) -> None:
    path = train("math").path
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"exists already.*overwrite=true"):
        train("math", seed=1)
    assert path.read_bytes() == before
    assert train("math", seed=1, overwrite=True).path.read_bytes() != before


@pytest.mark.parametrize("moment", ["draw_curves", "versions"])
def test_a_run_killed_after_its_file_was_written_is_found_finished(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """As by a requeue in the moment between; at `versions`, before the file, it goes on from the last checkpoint."""
    from trainers.expert import train as expert

    with monkeypatch.context() as patch:
        patch.setattr(expert, moment, None)
        with pytest.raises((TypeError, AttributeError)):
            train("math")
    there, said = (tmp_path / "math.pt").exists(), []
    assert there == (moment == "draw_curves")
    stamp = (tmp_path / "math.pt").stat().st_mtime_ns if there else None
    again = train("math", say=said.append)
    if there:
        assert said[-1] == f"{again.path} was made before by this very run; nothing to do"
        assert (again.header, again.path.stat().st_mtime_ns) == (open_expert(again.path).header, stamp)
    for changes in ({"seed": 1}, {"resume": False}):  # other settings, or to be made anew: not this run's file
        with pytest.raises(InputError, match="exists already"):
            train("math", **changes)
    train("code", output=tmp_path / "other.pt").path.replace(again.path)
    with pytest.raises(InputError, match="exists already"):
        train("math")


def test_a_terminal_inside_a_job_of_several_tasks_is_one_process(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in salloc, Jupyter or an editor on a cluster: SLURM has started no process of this run."""
    for name, value in {"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "jupyter", "SLURM_NTASKS": "4"}.items():
        monkeypatch.setenv(name, value)
    assert train("math").header.training.steps == 12


def test_two_runs_at_once_into_one_file_are_refused(train: Train, tmp_path: Path) -> None:
    (tmp_path / "math.run").mkdir()
    with hold(tmp_path / "math.run/lock"), pytest.raises(InputError, match="another run is working here"):
        train("math")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"domain": "empty"}, r"empty\.jsonl\.gz: no document with text in it"),
        ({"domain": "latin"}, r"latin\.jsonl: line 1: not UTF-8 .*cp1252.*--encoding"),
        ({"domain": "short"}, r"short\.jsonl\.gz: \d+ tokens in 2 documents, one window needs 33"),
        ({"domain": "missing"}, r"missing\.jsonl: no such file"),
        ({"domain": "UPPER"}, r"'UPPER' is no domain name"),
        ({"domain": "public"}, r"'public' is taken"),
        ({"anchor": "nowhere"}, r"anchor\.path=nowhere: no such folder. Make an anchor with"),
    ],
)
def test_unusable_input_is_refused_and_nothing_written(
    train: Train, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    shard(tmp_path / "in/one.jsonl.gz", "math", 1)
    shard(tmp_path / "in/empty.jsonl.gz", "math", 0)
    (tmp_path / "in/latin.jsonl").write_bytes(b'{"text": "caf\xe9"}\n{"text": "x"}\n')
    import gzip

    with gzip.open(tmp_path / "in/short.jsonl.gz", "wt") as file:
        file.write('{"text": "1 2"}\n{"text": "3"}\n')
    files = {
        "empty": "empty.jsonl.gz", "latin": "latin.jsonl", "short": "short.jsonl.gz",
        "missing": "missing.jsonl",
    }  # fmt: skip
    name = change.get("domain", "math")
    changes: dict[str, object] = {"output": tmp_path / "out/expert.pt"}
    changes |= {key: value for key, value in change.items() if key != "domain"}
    if name in files:
        changes["domain"] = Domain("own", train=tmp_path / "in" / files[name])
    elif name != "math":
        changes["domain"] = Domain(name, train=tmp_path / "in/one.jsonl.gz")
    with pytest.raises(InputError, match=message):
        train("math", **changes)
    assert not (tmp_path / "out").exists()


def test_an_anchor_that_is_not_olmo2_is_refused(train: Train, small_anchor: Path, tmp_path: Path) -> None:
    shutil.copytree(small_anchor, tmp_path / "llama")
    config = json.loads((tmp_path / "llama/config.json").read_text()) | {"model_type": "llama"}
    (tmp_path / "llama/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=r"llama: .*'llama'.*'olmo2'.*OLMo-2"):
        train("math", anchor=str(tmp_path / "llama"))


def test_without_public_text_a_public_share_is_refused_and_none_works(
    train: Train, small_anchor: Path, tmp_path: Path
) -> None:
    shutil.copytree(small_anchor, tmp_path / "bare")
    shutil.rmtree(tmp_path / "bare/flexo/public")
    with pytest.raises(InputError, match=r"data\.public_share=0"):
        train("math", anchor=str(tmp_path / "bare"))
    header = train("math", anchor=str(tmp_path / "bare"), data=data_options(tmp_path / "tokens")).header
    assert header.training.losses.public_after is None


def test_an_anchor_that_knows_more_has_its_experts_trained_more_slowly(
    train: Train, small_anchor: Path, tmp_path: Path
) -> None:
    anchor, normuon = shutil.copytree(small_anchor, tmp_path / "anchor"), OptimizerOptions(kind="normuon")
    said = json.loads((anchor / "flexo" / "anchor.json").read_text())
    said["public_text"]["bits_per_byte"] = 1.0
    (anchor / "flexo" / "anchor.json").write_text(json.dumps(said))
    assert train("math", optimizer=normuon, anchor=str(anchor)).header.training.learning_rate == 2.5e-3


def test_the_published_recipe_trains_a_bias(train: Train, tmp_path: Path) -> None:
    header = train("math", model=PairOptions(router_init="mean", router_bias=-0.1)).header
    assert header.tensors["layers.0.router.bias"].shape == (1,)


def test_layers_below_the_first_hold_the_anchors_network(train: Train, small_anchor: Path) -> None:
    anchor = open_anchor(small_anchor)
    layers = anchor.architecture.num_hidden_layers
    result = train("math", model=PairOptions(first_layer=layers - 1, router_bias=-0.1))
    expert = open_expert(result.path)
    for n in range(layers):
        for part in FFN:
            same = torch.equal(expert.tensor(expert_ffn(n, part)), anchor.weights.tensor(anchor_ffn(n, part)))
            assert same == (n < layers - 1), (n, part)
        assert not torch.equal(expert.tensor(ROUTER_WEIGHT.format(n=n)), anchor.public_row(n))
    losses = result.header.training.losses
    assert losses.own_after < losses.own_before, "one layer learns, too"


@pytest.mark.parametrize(
    ("layer", "message"),
    [(99, r"model\.first_layer=99: this anchor has layers 0 to \d+"), (-1, r"expected one of them")],
)
def test_a_first_layer_that_is_none_is_refused(train: Train, tmp_path: Path, layer: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        train("math", model=PairOptions(first_layer=layer), output=tmp_path / "out/expert.pt")
    assert not (tmp_path / "out").exists()


def test_going_on_from_an_expert_keeps_all_its_layers() -> None:
    with pytest.raises(InputError, match=r"model\.first_layer=1 with model\.start: what that expert learned"):
        PairOptions(start=Path("math.pt"), first_layer=1)


def test_best_fit_packing_trains_and_counts_no_padding(train: Train, tmp_path: Path) -> None:
    changes = {"public_share": 0.25, "packing": "best_fit"}
    header = train("math", data=data_options(tmp_path / "tokens", **changes)).header
    plain = train("math", output=tmp_path / "plain.pt").header
    assert header.tensors != plain.tensors
    best, losses = header.training.losses, plain.training.losses
    assert (best.own_before, best.public_before) == (losses.own_before, losses.public_before)
    assert best.own_after is not None and best.own_before is not None and best.own_after < best.own_before - 0.05
    with pytest.raises(InputError, match=r"data\.packing: 'first_fit', expected concat or best_fit"):
        data_options(tmp_path, packing="first_fit")


@pytest.mark.parametrize("left", [None, 1000])
def test_an_anchor_without_whole_moments_is_refused_before_own_text_is_measured(
    train: Train, small_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: int | None
) -> None:
    anchor = Path(shutil.copytree(small_anchor, tmp_path / "anchor"))
    moments = anchor / "flexo" / MOMENTS
    kept = moments.read_bytes()[:left]
    moments.unlink()
    if left:
        moments.write_bytes(kept)
    monkeypatch.setattr("trainers.expert.train.router_input_moments", lambda *_given: pytest.fail("measured"))
    with pytest.raises(InputError, match="cut short|not a whole" if left else r"does not ship.*router_init=mean"):
        train("math", anchor=str(anchor))


@pytest.mark.parametrize(("reads", "noted"), [(0.9, False), (3.0, True)])
def test_text_that_is_read_again_and_again_is_said(
    small_anchor: Path, shards: Path, tmp_path: Path, reads: float, noted: bool
) -> None:
    said: list[str] = []
    arguments = expert_arguments("math", small_anchor, shards, tmp_path, say=said.append)
    run = arguments["run"]
    windows = len(find_owner(arguments["owner"], run).texts(run).own.streams[0].windows)
    data = data_options(tmp_path / "tokens", tokens=round(reads * windows) * 32, public_share=0.0)
    run = replace(run, data=data)
    find_owner(arguments["owner"], run).texts(run)
    found = [line for line in said if line.startswith("note: own text is read 3.0 times")]
    assert len(found) == noted and not any("note:" in line for line in said if line not in found)


def test_an_owner_with_several_sources_trains_on_their_mixture(train: Train, shards: Path, tmp_path: Path) -> None:
    said: list[str] = []
    sources = (WeightedText(shards / "math", 3.0), WeightedText(shards / "code/train.jsonl.gz", 1.0))
    data = data_options(tmp_path / "tokens", public_share=0.25, mixture=sources)
    domain = Domain("both", test=shards / "math/test.jsonl.gz")
    results = [train(domain=domain, data=data, output=tmp_path / f"{name}.pt", say=said.append) for name in ("a", "b")]
    assert results[0].header.tensors == results[1].header.tensors
    assert results[0].header.data.documents == 400
    assert said[0].startswith("reading a mixture of ") and said[0].endswith("math/test.jsonl.gz")
    assert re.search(r"own rows: .*math/train.jsonl.gz 75% \(\S+ epochs\), .*code/train.jsonl.gz 25% ", said[2])
    with pytest.raises(InputError, match=r"both domain\.train=.*domain\.train=null"):
        train("math", data=data, output=tmp_path / "c.pt")


def test_a_full_disk_keeps_the_last_checkpoint(train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train("math", output=tmp_path / "whole.pt").header.tensors
    saves: list[bytes] = []
    save = torch.save
    last = tmp_path / "cut.run/last.ckpt"

    def fill_up(content: object, file: IO[bytes]) -> None:
        if len(saves) == 3:
            file.write(b"half of a checkpoint")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(content, file)
        saves.append(b"")

    options = TrainerOptions(**{**TRAINER.__dict__, "checkpoint_seconds": 0.0})
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"last\.ckpt: the disk is full"):
        patch.setattr(torch, "save", fill_up)
        train("math", output=tmp_path / "cut.pt", trainer=options)
    assert torch.load(last, weights_only=True)["global_step"] == 3
    assert not list(last.parent.glob(".*")), "half of a checkpoint was left behind"
    assert train("math", output=tmp_path / "cut.pt", trainer=options).header.tensors == whole


@pytest.mark.parametrize("moment", ["on_validation_start", "on_train_start"])
def test_ctrl_c_is_not_lightnings_exit_code(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def stop(*_args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(callbacks.TokenProgress, moment, stop)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train("math", output=tmp_path / "new/math.pt")
    assert not (tmp_path / "new").exists()
    signal.signal(signal.SIGINT, before)
