"""The same text under two names is noticed; different texts are not taken for the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from merge.formats.anchor_folder import open_anchor
from merge.formats.expert_file import open_expert, write_expert
from merge.planning.merge_plan import plan
from tests.conftest import MakeExpert


def copied(expert: Path, path: Path, domain: str, noise: float = 0.0) -> Path:
    """The same expert under another name, its changes to the anchor blurred by so much noise."""
    opened = open_expert(expert)
    dice = torch.Generator().manual_seed(0)
    tensors = {}
    for name in opened.tensors:
        value = opened.tensor(name)
        tensors[name] = value + noise * torch.randn(value.shape, generator=dice)
    write_expert(path, replace(opened.header, domain=domain), tensors)
    return path


def test_strangers_are_no_twins(make_expert: MakeExpert) -> None:
    assert plan([make_expert("math"), make_expert("code"), make_expert("news")]).warnings == []


def test_the_same_network_is_found_by_its_digests(make_expert: MakeExpert, tmp_path: Path) -> None:
    math = make_expert("math")
    (line,) = plan([math, copied(math, tmp_path / "sums.pt", "sums"), make_expert("code")]).warnings
    assert line.startswith(f"{math} and {tmp_path}/sums.pt: the same network under two names")


def test_networks_that_moved_alike_are_found(make_expert: MakeExpert, tmp_path: Path) -> None:
    """`make_expert` moves each weight by 0.1 of noise: 0.05 more leaves a cosine of 0.89, and 0.38 more one of 0.23.

    Experts of one text have 0.25 and more, those of different texts 0.17 at most, which 0.56 more leaves.
    """
    math = make_expert("math")
    (line,) = plan([math, copied(math, tmp_path / "sums.pt", "sums", 0.05)]).warnings
    assert "training changed them in the same way (cosine 0.89" in line
    (line,) = plan([math, copied(math, tmp_path / "trained.pt", "trained", 0.38)]).warnings
    assert "training changed them in the same way (cosine 0.23" in line
    assert plan([math, copied(math, tmp_path / "other.pt", "other", 0.56)]).warnings == []
    assert open_anchor(Path(open_expert(math).header.anchor.name))


def test_an_untrained_expert_is_nobodys_twin(make_expert: MakeExpert) -> None:
    assert plan([make_expert("math", trained=False), make_expert("code")]).warnings == []
