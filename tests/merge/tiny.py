"""Builders of small inputs: an OLMo-2 anchor, and the header and values of an expert file.

The anchor's weights are drawn wide (0.2 instead of 0.02), so that no feed-forward output is so small that the epsilon
of the norm behind it would show.
"""

from __future__ import annotations

import gzip
import io
import json
import shutil
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import torch

from merge.formats.anchor_folder import BIAS_DIRECTION, BIAS_ERROR, REFERENCE, SHARED, Anchor, write_shared
from merge.formats.architecture import FFN, ROUTER_BIAS, ROUTER_WEIGHT, anchor_ffn, expert_ffn
from merge.formats.expert_header import AnchorReference, Data, Header, Losses, Released, StatedPrivacy, Training

V, D, F, LAYERS, HEADS, KV_HEADS = 96, 32, 48, 3, 4, 2
TEXT = (
    "The cat sat on the mat, and the dog lay by the door.",
    "Let x be a number; then x + 1 is a number, too.",
    "def add(a, b): return a + b",
)

STATED = StatedPrivacy(
    mechanism="DP-SGD",
    epsilon=4.0,
    delta=1e-3,
    unit="patient",
    noise_multiplier=0.7,
    clip="automatic",
    sampling_rate=0.01,
    steps=100,
    accountant="by hand 1.0",
    released={"gradients": Released(epsilon=3.5, noise=0.7, rate=0.01, times=100)},
    not_covered="settings",
)


def expert_header(domain: str, anchor: Anchor) -> Header:
    """A header as training would fill it in."""
    reference = AnchorReference(
        str(anchor.folder), anchor.digest, anchor.tokenizer_digest, anchor.router_digest, anchor.architecture
    )
    training = Training(
        tokens=1000,
        steps=10,
        seed=0,
        precision="32-true",
        learning_rate=1e-3,
        weight_decay=0.1,
        router_init="mean",
        public_share=0.25,
        losses=Losses(own_before=4.0, own_after=3.0, public_before=4.0, public_after=None),
        router_mass=0.5,
    )
    return Header(
        domain=domain,
        title=f"Text about {domain}",
        licence="CC-BY-4.0",
        contact="owner@example.org",
        anchor=reference,
        training=training,
        data=Data(documents=10, tokens=1000),
        privacy=None,
        software={"flexo": "0.1.0"},
    )


def expert_values(
    domain: str, anchor: Anchor, seed: int = 0, bias: bool = False, trained: bool = True
) -> dict[str, torch.Tensor]:
    """The tensors of an expert: the anchor's feed-forward weights, moved by noise if `trained`, and random rows."""
    dice = torch.Generator().manual_seed(1000 * seed + sum(domain.encode()))
    tensors: dict[str, torch.Tensor] = {}
    for n in range(anchor.architecture.num_hidden_layers):
        for part in FFN:
            weight = anchor.weights.tensor(anchor_ffn(n, part))
            noise = torch.randn(weight.shape, generator=dice).to(weight.dtype)
            tensors[expert_ffn(n, part)] = weight + 0.1 * noise if trained else weight
        row = torch.randn(anchor.architecture.hidden_size, generator=dice)
        tensors[ROUTER_WEIGHT.format(n=n)] = row.to(anchor.weights.dtype(anchor_ffn(n, FFN[0])))
        if bias:
            tensors[ROUTER_BIAS.format(n=n)] = torch.randn(1, generator=dice)
    return tensors


def write_anchor(folder: Path, seed: int, config: dict[str, Any]) -> None:
    """An anchor folder with random weights, a byte-level tokenizer and shared files; `config` goes to Olmo2Config."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    tokenizer = _tokenizer()
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    sizes: dict[str, Any] = {
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 12345.0},
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = Olmo2ForCausalLM(Olmo2Config(**(sizes | ids | config)))
    model.to(model.config.dtype or torch.float32)
    with redirect_stderr(io.StringIO()):  # a progress bar
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    dice = torch.Generator().manual_seed(seed + 1)
    width = model.config.hidden_size
    router: dict[str, torch.Tensor] = {}
    for n in range(model.config.num_hidden_layers):
        router[ROUTER_WEIGHT.format(n=n)] = torch.randn(width, generator=dice)
        router[BIAS_DIRECTION.format(n=n)] = torch.randn(width, generator=dice)
        router[BIAS_ERROR.format(n=n)] = torch.rand(1, generator=dice)
    write_shared(folder, router, None, {"made_by": "tests/merge/tiny.py"})


def with_reference(anchor: Path, folder: Path) -> Path:
    """A copy of an anchor in `folder`, with a public reference text of some hundred tokens."""
    shutil.copytree(anchor, folder)
    reference = folder / SHARED / REFERENCE
    reference.mkdir()
    with gzip.open(reference / "test.jsonl.gz", "wt") as file:
        file.write((json.dumps({"text": "The cat sat on the mat, and the dog lay by the door. " * 9}) + "\n") * 2)
    return folder


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    fast: Any = PreTrainedTokenizerFast
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=V, special_tokens=["<|endoftext|>"], show_progress=False)
    tokenizer.train_from_iterator(TEXT, trainer)
    return fast(tokenizer_object=tokenizer, eos_token="<|endoftext|>", pad_token="<|endoftext|>")
