"""Architecture numbers of OLMo-2 and FlexOlmo, and the one table of tensor names from anchor and expert to merge.

    anchor                                   expert file                  merged model (expert e, public is 0)
    model.layers.N.mlp.gate_proj.weight      layers.N.gate_proj.weight    model.layers.N.mlp.experts.e.gate_proj.weight
    flexo/public_router: layers.N.router...  layers.N.router.weight       model.layers.N.mlp.gate.weight, row e
    everything else                          -                            the same name

Shapes: D hidden size, F intermediate size, H heads, G key-value heads, C head size, V vocabulary, E experts.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from flexo.errors import ModelFolderError
from merge.model_files.config_keys import MIXTURE, carried, check_settings, plain_rope

FFN = ("gate_proj", "up_proj", "down_proj")
ROUTER_WEIGHT = "layers.{n}.router.weight"
ROUTER_BIAS = "layers.{n}.router.bias"

# what Olmo2Config means by leaving a value out; FlexOlmoConfig has other defaults, so they are written out
RMS_NORM_EPS = 1e-5
MAX_POSITIONS = 2048

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Architecture:
    """The numbers of an OLMo-2 decoder that an expert must share with its anchor; sizes first, then two constants."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    tie_word_embeddings: bool
    rms_norm_eps: float
    rope_theta: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def architecture_of(config: Mapping[str, Any], where: str) -> Architecture:
    """Reads the numbers from a `config.json` of an OLMo-2 model.

    Raises `ModelFolderError`, with `where` in the message, for any other architecture, an incomplete configuration, and
    settings that are not known to leave the model's function alone.
    """
    found = config.get("model_type")
    if found != "olmo2":
        raise ModelFolderError(
            f"{where}: the anchor's model_type is {found!r}, expected 'olmo2' (Olmo2ForCausalLM: "
            "allenai/OLMo-2-0425-1B, OLMo-2-1124-7B, OLMo-2-1124-13B, or one made with train_anchor.py). No other "
            "architecture has a FlexOlmo counterpart that a merge could load."
        )
    check_settings(config, where)
    given = dict(config)
    if given.get("num_key_value_heads") is None:
        given["num_key_value_heads"] = given.get("num_attention_heads")
    given.setdefault("tie_word_embeddings", False)
    given.setdefault("rms_norm_eps", RMS_NORM_EPS)
    given["rope_theta"] = plain_rope(config, where)["rope_theta"]
    values: dict[str, Any] = {}
    for field in fields(Architecture):
        value: Any = given.get(field.name)
        if field.type == "bool":
            fits, expected = isinstance(value, bool), "true or false"
        elif field.type == "int":
            fits, expected = type(value) is int and 0 < value < 1 << 31, "a positive whole number"
        else:
            fits, expected = type(value) in (int, float) and 0 < value <= sys.float_info.max, "a positive number"
        if not fits:
            raise ModelFolderError(f"{where}: {field.name} is {str(value)[:60]!r}, expected {expected}.")
        values[field.name] = float(value) if field.type == "float" else value
    return Architecture(**values)


def anchor_tensors(arch: Architecture) -> Shapes:
    """Every tensor of the anchor's model folder with its shape."""
    names = _backbone(arch)
    for n in range(arch.num_hidden_layers):
        for part, shape in _ffn(arch).items():
            names[anchor_ffn(n, part)] = shape
    return names


def expert_tensors(arch: Architecture, bias: bool = False) -> Shapes:
    """Every tensor of an expert file with its shape."""
    names: Shapes = {}
    for n in range(arch.num_hidden_layers):
        for part, shape in _ffn(arch).items():
            names[expert_ffn(n, part)] = shape
        names[ROUTER_WEIGHT.format(n=n)] = (arch.hidden_size,)
        if bias:
            names[ROUTER_BIAS.format(n=n)] = (1,)
    return names


def factor_names(weight: str) -> tuple[str, str, str]:
    """What an expert file may hold in the place of a feed-forward weight: L, R and s of `merge.tensor_io.factors`."""
    stem = weight.removesuffix("weight")
    return stem + "left", stem + "right", stem + "scale"


def stored_tensors(arch: Architecture, stored: Mapping[str, tuple[int, ...]]) -> Shapes:
    """What an expert file that holds `stored` must hold: as `expert_tensors`, but factors where there is a left one."""
    names = expert_tensors(arch, bias=ROUTER_BIAS.format(n=0) in stored)
    for weight, shape in list(names.items()):
        left, right, scale = factor_names(weight)
        if len(shape) == 2 and left in stored:
            del names[weight]
            rank = min(stored[left][-1], *shape)
            names |= {left: (shape[0], rank), right: (rank, shape[1]), scale: (1,)}
    return names


def merged_tensors(arch: Architecture, experts: int) -> Shapes:
    """Every tensor of a FlexOlmo model with `experts` experts, public included, in the order of the file."""
    names = _backbone(arch)
    for n in range(arch.num_hidden_layers):
        names[merged_router(n)] = (experts, arch.hidden_size)
        for e in range(experts):
            for part, shape in _ffn(arch).items():
                names[merged_ffn(n, e, part)] = shape
    return names


def anchor_ffn(n: int, part: str) -> str:
    return f"model.layers.{n}.mlp.{part}.weight"


def expert_ffn(n: int, part: str) -> str:
    return f"layers.{n}.{part}.weight"


def merged_ffn(n: int, e: int, part: str) -> str:
    return f"model.layers.{n}.mlp.experts.{e}.{part}.weight"


def merged_router(n: int) -> str:
    return f"model.layers.{n}.mlp.gate.weight"


def merged_config(anchor: Mapping[str, Any], experts: int, top_k: int) -> dict[str, Any]:
    """`config.json` of the merged model: the anchor's own values, under the names that transformers and vLLM read."""
    arch = architecture_of(anchor, "config.json")
    config = carried(anchor)
    for name in ("transformers_version", "rope_scaling"):
        config.pop(name, None)
    for name in ("bos_token_id", "pad_token_id", "eos_token_id"):
        config.setdefault(name, None)  # the class defaults are ids of another vocabulary
    config.setdefault("max_position_embeddings", MAX_POSITIONS)
    return config | {
        "architectures": ["FlexOlmoForCausalLM"],
        "model_type": "flex_olmo",
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": False,
        "output_router_logits": False,
        "tie_word_embeddings": arch.tie_word_embeddings,
        "rms_norm_eps": arch.rms_norm_eps,
        "rope_parameters": plain_rope(anchor, "config.json"),
        "rope_theta": arch.rope_theta,
    }


def anchor_config(merged: Mapping[str, Any]) -> dict[str, Any]:
    """A merged model's `config.json` without its experts: the part that `architecture_of` reads."""
    plain = {name: value for name, value in merged.items() if name not in MIXTURE and name != "architectures"}
    return plain | {"model_type": "olmo2"}


def with_dtype(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """`config` for weights in another dtype, by PyTorch's name, under the key of transformers 5 and the older one."""
    return {**config, "dtype": name} | ({"torch_dtype": name} if "torch_dtype" in config else {})


def _ffn(arch: Architecture) -> Shapes:
    wide = (arch.intermediate_size, arch.hidden_size)
    return {"gate_proj": wide, "up_proj": wide, "down_proj": wide[::-1]}


def _backbone(arch: Architecture) -> Shapes:
    """Embeddings, attention and norms: the same names in anchor and merged model."""
    hidden = arch.hidden_size
    keys = hidden // arch.num_attention_heads * arch.num_key_value_heads
    names: Shapes = {"model.embed_tokens.weight": (arch.vocab_size, hidden)}
    for n in range(arch.num_hidden_layers):
        layer = f"model.layers.{n}."
        names |= {
            layer + "self_attn.q_proj.weight": (hidden, hidden),
            layer + "self_attn.k_proj.weight": (keys, hidden),
            layer + "self_attn.v_proj.weight": (keys, hidden),
            layer + "self_attn.o_proj.weight": (hidden, hidden),
            layer + "self_attn.q_norm.weight": (hidden,),
            layer + "self_attn.k_norm.weight": (keys,),
            layer + "post_attention_layernorm.weight": (hidden,),
            layer + "post_feedforward_layernorm.weight": (hidden,),
        }
    names["model.norm.weight"] = (hidden,)
    if not arch.tie_word_embeddings:
        names["lm_head.weight"] = (arch.vocab_size, hidden)
    return names
