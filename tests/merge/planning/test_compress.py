"""`flexo-compress`: how near a smaller file is, that a merge forms the same bits of it, and what it says of itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import merge.commands.flexo_merge
from flexo.errors import InputError
from merge.commands.flexo_compress import main
from merge.formats.anchor_folder import open_anchor
from merge.formats.architecture import FFN, anchor_ffn, expert_ffn
from merge.formats.expert_file import ExpertFile, open_expert, write_expert
from merge.planning.compress import RankBudget, compress
from tests.merge.planning.test_privacy import private
from tests.merge.tiny import LAYERS, STATED, expert_values
from tests.merge.tools import call, listing

Make = Callable[..., Path]
WEIGHTS = [(n, part) for n in range(LAYERS) for part in FFN]


def differences(expert: ExpertFile, anchor: Path) -> dict[str, torch.Tensor]:
    """What training added to each weight, of a file of whole weights."""
    weights = open_anchor(anchor).weights
    return {
        expert_ffn(n, part): expert.tensor(expert_ffn(n, part)).float() - weights.tensor(anchor_ffn(n, part)).float()
        for n, part in WEIGHTS
    }


@pytest.mark.parametrize("container", ["pt", "safetensors"])
def test_a_merge_forms_the_bits_that_a_file_of_whole_weights_has(
    make_expert: Make, tiny_anchor: Path, tmp_path: Path, container: str
) -> None:
    math, small, whole = make_expert("math"), tmp_path / f"small.{container}", tmp_path / "whole.pt"
    made = compress(math, small, RankBudget(rank=4))
    compress(math, tmp_path / "other.pt", RankBudget(rank=4), whole=True)
    assert compress(small, whole, whole=True).kept == 1 and made.kept < 0.5
    assert made.ranks == {expert_ffn(n, part): 4 for n, part in WEIGHTS}
    same = open_expert(whole).header
    assert same.version == 1 and same == open_expert(tmp_path / "other.pt").header
    assert same.network == made.header.network != open_expert(math).header.network and same.digest != made.header.digest
    news = make_expert("news")
    for name in (small, whole):
        assert call(merge.commands.flexo_merge.main, name, news, "-o", tmp_path / f"m-{name.stem}") == 0
        assert (
            call(merge.commands.flexo_merge.main, name, news, "-o", tmp_path / f"h-{name.stem}", "--dtype", "bfloat16")
            == 0
        )
    for kind in ("m", "h"):
        one, other = ((tmp_path / f"{kind}-{name}/model.safetensors").read_bytes() for name in ("small", "whole"))
        assert one == other
    assert (
        call(
            merge.commands.flexo_merge.main,
            tmp_path / "m-whole",
            make_small(make_expert("law"), tmp_path),
            "-o",
            tmp_path / "joined",
        )
        == 0
    )


def make_small(expert: Path, folder: Path) -> Path:
    compress(expert, folder / f"small-{expert.name}", RankBudget(rank=2))
    return folder / f"small-{expert.name}"


def test_what_is_kept_are_the_largest_singular_values(make_expert: Make, tiny_anchor: Path, tmp_path: Path) -> None:
    math = open_expert(make_expert("math"))
    before = differences(math, tiny_anchor)
    compress(math.path, tmp_path / "cut.pt", RankBudget(rank=5), whole=True)
    after = differences(open_expert(tmp_path / "cut.pt"), tiny_anchor)
    for name, difference in before.items():
        u, s, v = torch.linalg.svd(difference, full_matrices=False)
        torch.testing.assert_close(after[name], (u[:, :5] * s[:5]) @ v[:5], rtol=1e-3, atol=1e-4)


def test_a_budget_goes_where_most_was_learned(make_expert: Make, tiny_anchor: Path, tmp_path: Path) -> None:
    plain = open_expert(make_expert("math"))
    tensors = {name: plain.tensor(name) for name in plain.tensors}
    public = open_anchor(tiny_anchor).weights
    for n, part in WEIGHTS:
        weight = public.tensor(anchor_ffn(n, part))
        tensors[expert_ffn(n, part)] = weight + n * (tensors[expert_ffn(n, part)] - weight)  # nothing in layer 0
    write_expert(tmp_path / "math.pt", plain.header, tensors)
    kept = compress(tmp_path / "math.pt", tmp_path / "kept.pt", RankBudget(keep=0.9))
    assert 0.9 <= kept.kept < 0.92
    low, middle, high = (kept.ranks[expert_ffn(n, "up_proj")] for n in range(LAYERS))
    assert low == 1 and low < middle < high
    assert kept.nbytes == (tmp_path / "kept.pt").stat().st_size < kept.nbytes_before
    for container in ("pt", "safetensors"):
        sized = compress(tmp_path / "math.pt", tmp_path / f"sized.{container}", RankBudget(size=40_000))
        assert 20_000 < sized.nbytes <= 40_000
    everything = compress(tmp_path / "math.pt", tmp_path / "all.pt", RankBudget(keep=1.0))
    assert everything.kept == pytest.approx(1, abs=1e-6)


def test_an_output_that_stands_is_refused_before_the_work_or_replaced(make_expert: Make, tmp_path: Path) -> None:
    path = tmp_path / "math.pt"
    before = path.write_bytes(make_expert("math").read_bytes())
    with pytest.raises(InputError, match="this file exists already"):
        compress(path, path, RankBudget(rank=1), progress=lambda *_: pytest.fail("worked for nothing"))
    made = compress(path, path, RankBudget(rank=1), overwrite=True)
    assert (made.nbytes_before, made.nbytes) == (before, path.stat().st_size) and made.nbytes < before


def test_an_expert_that_has_learnt_nothing_keeps_nothing_whole(
    make_expert: Make, tiny_anchor: Path, tmp_path: Path
) -> None:
    plain, anchor = open_expert(make_expert("math")), open_anchor(tiny_anchor)
    write_expert(tmp_path / "math.pt", plain.header, expert_values("math", anchor, trained=False))
    made = compress(tmp_path / "math.pt", tmp_path / "small.pt", RankBudget(keep=0.9))
    assert made.kept == 1 and set(made.ranks.values()) == {1}


def test_a_guarantee_stays_and_what_was_measured_does_not(make_expert: Make, tmp_path: Path) -> None:
    path = private(make_expert("math"), tmp_path / "math.pt")
    before = open_expert(path).header
    after = compress(path, tmp_path / "small.pt", RankBudget(rank=1)).header
    assert after == open_expert(tmp_path / "small.pt").header
    assert after.version == 2 and after.factored and after.privacy == STATED
    training = dataclasses.replace(
        before.training,
        losses=dataclasses.replace(before.training.losses, own_after=None, public_after=None),
        router_mass=None,
    )
    assert after == dataclasses.replace(before, training=training, tensors=after.tensors)
    rows = [name for name in before.tensors if ".router." in name]
    assert [after.tensors[name] for name in rows] == [before.tensors[name] for name in rows]


def test_a_signature_is_not_carried_over(make_expert: Make, tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    from merge.formats.signing import make_key, sign

    (tmp_path / "trusted").mkdir()
    make_key(tmp_path / "alice.pem")[0].rename(tmp_path / "trusted/alice.pub")
    math = make_expert("math").rename(tmp_path / "math.pt")
    sign([math], tmp_path / "alice.pem")
    assert call(main, math, "--rank", 2, "-o", tmp_path / "small.pt") == 0
    assert not (tmp_path / "small.pt.sig").exists()
    (tmp_path / "small.pt.sig").write_bytes((tmp_path / "math.pt.sig").read_bytes())
    arguments = [
        tmp_path / "small.pt",
        "-o",
        tmp_path / "m",
        "--require-signatures",
        "--trusted-keys",
        tmp_path / "trusted",
    ]
    assert call(merge.commands.flexo_merge.main, *arguments) == 1
    sign([tmp_path / "small.pt"], tmp_path / "alice.pem")
    assert call(merge.commands.flexo_merge.main, *arguments) == 0


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (lambda: RankBudget(), "exactly one of --rank, --size and --keep"),
        (lambda: RankBudget(rank=2, keep=0.5), "exactly one of --rank, --size and --keep"),
        (lambda: RankBudget(rank=0), "--rank 0: expected a positive number"),
        (lambda: RankBudget(keep=1.5), "--keep 1.5: expected a share"),
        (lambda: RankBudget(size=100), r"--size 100: the smallest file of this expert takes \d+ bytes"),
        (lambda: None, "or --whole alone"),
    ],
)
def test_budgets_that_are_none_are_refused(
    make_expert: Make, tmp_path: Path, budget: Callable[[], RankBudget], said: str
) -> None:
    math, before = make_expert("math"), listing(tmp_path)
    with pytest.raises(InputError, match=said):
        compress(math, tmp_path / "small.pt", budget())
    assert listing(tmp_path) == before


def test_a_rounded_base_does_not_take_factors(
    make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = make_small(make_expert("math"), tmp_path)
    assert call(merge.commands.flexo_merge.main, make_expert("news"), "-o", tmp_path / "m", "--dtype", "bfloat16") == 0
    assert call(merge.commands.flexo_merge.main, tmp_path / "m", small, "-o", tmp_path / "n") == 1
    assert "holds factors" in capsys.readouterr().err and not (tmp_path / "n").exists()
