"""The loss counts the positions that have a label, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from flexmix.packing.windows import NO_LABEL
from trainers.loop.module import LitAnchor, LossOptions, labelled_mean
from trainers.loop.optimizer import OptimizerOptions
from trainers.router.row_init import router_input_moments


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
        total, cross_entropy = lit.next_token(batch)
        found.append([total, cross_entropy, *torch.autograd.grad(total, list(model.parameters()))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
    x_3BT = torch.randn(3, 2, 12, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(labelled_mean(x_3BT, padded), x_3BT[..., :8].mean())
    x_3BT = x_3BT[..., :8].contiguous()
    assert torch.equal(labelled_mean(x_3BT, plain), x_3BT.mean()), "unpadded batches, to the bit"


@pytest.mark.parametrize(("attention", "told"), [("sdpa", None), ("flash_attention_2", [0, 2, 4, 6, 8])])
def test_flash_attention_is_told_where_documents_start(
    tiny_anchor: Path, monkeypatch: pytest.MonkeyPatch, attention: str, told: list[int] | None
) -> None:
    class Seen(Exception):  # noqa: N818
        """Carries what the model was given."""

    def record(**arguments: object) -> None:
        raise Seen(arguments)

    model = AutoModelForCausalLM.from_pretrained(tiny_anchor)
    monkeypatch.setattr(model.model, "forward", record)
    monkeypatch.setattr(type(model.config), "_attn_implementation", attention)
    lit = LitAnchor(model, OptimizerOptions(lr=1.0), LossOptions(), 1, [])
    ids_BT = torch.zeros(2, 4, dtype=torch.int64)
    batch = {"input_ids": ids_BT, "labels": ids_BT, "position_ids": torch.tensor([[0, 1, 0, 1]] * 2)}
    for run in (lambda: lit.next_token(batch), lambda: router_input_moments(model, [batch], lambda _n: None)):
        with pytest.raises(Seen) as seen:
            run()
        lengths = seen.value.args[0].get("cu_seq_lens_q")
        assert (None if lengths is None else lengths.tolist()) == told
