"""Which settings a `config.json` may have: an allow-list, because any other may change what a model computes.

OLMo-2 and FlexOlmo compute the same but for the experts. What transformers ignores in one of them, vLLM or a later
version may read: a window, layer types, stretched positions. So a setting is known here with its values, or refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from flexo.errors import ModelFolderError

MOST = 1 << 31
FLOATS = ("float64", "float32", "bfloat16", "float16")
ROPE_THETA = 10000.0  # what Olmo2Config means by leaving it out

ARCHITECTURE = frozenset({  # checked by `architecture_of`, and equal in all that belongs to an anchor
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "tie_word_embeddings", "rms_norm_eps", "rope_theta", "rope_parameters", "rope_scaling",
})  # fmt: skip
SOFTWARE = frozenset({  # what wrote or should run the model; the function is the same
    "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache", "initializer_range",
})  # fmt: skip
LEFT_OUT = frozenset({  # nothing about the model: where it lay, how it was loaded, trained or sampled from
    "_name_or_path", "name_or_path", "_commit_hash", "_from_model_config", "attn_implementation",
    "_attn_implementation", "_attn_implementation_internal", "_attn_implementation_autoset",
    "_experts_implementation", "_experts_implementation_internal", "unsloth_fixed", "unsloth_version", "trl_version",
    "output_attentions", "output_hidden_states", "return_dict", "id2label", "label2id", "num_labels", "problem_type",
    "finetuning_task", "task_specific_params", "tokenizer_class", "prefix", "router_aux_loss_coef",
    # of generation: generation_config.json holds them now
    "assistant_confidence_threshold", "assistant_lookbehind", "bad_words_ids", "begin_suppress_tokens",
    "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty", "epsilon_cutoff", "eta_cutoff", "exponential_decay_length_penalty",
    "forced_bos_token_id", "forced_eos_token_id", "length_penalty", "max_length", "max_new_tokens", "min_length",
    "no_repeat_ngram_size", "num_assistant_tokens", "num_assistant_tokens_schedule", "num_beam_groups", "num_beams",
    "num_return_sequences", "output_scores", "remove_invalid_values", "repetition_penalty",
    "return_dict_in_generate", "suppress_tokens", "target_lookbehind", "temperature", "top_k", "top_p", "typical_p",
    "sep_token_id", "cls_token_id", "mask_token_id", "decoder_start_token_id",
})  # fmt: skip
QUANTISED = "quantization_config"  # left out where a model is adopted whose stored weights are whole


@dataclass(frozen=True)
class Rule:
    """The values that a setting may have, and why no others."""

    fits: Callable[[Any], bool]
    expected: str
    why: str = ""


def _only(value: Any, why: str) -> Rule:
    return Rule(lambda given: type(given) is type(value) and given == value, repr(value), why)


def _none(why: str) -> Rule:
    return Rule(lambda _given: False, "nothing", why)


def _token(given: Any) -> bool:
    return type(given) is int and 0 <= given < MOST


_WINDOW = "its layers do not all attend to the whole text, as those of OLMo-2 and FlexOlmo do (Olmo 3 does so)"
_CODE = "it names Python code of its own, which nobody here runs"
_ZERO = Rule(lambda given: type(given) in (int, float) and given == 0, "0", "FlexOlmo trains without dropout here")
_BOOL = Rule(lambda given: type(given) is bool, "true or false")
_FLOAT = Rule(lambda given: given in FLOATS, f"one of {', '.join(FLOATS)}")
_TOKEN = Rule(_token, "a token's id, or null")

RULES: Mapping[str, Rule] = {
    "hidden_act": _only("silu", "FlexOlmo's experts are gated by it alone"),
    "attention_bias": _only(False, "FlexOlmo has no biases in attention"),
    "attention_dropout": _ZERO,
    "max_position_embeddings": Rule(
        lambda given: type(given) is int and (given == -1 or 0 < given < MOST),
        "a positive whole number, or -1 for none",
    ),
    "initializer_range": Rule(lambda given: type(given) in (int, float) and given >= 0, "a number from 0 on"),
    "use_cache": _BOOL,
    "dtype": _FLOAT,
    "torch_dtype": _FLOAT,
    "transformers_version": Rule(lambda given: isinstance(given, str), "a version"),
    "bos_token_id": _TOKEN,
    "pad_token_id": _TOKEN,
    "eos_token_id": Rule(
        lambda given: _token(given) or (isinstance(given, list) and bool(given) and all(map(_token, given))),
        "a token's id, or a list of them",
    ),
    # what changes nothing at this value, and is not carried on
    "head_dim": Rule(lambda _given: True, ""),  # compared below
    "layer_types": Rule(
        lambda given: isinstance(given, list) and set(map(str, given)) == {"full_attention"},
        "full_attention everywhere", _WINDOW,
    ),
    "sliding_window": _none(_WINDOW),
    "use_sliding_window": _only(False, _WINDOW),
    "max_window_layers": _none(_WINDOW),
    "auto_map": Rule(lambda given: given == {}, "nothing", _CODE),
    "custom_pipelines": Rule(lambda given: given == {}, "nothing", _CODE),
    "per_layer_config": Rule(lambda given: given == {}, "nothing", "its layers differ from each other"),
    "partial_rotary_factor": Rule(lambda given: given in (1, 1.0), "1", "OLMo-2 turns all dimensions"),
    QUANTISED: _none(
        "transformers would load the weights in another way than they are stored; train_anchor.py anchor.path= leaves "
        "the setting out where whole weights are stored"
    ),
    "mlp_bias": _only(False, "FlexOlmo has no biases"),
    "pretraining_tp": _only(1, "OLMo-2 computes its products in one part"),
    "chunk_size_feed_forward": _only(0, "OLMo-2 reads all positions at once"),
    "pruned_heads": Rule(lambda given: given == {}, "nothing", "OLMo-2 has all its heads"),
    "is_encoder_decoder": _only(False, "OLMo-2 is a decoder"),
    "is_decoder": Rule(lambda given: type(given) is bool, "true or false"),
    "add_cross_attention": _only(False, "OLMo-2 is a decoder"),
    "tie_encoder_decoder": _only(False, "OLMo-2 is a decoder"),
    "torchscript": _only(False, "it changes what a model returns"),
    "use_bfloat16": _only(False, "the weights say in which dtype they are"),
    "tf_legacy_loss": _only(False, "it is of TensorFlow"),
}  # fmt: skip
NEVER_NULL = {
    "hidden_act", "attention_bias", "attention_dropout", "max_position_embeddings", "initializer_range", "use_cache",
}  # fmt: skip
CARRIED = ARCHITECTURE | SOFTWARE | {"model_type", "hidden_act", "attention_bias", "attention_dropout"}
CARRIED |= {"max_position_embeddings", "bos_token_id", "eos_token_id", "pad_token_id"}
MIXTURE: Mapping[str, Rule] = {  # of FlexOlmo alone
    "num_experts": Rule(_token, "a positive whole number"),
    "num_experts_per_tok": Rule(_token, "a positive whole number"),
    "norm_topk_prob": _only(False, "the norm behind the experts takes their sum as it is"),
    "output_router_logits": _BOOL,
}


def check_settings(config: Mapping[str, Any], where: str) -> None:
    """Raises `ModelFolderError` for a setting that is not known to leave the function of an OLMo-2 or FlexOlmo alone.

    Args:
        config: of `config.json`, with the `model_type` olmo2 or flex_olmo.
        where: begins the message.
    """
    mixture = config.get("model_type") == "flex_olmo"
    rules = {**RULES, **MIXTURE} if mixture else RULES
    for name, value in config.items():
        if name == "model_type" or name in ARCHITECTURE | LEFT_OUT or (value is None and name not in NEVER_NULL):
            continue
        if name == "architectures":
            _check_class(value, "FlexOlmoForCausalLM" if mixture else "Olmo2ForCausalLM", where)
        elif name not in rules:
            raise ModelFolderError(
                f"{where}: {name[:60]} is {_shown(value)}, a setting that {config.get('model_type')} is not known to "
                "have. It may change what the model computes. If it does not, delete it from config.json."
            )
        elif not rules[name].fits(value):
            why = f": {rules[name].why}" if rules[name].why else ""
            raise ModelFolderError(f"{where}: {name} is {_shown(value)}, expected {rules[name].expected}{why}.")
    _check_numbers(config, where)
    plain_rope(config, where)


def plain_rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Rotary settings under the names of transformers 5, whichever of its three generations of names was used.

    Raises `ModelFolderError` for any but plain ones.
    """
    bases = [] if config.get("rope_theta") is None else [config["rope_theta"]]
    for name in ("rope_parameters", "rope_scaling"):
        given = config.get(name) or {}
        if not isinstance(given, dict):
            raise ModelFolderError(f"{where}: {name} is {_shown(given)}, expected a JSON object.")
        plain = {"rope_type": "default", "type": "default", "partial_rotary_factor": 1}
        rest = {key: value for key, value in given.items() if value is not None and key != "rope_theta"}
        if any(plain.get(key) != value for key, value in rest.items()):
            raise ModelFolderError(
                f"{where}: {name} is {_shown(given)}, expected rope_type default and rope_theta alone. With positions "
                "that are stretched, or that differ by layer (YaRN, linear, Olmo 3), it is another model than OLMo-2."
            )
        bases += [given["rope_theta"]] if "rope_theta" in given else []
    if any(base != bases[0] for base in bases):
        raise ModelFolderError(
            f"{where}: rope_theta is given as {' and as '.join(map(_shown, bases))}. Versions of transformers differ "
            "in which they take. Delete the wrong one."
        )
    return {"rope_type": "default", "rope_theta": bases[0] if bases else ROPE_THETA}


def carried(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that describe a checked OLMo-2, for a model that is made from it."""
    return {name: value for name, value in config.items() if name in CARRIED}


def without_left_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that say nothing about the model."""
    return {name: value for name, value in config.items() if name not in LEFT_OUT}


def _check_class(value: Any, expected: str, where: str) -> None:
    if value != [expected]:
        raise ModelFolderError(
            f"{where}: architectures is {_shown(value)}, expected [{expected!r}]. Other classes compute something "
            "else, whatever model_type says."
        )


def _check_numbers(config: Mapping[str, Any], where: str) -> None:
    """Heads divide the hidden size, and ids are of the vocabulary; that all are numbers, `architecture_of` says."""
    vocabulary = config.get("vocab_size")
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        ids = config.get(name)
        for token in ids if isinstance(ids, list) else [ids]:
            if token is not None and type(vocabulary) is int and token >= vocabulary:
                raise ModelFolderError(f"{where}: {name} is {token}, expected an id below vocab_size {vocabulary}.")
    hidden, heads, size = (config.get(name) for name in ("hidden_size", "num_attention_heads", "head_dim"))
    groups = config.get("num_key_value_heads") or heads
    if not (type(hidden) is int and type(heads) is int and type(groups) is int and heads > 0 and groups > 0):
        return
    if hidden % heads or heads % groups:
        raise ModelFolderError(
            f"{where}: num_attention_heads is {heads}, expected a divisor of hidden_size {hidden} and a multiple of "
            f"num_key_value_heads {groups}."
        )
    if size is not None and size != hidden // heads:
        raise ModelFolderError(
            f"{where}: head_dim is {_shown(size)}, expected {hidden // heads}, hidden_size by num_attention_heads."
        )


def _shown(value: Any) -> str:
    return repr(value)[:80]
