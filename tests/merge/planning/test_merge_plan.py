from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flexo.errors import ExpertFileError, InputError, ModelFolderError
from merge.formats.anchor_folder import about, open_anchor
from merge.formats.architecture import FFN, expert_ffn
from merge.formats.expert_file import open_expert, write_expert
from merge.formats.manifest import read_manifest
from merge.planning.membership import replan
from merge.planning.merge_options import MergeOptions
from merge.planning.merge_plan import execute, plan
from merge.tensor_io.json_file import write_json
from tests.merge.tiny import expert_header, expert_values
from tests.merge.tools import even_plan, listing

Make = Callable[..., Path]
DOMAINS = ["math", "news", "code", "law", "poems"]
X = torch.randint(0, 96, (2, 24), generator=torch.Generator().manual_seed(0))


def merged(paths: list[Path], output: Path, top_k: int | None = None, **options: Any) -> Path:
    execute(even_plan(paths, top_k=top_k, **options), output)
    return output


def logits(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        found: torch.Tensor = model(X).logits
    return found


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        part = load_file(path)
        assert not found.keys() & part.keys()
        found |= part
    return found


def same_bits(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


# --- what a merge is


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("tied", [False, True])
def test_experts_that_were_never_trained_give_the_anchor(
    make_anchor: Make, make_expert: Make, tmp_path: Path, count: int, tied: bool
) -> None:
    anchor = make_anchor(tie_word_embeddings=tied)
    experts = [make_expert(domain, anchor=anchor, trained=False, bias=domain == "news") for domain in DOMAINS[:count]]
    expected = logits(anchor)
    assert expected.std() > 0.5  # not an anchor that says nothing
    for top_k in range(1, count + 2):
        found = logits(merged(experts, tmp_path / str(top_k), top_k))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_trained_experts_change_the_model_and_top_k_counts(
    tiny_anchor: Path, make_expert: Make, tmp_path: Path
) -> None:
    experts = [make_expert(domain) for domain in DOMAINS[:2]]
    found = [logits(merged(experts, tmp_path / str(k), k)) for k in (1, 2, 3)] + [logits(tiny_anchor)]
    for i, left in enumerate(found):
        for right in found[:i]:
            assert (left - right).abs().max() > 1e-2


def test_a_trained_pair_is_the_softmax_of_two(tiny_anchor: Path, make_expert: Make, tmp_path: Path) -> None:
    """The layer that the merge promises, computed by hand from the files: p_0 FFN_0(x) + p_1 FFN_1(x)."""
    from transformers import AutoModelForCausalLM

    path = make_expert("math", bias=True)
    folder = merged([path], tmp_path / "m", 2)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expert, anchor = open_expert(path), open_anchor(tiny_anchor)
    x_TD = torch.randn(7, 32, generator=torch.Generator().manual_seed(1))
    for n in range(3):
        row, bias = expert.tensor(f"layers.{n}.router.weight"), expert.tensor(f"layers.{n}.router.bias")
        own = x_TD @ row + bias * (x_TD @ anchor.router[f"layers.{n}.bias_direction"])
        p_TE = torch.stack([x_TD @ anchor.public_row(n), own], -1).softmax(-1)
        parts = [
            {part: anchor.weights.tensor(f"model.layers.{n}.mlp.{part}.weight") for part in FFN},
            {part: expert.tensor(f"layers.{n}.{part}.weight") for part in FFN},
        ]
        y_TED = torch.stack(
            [
                (torch.nn.functional.silu(x_TD @ w["gate_proj"].T) * (x_TD @ w["up_proj"].T)) @ w["down_proj"].T
                for w in parts
            ],
            1,
        )
        with torch.no_grad():
            found = model.model.layers[n].mlp(x_TD[None])
        found = found[0] if isinstance(found, tuple) else found
        torch.testing.assert_close(found.view(7, 32), (p_TE[..., None] * y_TED).sum(1), rtol=1e-4, atol=1e-4)


def test_another_order_permutes_experts_and_nothing_else(make_expert: Make, tmp_path: Path) -> None:
    experts = [make_expert(domain, bias=domain == "code") for domain in DOMAINS[:3]]
    order = [2, 0, 1]
    first = weights(merged(experts, tmp_path / "a"))
    second = weights(merged([experts[i] for i in order], tmp_path / "b"))
    index = [0, *(i + 1 for i in order)]  # where each expert of the second merge is in the first
    moved = {}
    for name, tensor in second.items():
        if ".mlp.gate." in name:
            assert torch.equal(tensor, first[name][index])
            moved[name] = first[name]
        elif ".experts." in name:
            before, e, after = name.partition(".experts.")[0], *name.partition(".experts.")[2].split(".", 1)
            moved[f"{before}.experts.{index[int(e)]}.{after}"] = tensor
        else:
            moved[name] = tensor
    assert same_bits(moved, first)
    left, right = read_manifest(tmp_path / "a"), read_manifest(tmp_path / "b")
    by_domain = [{e["domain"]: e | {"index": 0} for e in manifest["experts"]} for manifest in (left, right)]
    assert by_domain[0] == by_domain[1]
    assert (tmp_path / "a" / "config.json").read_bytes() == (tmp_path / "b" / "config.json").read_bytes()


@pytest.mark.parametrize("tied", [False, True])
def test_names_and_bits_on_disk(make_anchor: Make, make_expert: Make, tmp_path: Path, tied: bool) -> None:
    folder = make_anchor(tie_word_embeddings=tied)
    experts = [make_expert(domain, anchor=folder) for domain in DOMAINS[:2]]
    found = weights(merged(experts, tmp_path / "m"))
    anchor = weights(folder)
    expected = {"model.embed_tokens.weight", "model.norm.weight"} | (set() if tied else {"lm_head.weight"})
    for n in range(3):
        layer = f"model.layers.{n}."
        expected |= {
            f"{layer}self_attn.{x}.weight" for x in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm")
        }
        expected |= {f"{layer}post_attention_layernorm.weight", f"{layer}post_feedforward_layernorm.weight"}
        expected |= {f"{layer}mlp.gate.weight"}
        expected |= {f"{layer}mlp.experts.{e}.{part}.weight" for e in range(3) for part in FFN}
        for part in FFN:
            assert torch.equal(found[f"{layer}mlp.experts.0.{part}.weight"], anchor[f"{layer}mlp.{part}.weight"])
            for e, path in enumerate(experts, 1):
                own = open_expert(path).tensor(f"layers.{n}.{part}.weight")
                assert torch.equal(found[f"{layer}mlp.experts.{e}.{part}.weight"], own)
        rows = [open_anchor(folder).public_row(n)]
        rows += [open_expert(path).tensor(f"layers.{n}.router.weight") for path in experts]
        assert torch.equal(found[f"{layer}mlp.gate.weight"], torch.stack(rows))
    assert found.keys() == expected
    for name in anchor.keys() & found.keys():
        assert torch.equal(anchor[name], found[name])


def test_transformers_saves_the_same_tensors_again(make_expert: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = merged([make_expert(domain, bias=True) for domain in DOMAINS[:2]], tmp_path / "m")
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "again")
    assert same_bits(weights(folder), weights(tmp_path / "again"))
    first, again = (json.loads((f / "config.json").read_text()) for f in (folder, tmp_path / "again"))
    for name in first.keys() - {"rope_theta"}:
        assert again[name] == first[name], name


def test_nothing_is_reported_missing_or_new_by_transformers(make_expert: Make, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = merged([make_expert("math")], tmp_path / "m")
    loaded: Any = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(loaded[1][kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "The cat sat on the mat."
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text and tokenizer.eos_token == "<|endoftext|>"


def test_sharding_changes_files_and_nothing_else(make_expert: Make, tmp_path: Path) -> None:
    experts = [make_expert("math")]
    told: list[float] = []
    whole = tmp_path / "whole"
    execute(even_plan(experts), whole, told.append)
    sharded = merged(experts, tmp_path / "sharded", max_shard_size=30_000)
    assert sum(told) == even_plan(experts).nbytes
    assert same_bits(weights(whole), weights(sharded)) and torch.equal(logits(whole), logits(sharded))
    shards = listing(sharded) - listing(whole)
    assert len(shards) > 3 and listing(whole) - listing(sharded) == {"model.safetensors"}
    assert all((sharded / name).stat().st_size < 40_000 for name in shards)


# --- what goes with the weights


def test_the_exact_set_of_files(tiny_anchor: Path, make_expert: Make, tmp_path: Path) -> None:
    folder = merged([make_expert("math")], tmp_path / "m")
    assert listing(folder) == {
        "README.md", "config.json", "generation_config.json", "manifest.json", "model.safetensors", "tokenizer.json",
        "tokenizer_config.json",
    }  # fmt: skip
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        assert (folder / name).read_bytes() == (tiny_anchor / name).read_bytes()


@pytest.mark.parametrize("tied", [False, True])
def test_values_of_the_anchors_configuration_are_carried(
    make_anchor: Make, make_expert: Make, tmp_path: Path, tied: bool
) -> None:
    from transformers import AutoConfig

    given = {
        "rms_norm_eps": 3e-6,
        "bos_token_id": 3,
        "eos_token_id": 5,
        "pad_token_id": 7,
        "max_position_embeddings": 99,
    }
    rope = {"rope_type": "default", "rope_theta": 777.0}
    anchor = make_anchor(tie_word_embeddings=tied, rope_parameters=rope, num_key_value_heads=1, **given)
    folder = merged([make_expert("math", anchor=anchor)], tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    loaded = AutoConfig.from_pretrained(folder).to_dict()
    for found in (config, loaded):
        assert {name: found[name] for name in given} == given
        assert found["tie_word_embeddings"] is tied and found["num_key_value_heads"] == 1
        assert found["rope_parameters"] == rope and found["vocab_size"] == 96
    assert config["rope_theta"] == 777.0 and config["architectures"] == ["FlexOlmoForCausalLM"]
    torch.testing.assert_close(
        logits(merged([make_expert("news", anchor=anchor, trained=False)], tmp_path / "n")),
        logits(anchor),
        rtol=0,
        atol=1e-5,
    )


def test_the_manifest_says_whose_expert_is_whose(tiny_anchor: Path, make_expert: Make, tmp_path: Path) -> None:
    paths = [make_expert("math"), make_expert("news")]
    manifest = read_manifest(merged(paths, tmp_path / "m", 2))
    assert [(e["index"], e["domain"]) for e in manifest["experts"]] == [(0, "public"), (1, "math"), (2, "news")]
    assert manifest["top_k"] == 2 and manifest["router_bias_folding_rms"] is None
    assert manifest["anchor"]["digest"] == about(tiny_anchor)["digest"]
    header = open_expert(paths[0]).header.to_dict()
    entry = manifest["experts"][1]
    for name in ("title", "licence", "contact", "training", "data", "privacy", "software"):
        assert entry[name] == header[name]
    assert entry["file"] == "math.pt" and entry["digest"] != manifest["experts"][2]["digest"]
    assert "| 2 | news |" in (tmp_path / "m" / "README.md").read_text()


def test_a_merge_can_be_repeated_to_the_byte(
    make_expert: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "0")
    paths = [make_expert("math")]
    first, again = (merged(paths, tmp_path / folder / "m") for folder in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (again / path.name).read_bytes()
    assert read_manifest(first)["made"] == "1970-01-01T00:00:00Z"


@pytest.mark.parametrize("text", [None, "{}", '{"format": "flexo.manifest", "version": 2, "experts": []}', "["])
def test_a_folder_without_a_manifest_of_ours_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ModelFolderError, match=r"manifest"):
        read_manifest(tmp_path)


# --- router bias


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_bias_is_folded_into_the_row_and_reported(
    make_anchor: Make, make_expert: Make, tmp_path: Path, dtype: torch.dtype
) -> None:
    folder = make_anchor(dtype=dtype)
    paths = [make_expert("math", anchor=folder, bias=True), make_expert("news", anchor=folder)]
    made = even_plan(paths)
    execute(made, tmp_path / "m")
    anchor, found = open_anchor(folder), weights(tmp_path / "m")
    for n in range(3):
        math, news = (open_expert(path).tensor(f"layers.{n}.router.weight").float() for path in paths)
        bias = open_expert(paths[0]).tensor(f"layers.{n}.router.bias").float()
        folded = math + bias * anchor.router[f"layers.{n}.bias_direction"]
        rows = torch.stack([anchor.public_row(n).float(), folded, news])
        gate = found[f"model.layers.{n}.mlp.gate.weight"]
        assert gate.dtype == dtype and torch.equal(gate, rows.to(dtype))
        assert (folded - math).abs().max() > 1e-3
    errors = [anchor.router[f"layers.{n}.bias_error"].item() for n in range(3)]
    assert made.bias_errors() == read_manifest(tmp_path / "m")["router_bias_folding_rms"] == errors


def test_public_text_may_count_for_several_domains(make_anchor: Make, make_expert: Make, tmp_path: Path) -> None:
    folder = make_anchor()
    paths = [make_expert("math", anchor=folder, bias=True), make_expert("news", anchor=folder)]
    made = plan(paths)
    assert made.public_weight == 4  # of a new merge
    execute(made, tmp_path / "m")
    anchor, found, manifest = open_anchor(folder), weights(tmp_path / "m"), read_manifest(tmp_path / "m")
    for n in range(3):
        (math, news), v_D = (
            (open_expert(path).tensor(f"layers.{n}.router.weight") for path in paths),
            anchor.router[f"layers.{n}.bias_direction"],
        )
        bias = open_expert(paths[0]).tensor(f"layers.{n}.router.bias")
        rows = torch.stack([anchor.public_row(n), math + (bias - log(4)) * v_D, news - log(4) * v_D])
        torch.testing.assert_close(found[f"model.layers.{n}.mlp.gate.weight"], rows)
    assert manifest["public_weight"] == 4 and manifest["router_bias_folding_rms"] == made.bias_errors() is not None
    execute(replan(tmp_path / "m", drop=["math"]), tmp_path / "left")
    execute(even_plan(paths[1:], public_weight=4), tmp_path / "never")
    assert (tmp_path / "left/model.safetensors").read_bytes() == (tmp_path / "never/model.safetensors").read_bytes()
    back_in = MergeOptions(readmit=("math",), reason="a test")
    joined = replan(tmp_path / "left", back_in, join=paths[:1], anchor_path=folder)
    assert joined.public_weight == 4
    execute(joined, tmp_path / "back")
    back = weights(tmp_path / "back")["model.layers.1.mlp.gate.weight"]
    assert torch.equal(back, found["model.layers.1.mlp.gate.weight"][[0, 2, 1]])
    with pytest.raises(InputError, match=r"made with --public-weight 4\. .*merge the expert files again"):
        replan(tmp_path / "left", MergeOptions(public_weight=1), join=paths[:1], anchor_path=folder)
    for weight in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"--public-weight .*: expected a positive number"):
            even_plan(paths, public_weight=weight)
    lost = _named_anchor(paths[0], tmp_path / "lost.pt", "nowhere")
    with pytest.raises(ExpertFileError, match=r"joins a folder with the public weight 4, .*--anchor FOLDER"):
        replan(tmp_path / "left", back_in, join=[lost])
    for value in (0, -1, "4", True, None, [4]):
        write_json(tmp_path / "left/manifest.json", read_manifest(tmp_path / "left") | {"public_weight": value})
        with pytest.raises(ModelFolderError, match=r"public_weight is .* expected a positive number"):
            replan(tmp_path / "left", back_in, join=paths[:1], anchor_path=folder)


# --- who leaves


@pytest.mark.parametrize("drop", [["math"], ["news"], ["law"], ["math", "law"]])
@pytest.mark.parametrize("size", [30_000, 10**9])
def test_who_leaves_was_never_there(make_expert: Make, tmp_path: Path, drop: list[str], size: int) -> None:
    """First, middle and last, with biases, several shards: every file but manifest and card is the same to the byte."""
    paths = [make_expert(domain, bias=domain != "code") for domain in DOMAINS[:4]]
    stay = [path for path in paths if path.stem not in drop]
    whole = merged(paths, tmp_path / "whole", max_shard_size=size)
    never = merged(stay, tmp_path / "never", max_shard_size=size)
    execute(replan(whole, drop=drop), tmp_path / "left")
    assert listing(tmp_path / "left") == listing(never)
    for name in listing(never) - {"manifest.json", "README.md"}:
        assert (tmp_path / "left" / name).read_bytes() == (never / name).read_bytes(), name
    left, expected = read_manifest(tmp_path / "left"), read_manifest(never)
    assert [entry["domain"] for entry in left.pop("left")] == drop
    left.pop("made"), expected.pop("made")
    assert left == expected


def _named_anchor(path: Path, target: Path, name: str) -> Path:
    """A copy of an expert file whose header calls its anchor `name`."""
    expert = open_expert(path)
    header = replace(expert.header, anchor=replace(expert.header.anchor, name=name))
    write_expert(target, header, {tensor: expert.tensor(tensor) for tensor in expert.tensors})
    return target


def test_who_joins_or_is_replaced_was_always_there(
    tiny_anchor: Path, make_anchor: Make, make_expert: Make, tmp_path: Path
) -> None:
    math, news, law = (make_expert(domain, bias=domain == "law") for domain in [*DOMAINS[:2], "law"])
    newer = make_expert("math", seed=1)
    both = merged([math, news], tmp_path / "both")
    execute(replan(both, join=[law], anchor_path=tiny_anchor), tmp_path / "joined")
    execute(replan(both, replace={"math": newer}), tmp_path / "newer")
    for found, paths in (("joined", [math, news, law]), ("newer", [newer, news])):
        expected = merged(paths, tmp_path / f"{found}-together")
        for name in ("model.safetensors", "tokenizer.json"):
            assert (tmp_path / found / name).read_bytes() == (expected / name).read_bytes()
    lost = _named_anchor(law, tmp_path / "lost.pt", "nowhere")
    assert replan(both, join=[law]).anchor and replan(both, join=[news], drop=["news"]).anchor  # where the header says
    with pytest.raises(ExpertFileError, match=r"has a router bias, .* --anchor FOLDER"):
        replan(both, join=[lost])
    with pytest.raises(ModelFolderError, match="not the anchor of"):
        replan(both, join=[lost], anchor_path=make_anchor(seed=7))
    with pytest.raises(ExpertFileError, match="has an expert for 'math' already"):
        replan(both, join=[newer])
    with pytest.raises(ExpertFileError, match="cannot replace 'news'"):
        replan(both, replace={"news": newer})


# --- top-k


def test_top_k_defaults_to_all_but_at_most_four(make_expert: Make) -> None:
    paths = [make_expert(domain) for domain in DOMAINS]
    assert [even_plan(paths[:count]).top_k for count in (1, 2, 3, 4, 5)] == [2, 3, 4, 4, 4]
    for top_k in (1, 6):
        assert even_plan(paths, top_k=top_k).top_k == top_k
    for top_k in (0, -1, 7):
        with pytest.raises(InputError, match=rf"--top-k {top_k}: this merge has 6 experts, .* give 1 to 6"):
            even_plan(paths, top_k=top_k)


# --- what does not belong together


def test_no_files_and_repeats_are_refused(make_expert: Make, tmp_path: Path) -> None:
    path = make_expert("math")
    with pytest.raises(InputError, match="no expert files given"):
        even_plan([])
    link = tmp_path / "link.pt"
    link.symlink_to(path)
    for again in (path, link, path.parent / ".." / path.parent.name / path.name):
        with pytest.raises(ExpertFileError, match="was given 2 times"):
            even_plan([path, again])
    twin = tmp_path / "twin.pt"
    os.link(path, twin)
    with pytest.raises(ExpertFileError, match=r"math\.pt, .*twin\.pt: 2 experts for the domain 'math'"):
        even_plan([path, make_expert("news"), twin])


def test_experts_of_another_anchor_are_refused_with_the_reason(
    tiny_anchor: Path, make_anchor: Make, make_expert: Make, tmp_path: Path
) -> None:
    path = make_expert("math")
    header, values = open_expert(path).header, expert_values("math", open_anchor(tiny_anchor))
    for field, what in [("tokenizer_digest", "tokenizer"), ("router_digest", "public router"), ("digest", "anchor")]:
        zeros: dict[str, Any] = {field: "0" * 64}
        other = replace(header, anchor=replace(header.anchor, **zeros))
        write_expert(tmp_path / f"{field}.pt", other, values)
        with pytest.raises(ExpertFileError, match=rf"{field}\.pt: trained against the {what} 000000000000, "):
            even_plan([make_expert("news"), tmp_path / f"{field}.pt"])
    others: list[tuple[dict[str, Any], str]] = [
        ({"num_hidden_layers": 2}, "its anchor has num_hidden_layers 3, .* has 2"),
        ({"hidden_size": 16}, "its anchor has hidden_size 32, .* has 16"),
        ({"rms_norm_eps": 1e-5}, "its anchor has rms_norm_eps 1e-06, .* has 1e-05"),
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 5.0}},
            "its anchor has rope_theta 12345.0, .* has 5.0",
        ),
        ({"seed": 9}, "trained against the public router"),
    ]
    for change, message in others:
        with pytest.raises(ExpertFileError, match=rf"math\.pt: {message}"):
            even_plan([path], make_anchor(**change))
    with pytest.raises(ExpertFileError, match="its anchor has vocab_size 96"):
        even_plan([path, make_expert("news")], make_anchor(vocab_size=97))


def test_other_weights_or_another_tokenizer_of_the_same_size_are_refused(
    tiny_anchor: Path, make_expert: Make, tmp_path: Path
) -> None:
    path = make_expert("math")
    anchor = tmp_path / "anchor"
    shutil.copytree(tiny_anchor, anchor)
    even_plan([path], anchor)
    tokenizer = (anchor / "tokenizer.json").read_bytes()
    (anchor / "tokenizer.json").write_bytes(tokenizer + b" ")
    with pytest.raises(ExpertFileError, match="trained against the tokenizer"):
        even_plan([path], anchor)
    (anchor / "tokenizer.json").write_bytes(tokenizer)
    tensors = weights(anchor)
    changed = tensors["model.norm.weight"].clone()
    changed[0] += 1e-6
    (anchor / "model.safetensors").unlink()
    save_file(tensors | {"model.norm.weight": changed}, anchor / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"trained against the anchor .* \(theirs was called "):
        execute(even_plan([path], anchor), tmp_path / "m")
    assert listing(tmp_path) == {"anchor"}


def test_an_expert_in_another_dtype_is_refused(tiny_anchor: Path, tmp_path: Path) -> None:
    anchor = open_anchor(tiny_anchor)
    values = {name: tensor.bfloat16() for name, tensor in expert_values("math", anchor).items()}
    write_expert(tmp_path / "math.pt", expert_header("math", anchor), values)
    with pytest.raises(ExpertFileError, match=r"has dtype BF16, the anchor's tensors are F32"):
        even_plan([tmp_path / "math.pt"])


def test_the_anchor_is_found_from_here_and_from_beside_the_file(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = open_anchor(tiny_anchor)
    shutil.copytree(tiny_anchor, tmp_path / "home" / "anchor")
    values = expert_values("math", opened)

    def named(name: str, path: Path) -> Path:
        header = expert_header(path.stem, opened)
        write_expert(path, replace(header, anchor=replace(header.anchor, name=name)), values)
        return path

    (tmp_path / "else").mkdir()
    monkeypatch.chdir(tmp_path / "else")
    beside = named("anchor", tmp_path / "home" / "math.pt")
    above = named("anchor", tmp_path / "home" / "experts" / "news.pt")
    for path in (beside, above):
        assert even_plan([path]).base.folder.resolve() == (tmp_path / "home" / "anchor").resolve()
    lost = [
        named(name, tmp_path / "else" / f"{i}.pt") for i, name in enumerate(["gone", "x" * 2000, "/", "allenai/OLMo"])
    ]
    for path in lost:
        with pytest.raises(
            ModelFolderError, match=r"names the anchor .* which is not here. Say where it is with --anchor"
        ):
            even_plan([path])
    assert even_plan([*lost, above]).domains == ["public", "0", "1", "2", "3", "news"]
    monkeypatch.chdir(tmp_path / "home")
    assert even_plan([lost[0]], Path("anchor")).top_k == 2


def test_damage_is_found_on_the_way_and_nothing_stays(tiny_anchor: Path, make_expert: Make, tmp_path: Path) -> None:
    path = make_expert("math", path=tmp_path / "in" / "math.pt")
    needle = open_expert(path).tensor("layers.2.down_proj.weight").numpy().tobytes()
    data = bytearray(path.read_bytes())
    data[data.index(needle)] ^= 1
    path.write_bytes(data)
    made = even_plan([path])
    with pytest.raises(ExpertFileError, match=r"layers\.2\.down_proj\.weight does not match the sha256"):
        execute(made, tmp_path / "new" / "m")
    assert listing(tmp_path) == {"in"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_flood_of_subnormal_numbers_is_refused_on_the_way_and_a_few_are_not(
    make_anchor: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """More than a hundredth of an expert's weight; the anchor is the coordinator's own."""
    folder = make_anchor(dtype=dtype)
    anchor, name = open_anchor(folder), expert_ffn(1, "up_proj")
    values = expert_values("math", anchor)
    tensors = weights(folder)
    tensors["model.embed_tokens.weight"][:] = 1e-40
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    anchor = open_anchor(folder)
    for count, taken in ((15, True), (16, False)):  # of 1536
        flooded = values[name].clone()
        flooded.view(-1)[:100] = 0  # no subnormal numbers
        flooded.view(-1)[100 : 100 + count] = -1e-40
        path = tmp_path / f"{count}.pt"
        with monkeypatch.context() as patch:
            patch.setattr("merge.formats.expert_file.MAX_SUBNORMAL", 1.0)
            write_expert(path, expert_header("math", anchor), values | {name: flooded})
        if taken:
            execute(even_plan([path]), tmp_path / "m")
            continue
        with pytest.raises(ExpertFileError, match=rf"{path}: 1% of {name} are subnormal numbers"):
            execute(even_plan([path]), tmp_path / "new" / "m")
        with pytest.raises(ExpertFileError, match=r"1% of .* are subnormal numbers"):
            write_expert(path, expert_header("math", anchor), values | {name: flooded}, replace=True)
    assert listing(tmp_path) == {"15.pt", "16.pt", "m"}


def test_what_is_no_number_is_never_rounded_to_one(
    tiny_anchor: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This NaN would become -0."""
    anchor, name = open_anchor(tiny_anchor), expert_ffn(1, "up_proj")
    values = expert_values("math", anchor)
    values[name].view(torch.int32)[3, 4] = 0x7FFFFFFF
    with monkeypatch.context() as patch:
        patch.setattr("merge.tensor_io.value_checks.all_finite", lambda *_: True)
        write_expert(tmp_path / "math.pt", expert_header("math", anchor), values)
    for dtype, verify in ((None, True), ("bfloat16", True), ("bfloat16", False)):
        with pytest.raises(ExpertFileError, match=rf"{name} holds NaN or infinite values"):
            execute(even_plan([tmp_path / "math.pt"], dtype=dtype), tmp_path / "m", verify=verify)
    assert listing(tmp_path) == {"math.pt"}


def test_without_checks_as_many_threads_copy(
    make_expert: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Leaving work out must not cost time."""
    threads: list[int] = []

    class Counted(ThreadPoolExecutor):
        def __init__(self, workers: int) -> None:
            threads.append(workers)
            super().__init__(workers)

    monkeypatch.setattr("merge.tensor_io.shard_writer.ThreadPoolExecutor", Counted)
    monkeypatch.setattr("merge.tensor_io.shard_writer.usable_cores", lambda: 2)
    made = even_plan([make_expert("math")])
    for verify in (True, False):
        execute(made, tmp_path / str(verify), verify=verify)
    assert threads == [2, 2]
    assert (tmp_path / "True/model.safetensors").read_bytes() == (tmp_path / "False/model.safetensors").read_bytes()


def test_an_occupied_output_is_refused_before_anything_is_read(make_expert: Make, tmp_path: Path) -> None:
    made = even_plan([make_expert("math")])
    told: list[float] = []
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        execute(made, tmp_path / "m", advance=told.append)
    with pytest.raises(InputError, match="a file stands"):
        execute(made, tmp_path / "m" / "mine", advance=told.append)
    assert not told and listing(tmp_path / "m") == {"mine"}


def test_a_disk_that_fills_up_leaves_nothing(make_expert: Make, small_disk: Path) -> None:
    with pytest.raises(InputError, match=r"new/m: the disk is full\. Nothing of it was kept"):
        merged([make_expert("math")], small_disk / "new" / "m")
    assert listing(small_disk) == set()
