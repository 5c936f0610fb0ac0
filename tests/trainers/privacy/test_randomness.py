"""Noise that has the right law, that a killed run draws again to the bit, and that nobody draws without the key."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("cryptography", reason="the extra privacy is not installed")

from flexo.errors import InputError
from trainers.privacy.randomness import AT_ONCE, KEY, Secret, destroy


def test_the_same_key_purpose_and_number_give_the_same_bits(tmp_path: Path) -> None:
    like = torch.zeros(3, 5)
    drawn = Secret.of(tmp_path).normal("noise", 4, like, 2.0)
    assert (tmp_path / KEY).stat().st_mode & 0o777 == 0o600
    assert torch.equal(drawn, Secret.of(tmp_path).normal("noise", 4, like, 2.0))
    for other in (("noise", 5), ("draw", 4)):
        assert not torch.equal(drawn, Secret.of(tmp_path).normal(*other, like, 2.0))
    assert not torch.equal(drawn, Secret(bytes(32)).normal("noise", 4, like, 2.0))


def test_the_laws() -> None:
    secret = Secret(bytes(range(32)))
    normal = secret.normal("noise", 0, torch.zeros(AT_ONCE + 3), 3.0).numpy().astype(np.float64) / 3
    n = len(normal)
    assert abs(normal.mean()) < 5 / n**0.5 and abs(normal.var() - 1) < 5 * (2 / n) ** 0.5
    for bound, share in ((1.0, 0.682689), (2.0, 0.954500), (3.0, 0.997300)):
        assert abs((np.abs(normal) < bound).mean() - share) < 5 * (share * (1 - share) / n) ** 0.5
    assert abs(np.corrcoef(normal[:-1], normal[1:])[0, 1]) < 5 / n**0.5
    uniform = secret.uniform("draw", 0, n)
    assert uniform.min() >= 0 and uniform.max() < 1 and abs(uniform.mean() - 0.5) < 5 / (12 * n) ** 0.5


def test_a_destroyed_key_is_gone_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    Secret.of(tmp_path)
    destroy(tmp_path)
    assert not (tmp_path / KEY).exists()
    destroy(tmp_path)
    (tmp_path / KEY).write_bytes(b"short")
    with pytest.raises(InputError, match="5 bytes, expected 32"):
        Secret.of(tmp_path)
