"""The loss counts the positions that have a label, and no others."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from flexmix.packing import NO_LABEL
from trainers.lit import LitAnchor, LossOptions, labelled_mean
from trainers.optim import OptimizerOptions


def test_padding_changes_neither_loss_nor_gradient(tiny_anchor: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_anchor)
    lit = LitAnchor(model, OptimizerOptions(lr=1.0), LossOptions(), 1, [])
    ids_BT = torch.randint(0, 96, (2, 12), generator=torch.Generator().manual_seed(0))
    places_BT = torch.arange(12).expand(2, 12)
    labels_BT = ids_BT.roll(-1, 1)
    plain = {"input_ids": ids_BT[:, :8], "labels": labels_BT[:, :8], "position_ids": places_BT[:, :8]}
    padded = {
        "input_ids": ids_BT,
        "labels": labels_BT.clone(),
        "position_ids": torch.cat([places_BT[:, :8], places_BT[:, :4]], 1),
    }
    padded["labels"][:, 8:] = NO_LABEL
    found = []
    for batch in (plain, padded):
        loss, log_normaliser_BT = lit._forward(batch)
        total = loss + labelled_mean(log_normaliser_BT.square(), batch)
        found.append([total, *torch.autograd.grad(total, list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    x_3BT = torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(labelled_mean(x_3BT, padded), x_3BT[..., :8].mean())
    x_3BT = x_3BT[..., :8].contiguous()
    assert torch.equal(labelled_mean(x_3BT, plain), x_3BT.mean()), "unpadded batches, to the bit"


def test_flash_attention_is_told_where_documents_start(tiny_anchor: Path) -> None:
    seen: dict[str, object] = {}

    class Recorder(torch.nn.Module):
        config = AutoModelForCausalLM.from_pretrained(tiny_anchor).config

        def forward(self, **arguments: object) -> object:
            seen.update(arguments)
            raise StopIteration

    lit = LitAnchor(Recorder(), OptimizerOptions(lr=1.0), LossOptions(), 1, [])  # type: ignore[arg-type]
    batch = {
        "input_ids": torch.zeros(2, 4),
        "labels": torch.zeros(2, 4),
        "position_ids": torch.tensor([[0, 1, 0, 1]] * 2),
    }
    for attention, told in (("sdpa", None), ("flash_attention_2", [0, 2, 4, 6, 8])):
        seen.clear()
        lit.model.config._attn_implementation_internal = attention
        try:
            lit._forward(batch)
        except StopIteration:
            lengths = seen.get("cu_seq_lens_q")
            assert (lengths.tolist() if isinstance(lengths, torch.Tensor) else lengths) == told
