"""The settings of a `config.json` are known with their values, or refused."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import FlexOlmoConfig, GenerationConfig, Olmo2Config

from flexo.errors import ModelFolderError
from merge.formats.architecture import architecture_of, merged_config
from merge.model_files.config_keys import ARCHITECTURE, CARRIED, LEFT_OUT, MIXTURE, RULES, SOFTWARE, check_settings

# as it stands beside the published 7B model, and as transformers 5 writes it
PUBLISHED: dict[str, Any] = {
    "architectures": ["Olmo2ForCausalLM"], "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 100257,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02, "intermediate_size": 11008,
    "max_position_embeddings": 4096, "model_type": "olmo2", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 32, "pad_token_id": 100277, "rms_norm_eps": 1e-06, "rope_scaling": None,
    "rope_theta": 500000, "tie_word_embeddings": False, "torch_dtype": "float32", "transformers_version": "4.47.0",
    "use_cache": False, "vocab_size": 100352,
}  # fmt: skip
STRANGE = r"config: {}\b"


def test_published_configurations_are_taken() -> None:
    check_settings(PUBLISHED, "config")
    check_settings(Olmo2Config(**PUBLISHED).to_dict() | {"architectures": ["Olmo2ForCausalLM"]}, "config")
    check_settings(merged_config(PUBLISHED, 3, 2), "config")


def test_every_setting_of_the_library_is_known() -> None:
    """A setting that a new version of transformers adds is looked at before it is taken."""
    known = ARCHITECTURE | SOFTWARE | LEFT_OUT | CARRIED | RULES.keys() | MIXTURE.keys()
    assert Olmo2Config().to_dict().keys() | FlexOlmoConfig().to_dict().keys() <= known
    assert GenerationConfig._get_default_generation_params().keys() <= known


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": ["sliding_attention", "full_attention"]},
        {"layer_types": []},
        {"sliding_window": 4096},
        {"use_sliding_window": True},
        {"per_layer_config": {"0": {}}},
        {"auto_map": {"AutoModelForCausalLM": "modeling.Mine"}},
        {"quantization_config": {"quant_method": "bitsandbytes"}},
        {"architectures": ["Olmo3ForCausalLM"]},
        {"architectures": ["Olmo2ForCausalLM", "Other"]},
        {"hidden_act": "gelu"},
        {"attention_bias": 1},
        {"attention_dropout": 0.1},
        {"head_dim": 64},
        {"mlp_bias": True},
        {"partial_rotary_factor": 0.5},
        {"dtype": "float8_e4m3fn"},
        {"max_position_embeddings": 0},
        {"max_position_embeddings": None},
        {"max_position_embeddings": -2},
        {"max_position_embeddings": 4096.0},
        {"eos_token_id": []},
        {"eos_token_id": [100257, None]},
        {"eos_token_id": [100257, 100352]},
        {"eos_token_id": True},
        {"pad_token_id": -1},
        {"bos_token_id": 100352},
        {"num_attention_heads": 30},
        {"num_key_value_heads": 5},
        {"clip_qkv": 8.0},
        {"num_experts": 4},
        {"rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn", "factor": 8.0}},
        {"rope_scaling": {"rope_type": 7}},
        {"rope_scaling": "yarn"},
        {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 500000}}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000, "factor": 8.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    ],
    ids=str,
)
def test_what_may_change_the_function_is_refused(change: dict[str, Any]) -> None:
    name = "rope_theta" if change.get("rope_parameters", {}) == {"rope_type": "default", "rope_theta": 1e4} else ""
    with pytest.raises(ModelFolderError, match=STRANGE.format(name or next(iter(change)).replace("key_value", ".*"))):
        check_settings(PUBLISHED | change, "config")
    with pytest.raises(ModelFolderError):
        architecture_of(PUBLISHED | change, "config")


@pytest.mark.parametrize(
    "change",
    [
        {"layer_types": ["full_attention"] * 32, "sliding_window": None, "clip_qkv": None},
        {"max_position_embeddings": -1},
        {"eos_token_id": [100257, 100265]},
        {"head_dim": 128, "pretraining_tp": 1, "mlp_bias": False, "pruned_heads": {}},
        {"_name_or_path": "/home/me/run", "_attn_implementation_autoset": True, "unsloth_version": "2025.1"},
        {"temperature": 0.6, "do_sample": True, "max_length": 20},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0, "partial_rotary_factor": 1.0}},
    ],
    ids=str,
)
def test_what_changes_nothing_is_taken_and_not_carried_on(change: dict[str, Any]) -> None:
    check_settings(PUBLISHED | change, "config")
    made = merged_config(PUBLISHED | change, 3, 2)
    carried = {"eos_token_id", "max_position_embeddings", "rope_parameters"}
    assert made.keys() & change.keys() <= carried
    check_settings(made, "config")
    assert merged_config(PUBLISHED, 3, 2).keys() == made.keys()
