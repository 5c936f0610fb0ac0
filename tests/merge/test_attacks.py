"""Every attack of `attacks/`: refused in its own words, no code run, no file written, memory bounded."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from merge.formats.anchor_folder import open_anchor
from tests.merge.attacks import factors, headers, pickles, tables, values, zips
from tests.merge.attacks.attack import Attack, Forge
from tests.merge.tools import listing

ROOT = Path(__file__).resolve().parents[2]
KINDS = (pickles, zips, tables, headers, values, factors)
ATTACKS = [attack for kind in KINDS for attack in kind.ATTACKS]
MB = 150  # the largest at work: a pickle of half a million instructions, JSON just below its bounds


@pytest.fixture(scope="module")
def outcome(tiny_anchor: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process, with little memory, made of all attacks, and what lay in its folder afterwards."""
    folder = tmp_path_factory.mktemp("attacks")
    forge = Forge(folder, open_anchor(tiny_anchor))
    paths = [folder / f"{number}{attack.suffix}" for number, attack in enumerate(ATTACKS)]
    for attack, path in zip(ATTACKS, paths, strict=True):
        attack.make(forge, path)
    before = listing(folder)
    command = [sys.executable, "-m", "tests.merge.attacks.victim", tiny_anchor, folder / "merged", forge.good, *paths]
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert listing(folder) - before == {"merged"} and not forge.mark.exists()
    torch.load(folder / "0.pt", weights_only=False)
    assert forge.mark.exists()  # the bomb was live
    return found


@pytest.mark.parametrize("number", range(len(ATTACKS)), ids=[attack.name for attack in ATTACKS])
def test_an_attack_is_refused(outcome: dict[str, Any], number: int) -> None:
    attack: Attack = ATTACKS[number]
    (name,) = [name for name in outcome if name.partition(".")[0] == str(number)]
    says = outcome[name]["says"]
    assert re.search(attack.says, says), says
    assert re.match(rf"\S+/{name}: ", says) and says.isprintable() and len(says) < 800, says
    assert outcome[name]["seen"] == []
    assert outcome[name]["peak"] - outcome[""]["peak"] < MB


def test_no_two_attacks_are_one() -> None:
    assert len({attack.name for attack in ATTACKS}) == len(ATTACKS)
