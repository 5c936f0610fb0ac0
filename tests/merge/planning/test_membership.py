"""`flexo-merge` with a merged folder first: who joins, who is replaced, and what becomes of signatures."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import merge.commands.flexo_merge
import merge.commands.flexo_optout
import merge.commands.flexo_sign
from merge.formats.manifest import read_manifest
from merge.tensor_io.json_file import read_json
from tests.merge.tools import call, listing

Make = Callable[..., Path]


@pytest.fixture
def model(make_expert: Make, tmp_path: Path) -> Path:
    """public, math and news."""
    assert (
        call(merge.commands.flexo_merge.main, make_expert("math"), make_expert("news"), "-o", tmp_path / "model") == 0
    )
    return tmp_path / "model"


def test_experts_join_and_are_replaced_by_the_command(
    model: Path, make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    law, newer = make_expert("law", bias=True), make_expert("math", seed=1)
    arguments = [model, law, "--replace", f"math={newer}"]
    assert call(merge.commands.flexo_merge.main, *arguments, "-o", tmp_path / "new", "--dry-run") == 0
    assert call(merge.commands.flexo_merge.main, *arguments, "-o", tmp_path / "new") == 0
    assert "expert 2 news  from the model" in capsys.readouterr().out
    assert (
        call(
            merge.commands.flexo_merge.main,
            newer,
            make_expert("news"),
            law,
            "-o",
            tmp_path / "together",
            "--no-verify",
        )
        == 0
    )
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "new" / name).read_bytes() == (tmp_path / "together" / name).read_bytes()
    manifest = read_manifest(tmp_path / "new")
    assert [entry["domain"] for entry in manifest["experts"]] == ["public", "math", "news", "law"]
    assert [entry["domain"] for entry in manifest["replaced"]] == ["math"] and "left" not in manifest
    assert read_manifest(tmp_path / "together")["tensors"] is None  # nothing was compared, nothing is stated


def test_refusals_write_nothing(
    model: Path, make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    math, law = make_expert("math", seed=1), make_expert("law")
    for arguments, code, message in (
        ([model], 2, "no expert to join it"),
        ([law, "--replace", f"math={math}"], 2, "Give that first"),
        ([model, "--replace", "math"], 2, "DOMAIN=FILE"),
        ([model, "--replace", f"math={math}", "--replace", f"math={law}"], 2, "names a domain twice"),
        ([model, "--replace", f"mth={math}"], 1, "Did you mean 'math'?"),
        ([model, "--replace", f"public={math}"], 1, "It cannot leave"),
        ([model, "--replace", f"news={math}"], 1, "cannot replace 'news'"),
        ([model, math], 1, f"--replace math={math}"),
        ([math.parent, law], 1, "no manifest.json"),
        ([model, model], 1, "a folder, expected an expert file"),
        ([model, law, "--max-shard-size", "5"], 2, "Is the unit missing"),
        ([model, law, "--top-k", "5"], 1, "this merge has 4 experts"),
        ([model, law, "--no-verify", "--trusted-keys", tmp_path], 2, "--no-verify cannot go with it"),
    ):
        assert call(merge.commands.flexo_merge.main, *arguments, "-o", tmp_path / "new") == code
        assert message in " ".join(capsys.readouterr().err.replace("│", " ").split()), message
        assert listing(tmp_path) == {"model"}
    assert call(merge.commands.flexo_merge.main, model, law, "-o", model / "new") == 1
    assert "never changed in place" in capsys.readouterr().err and "new" not in listing(model)


def test_signatures_come_along_and_may_be_asked_for(
    make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography")
    (tmp_path / "trusted").mkdir()
    assert call(merge.commands.flexo_sign.main, "--generate", "--key", tmp_path / "alice.pem") == 0
    shutil.copy(tmp_path / "alice.pub", tmp_path / "trusted")
    math, news, law, poems = (make_expert(domain) for domain in ("math", "news", "law", "poems"))
    assert call(merge.commands.flexo_sign.main, math, law, "--key", tmp_path / "alice.pem") == 0
    trusted = ["--trusted-keys", tmp_path / "trusted"]
    assert call(merge.commands.flexo_merge.main, math, news, "-o", tmp_path / "model", *trusted) == 0
    vouched = read_manifest(tmp_path / "model")["experts"][1]["vouched"]

    required = [*trusted, "--require-signatures"]
    assert call(merge.commands.flexo_merge.main, tmp_path / "model", law, "-o", tmp_path / "new", *required) == 1
    assert "its expert for 'news' was signed by no key in" in capsys.readouterr().err
    assert call(merge.commands.flexo_optout.main, tmp_path / "model", "--drop", "news", "-o", tmp_path / "signed") == 0
    assert call(merge.commands.flexo_merge.main, tmp_path / "signed", poems, "-o", tmp_path / "new", *required) == 1
    assert "poems.pt.sig: no such file" in capsys.readouterr().err and "new" not in listing(tmp_path)
    assert call(merge.commands.flexo_merge.main, tmp_path / "signed", law, "-o", tmp_path / "new", *required) == 0
    assert "signed by alice" in capsys.readouterr().out
    experts = read_manifest(tmp_path / "new")["experts"]
    assert experts[1]["vouched"] == vouched and experts[2]["vouched"]["name"] == "alice"

    assert call(merge.commands.flexo_optout.main, tmp_path / "new", "--drop", "math", "-o", tmp_path / "left") == 0
    (gone,) = [entry for entry in read_manifest(tmp_path / "left")["left"] if entry["domain"] == "math"]
    assert gone["vouched"] == vouched
    altered = (tmp_path / "new" / "manifest.json").read_text().replace(vouched["header"], "0" * 64)
    (tmp_path / "new" / "manifest.json").write_text(altered)
    newer = ["--replace", f"law={law}"]
    assert call(merge.commands.flexo_merge.main, tmp_path / "new", *newer, "-o", tmp_path / "forged", *required) == 1
    assert "its expert for 'math' was signed by no key in" in capsys.readouterr().err


def test_a_rounded_model_stays_rounded_alike(
    make_expert: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rounded to bfloat16 as PyTorch rounds; who joins it later is rounded, and who leaves leaves the same bytes."""
    math, news, law = (make_expert(domain, bias=domain == "law") for domain in ("math", "news", "law"))
    to = ["--dtype", "bfloat16"]
    assert call(merge.commands.flexo_merge.main, math, news, "-o", tmp_path / "full") == 0
    assert call(merge.commands.flexo_merge.main, math, news, "-o", tmp_path / "two", *to) == 0
    assert "rounded from F32" in capsys.readouterr().out
    full, two = (load_file(tmp_path / name / "model.safetensors") for name in ("full", "two"))
    assert all(torch.equal(two[name], tensor.bfloat16()) for name, tensor in full.items())
    assert read_json(tmp_path / "two" / "config.json")["dtype"] == "bfloat16"
    assert call(merge.commands.flexo_merge.main, math, news, law, "-o", tmp_path / "three", *to, "--no-verify") == 0
    assert call(merge.commands.flexo_merge.main, tmp_path / "two", law, "-o", tmp_path / "joined") == 0
    assert call(merge.commands.flexo_merge.main, tmp_path / "full", law, "-o", tmp_path / "late", *to) == 0
    assert call(merge.commands.flexo_optout.main, tmp_path / "three", "--drop", "law", "-o", tmp_path / "left") == 0
    for found, expected in (("joined", "three"), ("late", "three"), ("left", "two")):
        for name in ("model.safetensors", "config.json"):
            assert (tmp_path / found / name).read_bytes() == (tmp_path / expected / name).read_bytes()
        assert read_manifest(tmp_path / found)["converted_from"] == "F32"
    assert (
        call(merge.commands.flexo_merge.main, tmp_path / "two", law, "-o", tmp_path / "new", "--dtype", "float16") == 1
    )
    assert "rounded from F32 to BF16 when it was merged" in capsys.readouterr().err
    assert call(merge.commands.flexo_merge.main, math, "-o", tmp_path / "new", "--dtype", "int8") == 2
