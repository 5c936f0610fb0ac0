"""A collapsed or uniform router is named with its layers and told what to do; a good one is left alone."""

from __future__ import annotations

import re

import pytest

from trainers.router.diagnosis import diagnose


def metrics(own: list[float], public: list[float] | None, entropy: float = 0.9) -> dict[str, float]:
    made: dict[str, float] = {}
    for name, masses in (("own", own), ("public", public or [])):
        for n, mass in enumerate(masses):
            made |= {f"{name}/router_mass/layer_{n}": mass, f"{name}/router_entropy/layer_{n}": entropy}
    return made


@pytest.mark.parametrize(
    ("own", "public", "entropy", "said"),
    [
        ([0.8, 0.99, 0.6], [0.3, 0.02, 0.5], 0.9, []),
        ([0.01, 0.02, 0.9], [0.01, 0.01, 0.1], 0.1, [r"router of math, layer 0-1: .*hardly ever chosen .*row_lr"]),
        ([0.99, 0.8, 0.99], [0.98, 0.2, 0.99], 0.1, [r"layer 0, 2: .*public text included.*public_share=0\.25"]),
        ([0.5, 0.51, 0.9], [0.5, 0.5, 0.1], 1.0, [r"layer 0-1: .*averaging, not routing.*discriminant"]),
        ([0.5, 0.9], None, 0.999, [r"layer 0-1: .*undecided"]),
        ([0.99, 0.6], None, 0.5, [r"layer 0: .*would take other experts' text"]),
        ([0.01, 0.5], [0.01, 0.5], 0.9, ["layer 0: .*hardly ever", "layer 1: .*averaging"]),
        ([], None, 0.0, []),
    ],
)
def test_each_fault_is_named_with_its_layers(
    own: list[float], public: list[float] | None, entropy: float, said: list[str]
) -> None:
    found = diagnose("math", metrics(own, public, entropy))
    assert len(found) == len(said)
    for line, pattern in zip(found, said, strict=True):
        assert re.search(pattern, line), line
