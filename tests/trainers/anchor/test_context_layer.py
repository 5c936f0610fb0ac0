"""The context layer: what the wider anchor computes, what training leaves as it is, what its features are."""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, Olmo2ForCausalLM, PreTrainedModel

from flexmix.documents.corpus import find_split
from flexmix.packing.attention import model_inputs
from flexmix.packing.loaders import EvalLoader
from flexmix.packing.windows import NO_LABEL
from flexo.errors import InputError
from merge.formats.anchor_folder import about, open_anchor
from merge.formats.architecture import FFN, expert_ffn
from merge.formats.expert_file import open_expert
from merge.planning.merge_plan import execute
from tests.merge.tools import even_plan
from tests.trainers.runs import data_options, expert_arguments, train_small_anchor
from trainers.anchor.context_layer import (
    FALL,
    NEAR,
    QUIET,
    STRENGTH,
    TOPIC,
    VOICE,
    add_context_layer,
    held_out_loss,
    token_features,
)
from trainers.anchor.train import AnchorOptions
from trainers.data import plain_windows
from trainers.expert.cost_plan import Load, first_layer_for, plan_cost, whole_flops_per_token
from trainers.expert.paired import PairOptions
from trainers.expert.train import train_expert
from trainers.full_finetune import WholeOptions, matching_tokens

D, WIDTH, GROUP = 32, 8, 2  # of the small anchor: hidden size, width of a head, attention heads on a key-value head
NEW = WIDTH * GROUP


def loader(anchor: Path, folder: Path, split: str = "train") -> EvalLoader:
    data = data_options(folder / "tokens")
    return EvalLoader(plain_windows(find_split(open_anchor(anchor).reference, split), anchor, data), 4, 32)


@pytest.fixture
def model(small_anchor: Path) -> PreTrainedModel:
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(small_anchor, dtype=torch.float32)
    return loaded


def topical_batches(vocabulary: int, seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """Documents of one of two topics each: three of four of its words are of its own half of the vocabulary."""
    draw = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(48):
        own_B1 = torch.randint(2, (8, 1), generator=draw)
        half_BT = torch.where(torch.rand(8, 32, generator=draw) < 0.75, own_B1, 1 - own_B1)
        ids_BT = half_BT * (vocabulary // 2) + torch.randint(vocabulary // 2, (8, 32), generator=draw)
        labels_BT = torch.cat([ids_BT[:, 1:], torch.full((8, 1), NO_LABEL)], 1)
        positions_BT = torch.arange(32).expand(8, 32)
        batches.append({"input_ids": ids_BT, "labels": labels_BT, "position_ids": positions_BT})
    return batches


@pytest.fixture
def wide(model: PreTrainedModel, small_anchor: Path, tmp_path: Path) -> PreTrainedModel:
    return add_context_layer(model, 1, loader(small_anchor, tmp_path))


def inputs_of(module: torch.nn.Module, model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a module of the model is given for a batch."""
    seen: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _module, args: seen.append(args[0]))
    with torch.no_grad():
        model(**model_inputs(batch, model.config._attn_implementation), use_cache=False)
    hook.remove()
    return seen[0]


def loss_with_topic(factor: float, wide: PreTrainedModel, batches: Any) -> float:
    """Loss with so many times what the head takes of the context."""
    changed = deepcopy(wide)
    with torch.no_grad():
        changed.lm_head.weight[:, D:] *= factor
    return held_out_loss(changed, batches)


def test_the_wider_model_computes_what_the_given_one_did(
    model: PreTrainedModel, wide: PreTrainedModel, small_anchor: Path, tmp_path: Path
) -> None:
    config, held_out = wide.config, loader(small_anchor, tmp_path, "test")
    assert (config.hidden_size, config.num_attention_heads, config.num_key_value_heads) == (D + NEW, 4 + GROUP, 3)
    assert config.hidden_size == config.num_attention_heads * WIDTH  # vLLM divides; it reads no head_dim
    assert config.num_hidden_layers == model.config.num_hidden_layers + 1
    assert abs(held_out_loss(wide, held_out) - held_out_loss(model, held_out)) < 1e-2
    batch = next(iter(held_out))
    context_BTR = inputs_of(wide.model.layers[0].mlp, wide, batch)[..., D:]
    for before, after in zip(model.model.layers, wide.model.layers[1:], strict=True):
        x_BTD, y_BTD = inputs_of(before.mlp, model, batch), inputs_of(after.mlp, wide, batch)
        assert (y_BTD[..., :D] - x_BTD).norm() < 1e-4 * x_BTD.norm()
        assert torch.equal(y_BTD[..., D:], context_BTR)
    assert abs(loss_with_topic(0, wide, held_out) - held_out_loss(model, held_out)) < 2e-3


def test_an_expert_speaks_along_the_features_of_tokens_and_the_head_reads_a_topic(
    wide: PreTrainedModel, small_anchor: Path, tmp_path: Path
) -> None:
    last, head, norm = wide.model.layers[-1], wide.lm_head.weight.detach(), wide.model.norm.weight.detach()
    said = slice(D + 1, D + NEW)
    assert not last.mlp.down_proj.weight[D:].any()  # the given network says nothing there
    assert not head[:, D].any()  # the constant is about no token
    share = head[:, said].norm(dim=1)
    assert torch.allclose(share, share[0].expand(len(share)), rtol=1e-4)
    batch = next(iter(loader(small_anchor, tmp_path)))
    rms = inputs_of(wide.model.norm, wide, batch).square().mean().sqrt()
    y_ND = torch.randn(500, NEW - 1, generator=torch.Generator().manual_seed(0))
    added_NV = y_ND * last.post_feedforward_layernorm.weight[said] * norm[said] / rms @ head[:, said].T
    assert abs(float(added_NV.detach().std()) - VOICE) < 0.05

    # this text has no topics that help, so the share is the least: in nats, under what the given model expects
    x_ND = inputs_of(wide.lm_head, wide, batch)[batch["labels"] != NO_LABEL]
    topic_NV = x_ND[:, said] @ head[:, said].T
    p_NV = (x_ND @ head.T - topic_NV).softmax(-1)
    spread_N = (p_NV * topic_NV.square()).sum(-1) - (p_NV * topic_NV).sum(-1).square()
    assert float(spread_N.mean().sqrt()) == pytest.approx(TOPIC, rel=1e-3)


def test_a_topic_that_helps_is_taken_as_far_as_it_helps(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens alike
    batches = topical_batches(model.config.vocab_size)
    wide = add_context_layer(model, 1, batches)
    held_out = topical_batches(model.config.vocab_size, seed=1)
    minus, none, found, thrice = (loss_with_topic(factor, wide, held_out) for factor in (-1, 0, 1, 3))
    assert found < none - 0.01
    assert found < min(minus, thrice)
    tried = batches[:1]  # where it was measured, it is at the bottom
    less, more = (loss_with_topic(factor, wide, tried) for factor in (0.99, 1.01))
    gain = abs(loss_with_topic(0, wide, tried) - loss_with_topic(1, wide, tried))
    assert abs(more - less) / 2e-2 < 0.1 * gain + 1e-4


def test_text_of_one_document_over_and_over_has_no_topics(model: PreTrainedModel) -> None:
    first, second, *_ = topical_batches(model.config.vocab_size)
    same = {name: part[:1].expand(8, -1) for name, part in second.items()}
    wide = add_context_layer(model, 1, [first, same, same])
    assert not wide.lm_head.weight[:, D:].any()
    assert all(parameter.isfinite().all() for parameter in wide.parameters())


def test_a_head_that_is_the_embedding_stays_as_it_was(
    model: PreTrainedModel, small_anchor: Path, tmp_path: Path
) -> None:
    config = deepcopy(model.config)
    config.tie_word_embeddings = True
    torch.manual_seed(0)
    tied: PreTrainedModel = Olmo2ForCausalLM(config).eval()
    wide = add_context_layer(tied, 1, loader(small_anchor, tmp_path))
    assert (
        not wide.model.norm.weight[D:].any() and not wide.model.layers[-1].post_feedforward_layernorm.weight[D:].any()
    )
    held_out = loader(small_anchor, tmp_path, "test")
    assert abs(held_out_loss(wide, held_out) - held_out_loss(tied, held_out)) < 2e-3


def test_the_new_dimensions_hold_a_mean_of_the_document_so_far(
    wide: PreTrainedModel, model: PreTrainedModel, small_anchor: Path, tmp_path: Path
) -> None:
    batch = next(iter(loader(small_anchor, tmp_path, "test")))
    found_BTR = inputs_of(wide.model.layers[0].mlp, wide, batch)[..., D:].detach()
    quiet = QUIET * model.get_input_embeddings().weight.square().mean().sqrt()
    quiet_BTR = wide.get_input_embeddings()(batch["input_ids"])[..., D:].detach()
    assert torch.allclose(quiet_BTR[..., 0], quiet)  # the constant
    length = (found_BTR - quiet_BTR)[0, -1].norm()
    state = inputs_of(model.model.layers[0].mlp, model, batch).square().mean().sqrt()
    assert 0.9 < length / (STRENGTH * state * NEW**0.5) < 1.1
    frequencies = 10_000.0 ** (-torch.arange(0, WIDTH, 2) / WIDTH)
    slow = frequencies[frequencies * NEAR < 1]
    distance_T = torch.arange(batch["labels"].shape[1]).flip(0)
    weight_T = (FALL * math.log(1e4) / 4 * torch.cos(distance_T[:, None] * slow).sum(1)).exp()
    assert 1 <= len(slow) < 4 and weight_T[-2] > 0.98 * weight_T[-1] and weight_T[0] < 0.9 * weight_T[-1]
    for b, positions_T in enumerate(batch["position_ids"].tolist()):
        for t, position in enumerate(positions_T):
            first = max(0, t - position)
            mean_R = weight_T[first - t - 1 :] @ quiet_BTR[b, first : t + 1]
            context_R, found_R = length * mean_R / mean_R.norm(), found_BTR[b, t] - quiet_BTR[b, t]
            assert (found_R - context_R).norm() < 0.02 * length, "another document is in it"
    assert (batch["position_ids"] == 0).sum() > len(batch["input_ids"])  # there were documents to keep apart


def test_features_tell_documents_apart_and_leave_out_what_chance_gives() -> None:
    draw = torch.Generator().manual_seed(0)
    topics_2V = torch.ones(2, 12)
    topics_2V[0, :3] = topics_2V[1, 3:6] = 40.0  # two topics of three words each, and six words of both
    topic_N = torch.arange(60) % 2
    words_NT = torch.multinomial(topics_2V[topic_N], 400, replacement=True, generator=draw)
    counts_NV = torch.zeros(60, 12).scatter_add_(1, words_NT, torch.ones(60, 400))
    features_VK = token_features(counts_NV.to_sparse(), 20)
    share_V = counts_NV.sum(0).double() / counts_NV.sum()
    found = int(features_VK.any(0).sum())
    assert 1 <= found <= 11 and not features_VK[:, found:].any()  # of twelve words there are no more
    assert torch.allclose(share_V @ features_VK, torch.zeros(20).double(), atol=1e-9)
    assert torch.allclose(share_V @ features_VK[:, :found].square(), torch.ones(found).double())
    sides = features_VK[:6, 0].sign()
    assert sides[:3].unique().numel() == sides[3:].unique().numel() == 1 and sides[0] != sides[3]
    assert features_VK[:6, 0].abs().min() > 3 * features_VK[6:, 0].abs().max()


def test_training_every_weight_leaves_the_new_layer_without_a_network(
    wide: PreTrainedModel, small_anchor: Path, tmp_path: Path
) -> None:
    optimizer = torch.optim.AdamW(wide.parameters(), lr=1e-2, weight_decay=0.1)
    batch = next(iter(loader(small_anchor, tmp_path)))
    first = wide.model.layers[0]
    value = first.self_attn.v_proj.weight.clone()
    for _ in range(3):
        optimizer.zero_grad()
        wide(**model_inputs(batch, wide.config._attn_implementation), labels=batch["input_ids"]).loss.backward()
        optimizer.step()
    assert not first.post_feedforward_layernorm.weight.any() and not any(part.any() for part in first.mlp.parameters())
    assert not torch.equal(first.self_attn.v_proj.weight, value)  # what it averages learns
    for layer in wide.model.layers[1:]:  # heads beside the given ones do nothing
        assert not layer.self_attn.q_norm.weight[4 * WIDTH :].any() and layer.self_attn.q_norm.weight[: 4 * WIDTH].all()
        assert not layer.self_attn.k_norm.weight[2 * WIDTH :].any()


def test_an_anchor_with_context_heads_is_trained_against_and_merged(
    small_anchor: Path, shards: Path, tmp_path: Path
) -> None:
    wide = tmp_path / "wide"
    train_small_anchor(shards / "public", wide, anchor=AnchorOptions(path=str(small_anchor), context_heads=1))
    said = about(wide)["context_heads"]
    assert said["heads"] == 1 and abs(said["loss_after"] - said["loss_before"]) < 1e-2
    arguments: dict[str, Any] = expert_arguments("math", wide, shards, tmp_path)
    made = train_expert(**arguments)
    assert made is not None and made.header.anchor.architecture.hidden_size == D + NEW
    assert [open_anchor(path).first_layer for path in (small_anchor, wide)] == [0, 1]
    assert [first_layer_for(str(path)) for path in (small_anchor, wide, "hf://allenai/OLMo-2-1124-7B")] == [0, 1, 0]
    expert = open_expert(made.path)
    changed = [any(expert.tensor(expert_ffn(n, part)).any() for part in FFN) for n in range(3)]
    assert changed == [False, True, True]  # in the context layer it is the anchor's network, which is zero
    arch, data = made.header.anchor.architecture, arguments["run"].data
    mixture = WholeOptions("mixture", match=(made.path,))
    spent = made.header.training.tokens * plan_cost(arch, Load(0, data.length, 1, first_layer=1)).flops_per_token
    each = whole_flops_per_token(arch, data.length, mixture.active)
    assert matching_tokens(open_anchor(wide), mixture, data) == round(spent / each)
    gate = PairOptions(router_init="public", train_expert=False, standardise=True, start=made.path)
    phatgoose = train_expert(
        **expert_arguments("math", wide, shards, tmp_path, model=gate, output=tmp_path / "gate.pt")
    )
    assert phatgoose is not None
    first, second = (open_expert(phatgoose.path).tensor(f"layers.{n}.router.weight") for n in (0, 1))
    public = open_anchor(wide)
    assert torch.equal(first, public.public_row(0)) and not torch.equal(second, public.public_row(1))
    execute(even_plan([made.path], wide), tmp_path / "merged")
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    anchor = AutoModelForCausalLM.from_pretrained(wide, dtype=torch.float32)
    batch = next(iter(loader(small_anchor, tmp_path, "test")))
    for theirs, own in zip(merged.model.layers, anchor.model.layers, strict=True):
        new = slice(D, D + NEW)
        assert theirs.mlp.gate.weight[1, new].abs().max() > 0  # the row reads the context
        # and the context is the same whatever the experts do
        assert torch.equal(inputs_of(theirs.mlp, merged, batch)[..., new], inputs_of(own.mlp, anchor, batch)[..., new])


def test_a_new_anchor_gets_them(shards: Path, tmp_path: Path) -> None:
    options = AnchorOptions(
        vocab_size=320, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=64, reference_bytes=20_000, context_heads=2,
    )  # fmt: skip
    train_small_anchor(shards / "public", tmp_path / "new", anchor=options)
    assert open_anchor(tmp_path / "new").architecture.hidden_size == 32 + 16


def test_what_cannot_be_is_refused(
    model: PreTrainedModel, wide: PreTrainedModel, small_anchor: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="has a context layer already"):
        add_context_layer(wide, 1, [])
    with pytest.raises(InputError, match="context_heads=-1: expected"):
        AnchorOptions(context_heads=-1)
    batch = next(iter(loader(small_anchor, tmp_path)))
    alone = {name: part.clone() for name, part in batch.items()} | {"position_ids": torch.zeros_like(batch["labels"])}
    with pytest.raises(InputError, match="too few documents"):
        add_context_layer(model, 1, [alone])
