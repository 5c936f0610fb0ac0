"""Soups and Branch-Train-MiX: averages are averages, experts are bits, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from flexo.errors import InputError
from merge.baselines.btx import MixtureOptions, write_mixture
from merge.baselines.soup import average
from merge.commands.flexo_btx import app as btx_app
from merge.commands.flexo_soup import app as soup_app
from merge.formats.anchor_folder import open_anchor
from merge.formats.architecture import anchor_ffn, merged_ffn, merged_router
from merge.formats.manifest import MANIFEST, read_manifest
from merge.formats.merged_folder import open_merged
from merge.formats.model_folder import ModelFolder
from tests.conftest import MakeAnchor


@pytest.fixture(scope="module")
def dense(make_anchor: MakeAnchor, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two dense models of the tiny anchor's shape, `math` and `code`."""
    folders = []
    for seed, name in ((7, "math"), (8, "code")):
        folders.append(make_anchor(seed=seed).rename(tmp_path_factory.mktemp("dense") / name))
    return folders


def test_a_soup_is_the_weighted_average_and_loads(dense: list[Path], tmp_path: Path) -> None:
    arguments = [*map(str, dense), "-o", str(tmp_path / "soup"), "--weights", "1,3"]
    done = CliRunner().invoke(soup_app, arguments)
    assert done.exit_code == 0 and "75.0%" in done.output
    math, code, soup = (ModelFolder(path) for path in (*dense, tmp_path / "soup"))
    assert soup.names == math.names
    for name in soup.names:
        torch.testing.assert_close(soup.tensor(name), 0.25 * math.tensor(name) + 0.75 * code.tensor(name))
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path / "soup")).__name__ == "Olmo2ForCausalLM"
    assert {path.name for path in (tmp_path / "soup").iterdir()} >= {"tokenizer.json", "config.json", "flexo.json"}


def test_an_average_of_one_model_is_that_model(dense: list[Path]) -> None:
    soup = average([dense[0], dense[0]])
    assert all(torch.equal(soup.tensor(name), soup.models[0].tensor(name)) for name in soup.models[0].names)


def test_btx_keeps_networks_and_averages_the_rest(dense: list[Path], tiny_anchor: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(
        btx_app, [*map(str, dense), "--anchor", str(tiny_anchor), "-o", str(tmp_path / "btx"), "--seed", "3"]
    )
    assert done.exit_code == 0, done.output
    merged = open_merged(tmp_path / "btx")
    assert merged.domains == ["public", "math", "code"] and merged.weights.config["num_experts_per_tok"] == 3
    parts = [ModelFolder(path) for path in (tiny_anchor, *dense)]
    for e, part in enumerate(parts):
        for n in range(3):
            expected = part.tensor(anchor_ffn(n, "up_proj"))
            assert torch.equal(merged.weights.tensor(merged_ffn(n, e, "up_proj")), expected)
    name = "model.layers.1.self_attn.q_proj.weight"
    mean = sum(part.tensor(name) for part in parts) / 3
    torch.testing.assert_close(merged.weights.tensor(name), mean)
    AutoModelForCausalLM.from_pretrained(tmp_path / "btx")
    again = [tmp_path / "btx-again", "--rows", tmp_path / "btx"]
    done = CliRunner().invoke(btx_app, [*map(str, (*dense, "--anchor", tiny_anchor, "-o", *again))])
    assert done.exit_code == 0, done.output
    rows = [ModelFolder(tmp_path / name).tensor(merged_router(1)) for name in ("btx", "btx-again")]
    assert torch.equal(*rows) and rows[0].std() > 0


def test_copies_of_the_anchor_are_the_anchor(tiny_anchor: Path, tmp_path: Path) -> None:
    anchor = open_anchor(tiny_anchor)
    write_mixture(anchor, average([tiny_anchor] * 2), ["a", "b"], tmp_path / "up", MixtureOptions(top_k=2))
    dense, mixed = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (tiny_anchor, tmp_path / "up"))
    ids_BT = torch.randint(0, 96, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(mixed(ids_BT).logits, dense(ids_BT).logits, rtol=1e-4, atol=1e-4)


def test_what_does_not_fit_is_refused(
    dense: list[Path], tiny_anchor: Path, make_anchor: MakeAnchor, tmp_path: Path
) -> None:
    wide = make_anchor(intermediate_size=64)
    for folders, weights, message in (
        ([dense[0], wide], None, r"intermediate_size is 64, .* has 48"),
        (dense, [1.0], r"expected 2 numbers"),
        (dense, [0.0, 0.0], r"not all of them 0"),
        (dense, [1.0, -1.0], r"expected 2 numbers from 0 on"),
        ([], None, "no models given"),
        ([tmp_path], None, r"config\.json: no such file"),
    ):
        with pytest.raises(InputError, match=message):
            average(folders, weights)
    anchor, both = open_anchor(tiny_anchor), average(dense)
    for names, top_k, message in (
        (["math", "math"], None, "two specialists of one name"),
        (["math", "Code!"], None, "no domain name"),
        (["math", "code"], 4, r"--top-k 4: this model has 3 experts"),
    ):
        with pytest.raises(InputError, match=message):
            write_mixture(anchor, both, names, tmp_path / "btx", MixtureOptions(top_k=top_k))
    assert list(tmp_path.iterdir()) == []


def test_a_merged_folder_whose_manifest_lies_is_refused(dense: list[Path], tiny_anchor: Path, tmp_path: Path) -> None:
    write_mixture(open_anchor(tiny_anchor), average(dense), ["math", "code"], tmp_path / "btx")
    manifest = read_manifest(tmp_path / "btx")
    import json

    (tmp_path / "btx" / MANIFEST).write_text(json.dumps(manifest | {"experts": manifest["experts"][:2]}))
    with pytest.raises(InputError, match=r"lists 2 experts, config\.json 3"):
        open_merged(tmp_path / "btx")
