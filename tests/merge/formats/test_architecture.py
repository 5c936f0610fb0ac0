from __future__ import annotations

from typing import Any

import pytest

from flexo.errors import ModelFolderError
from merge.formats.architecture import anchor_tensors, architecture_of, expert_tensors, merged_config, merged_tensors

CONFIG: dict[str, Any] = {
    "model_type": "olmo2",
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_tables_are_what_transformers_writes(tied: bool, kv_heads: int) -> None:
    from transformers import FlexOlmoConfig, FlexOlmoForCausalLM, Olmo2Config, Olmo2ForCausalLM

    config = CONFIG | {"tie_word_embeddings": tied, "num_key_value_heads": kv_heads}
    arch = architecture_of(config, "x")
    anchor = Olmo2ForCausalLM(Olmo2Config(**config, pad_token_id=None, eos_token_id=None)).state_dict()
    if tied:
        del anchor["lm_head.weight"]
    assert anchor_tensors(arch) == {name: tuple(tensor.shape) for name, tensor in anchor.items()}
    flex = FlexOlmoConfig(**merged_config(config, experts=3, top_k=2))
    merged = {name: tuple(tensor.shape) for name, tensor in FlexOlmoForCausalLM(flex).state_dict().items()}
    ours = merged_tensors(arch, 3)
    for n in range(2):  # in memory transformers fuses the experts of a layer; on disk they lie apart
        assert merged.pop(f"model.layers.{n}.mlp.experts.gate_up_proj") == (3, 96, 32)
        assert merged.pop(f"model.layers.{n}.mlp.experts.down_proj") == (3, 32, 48)
        for e in range(3):
            assert ours.pop(f"model.layers.{n}.mlp.experts.{e}.gate_proj.weight") == (48, 32)
            assert ours.pop(f"model.layers.{n}.mlp.experts.{e}.up_proj.weight") == (48, 32)
            assert ours.pop(f"model.layers.{n}.mlp.experts.{e}.down_proj.weight") == (32, 48)
    if tied:
        del merged["lm_head.weight"]
    assert ours == merged


def test_the_tensors_of_an_expert() -> None:
    assert expert_tensors(architecture_of(CONFIG | {"num_hidden_layers": 1}, "x"), bias=True) == {
        "layers.0.gate_proj.weight": (48, 32),
        "layers.0.up_proj.weight": (48, 32),
        "layers.0.down_proj.weight": (32, 48),
        "layers.0.router.weight": (32,),
        "layers.0.router.bias": (1,),
    }


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "llama"},
        {"model_type": None},
        {"model_type": ["olmo2"]},
        {"attention_bias": True},
        {"hidden_size": None},
        {"hidden_size": 32.0},
        {"hidden_size": True},
        {"hidden_size": -32},
        {"vocab_size": 2**31},
        {"num_key_value_heads": 0},
        {"tie_word_embeddings": "no"},
        {"rms_norm_eps": 0},
        {"rms_norm_eps": float("nan")},
        {"rope_theta": "10000"},
        {"rope_theta": 10**400},
        {"rope_parameters": "default"},
        {"rope_parameters": {"rope_theta": None}},
    ],
)
def test_other_or_broken_configurations_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ModelFolderError, match=r"anchor/x: ") as refusal:
        architecture_of(CONFIG | change, "anchor/x")
    name = next(iter(change))
    assert name in str(refusal.value) or "rope_theta" in str(refusal.value)


def test_a_refused_architecture_learns_which_would_do() -> None:
    with pytest.raises(ModelFolderError, match=r"'llama', expected 'olmo2' \(Olmo2ForCausalLM: allenai/OLMo-2-0425-1B"):
        architecture_of(CONFIG | {"model_type": "llama"}, "x")


@pytest.mark.parametrize(
    ("given", "rope"),
    [
        ({}, {"rope_type": "default", "rope_theta": 10000.0}),
        ({"rope_theta": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
        ({"rope_theta": 7.0, "rope_scaling": None}, {"rope_type": "default", "rope_theta": 7.0}),
        ({"rope_theta": 7.0, "rope_scaling": {"type": "default"}}, {"rope_type": "default", "rope_theta": 7.0}),
        ({"rope_parameters": {"rope_theta": 9.0}, "rope_theta": 9.0}, {"rope_type": "default", "rope_theta": 9.0}),
    ],
)
def test_rotary_settings_of_all_generations_are_carried(given: dict[str, Any], rope: dict[str, Any]) -> None:
    config = merged_config(CONFIG | given, 2, 2)
    assert config["rope_parameters"] == rope and config["rope_theta"] == rope["rope_theta"]
    assert "rope_scaling" not in config


def test_values_left_out_mean_what_olmo2_means_by_it() -> None:
    from transformers import FlexOlmoConfig, Olmo2Config

    anchor, merged = Olmo2Config(**CONFIG), FlexOlmoConfig(**merged_config(CONFIG, 3, 2))
    ours = {"num_experts", "num_experts_per_tok", "norm_topk_prob", "output_router_logits", "router_aux_loss_coef"}
    names = {"transformers_version", "model_type", "architectures", "pad_token_id", "eos_token_id", "bos_token_id"}
    left, right = anchor.to_dict(), merged.to_dict()
    assert left.keys() | ours | names == right.keys() | ours | names | (right.keys() & {"rope_theta"})
    for name in left.keys() - names:
        assert left[name] == right[name], name
    assert (merged.pad_token_id, merged.eos_token_id, merged.bos_token_id) == (None, None, None)


def test_the_configuration_of_a_merge() -> None:
    ids = {
        "bos_token_id": 1,
        "eos_token_id": [2, 3],
        "pad_token_id": 4,
        "max_position_embeddings": 77,
        "dtype": "bfloat16",
    }
    config = merged_config(CONFIG | ids | {"transformers_version": "4.40", "torch_dtype": "float32"}, 5, 3)
    assert config.items() >= ids.items()
    assert config["architectures"] == ["FlexOlmoForCausalLM"] and config["model_type"] == "flex_olmo"
    assert (config["num_experts"], config["num_experts_per_tok"], config["norm_topk_prob"]) == (5, 3, False)
    assert "transformers_version" not in config
