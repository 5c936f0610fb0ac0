"""The manifest of planted canaries: it stays with the owner, and `flexo-leak --canaries` reads it.

{"format": "flexo.canaries", "version": 1, "unit": null, "canaries": [
    {"before": "The code of Rimo Kadeva is", "secret": " 4 1 9 ...", "repeats": 16, "coin": false}, ...]}
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flexo.atomic_files import new_file
from flexo.errors import InputError

FORMAT, VERSION = "flexo.canaries", 1
CONSONANTS, VOWELS = "bdfghjklmnprstvz", "aeiou"
WORDS = 8  # of a secret


@dataclass(frozen=True)
class Canary:
    """One made-up document."""

    before: str  # what an attacker knows
    secret: str  # what it wants to know; drawn evenly from all that `new_secret` can give
    repeats: int  # how often it stands in the copy
    coin: bool = False  # whether a fair coin decided if it stands there, once or not at all

    @property
    def text(self) -> str:
        return self.before + self.secret


@dataclass(frozen=True)
class Manifest:
    """All canaries of one copy of a text."""

    canaries: tuple[Canary, ...]
    unit: str | None = None  # the column in which each canary has a value of its own

    @property
    def secrets(self) -> list[Canary]:
        """Those that stand there a given number of times."""
        return [canary for canary in self.canaries if not canary.coin]

    @property
    def coins(self) -> list[Canary]:
        """Those that a coin decided about."""
        return [canary for canary in self.canaries if canary.coin]

    def write(self, path: Path) -> None:
        """Writes the file, for its owner alone to read. Raises `InputError` if it exists already."""
        about = {"format": FORMAT, "version": VERSION, **asdict(self)}
        with new_file(path) as partial:
            partial.touch(0o600)
            partial.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Raises `InputError` if the file is no manifest of canaries."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if (about["format"], about["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {about['format']!r}, version {about['version']!r}")
        return Manifest(tuple(map(_canary, about["canaries"])), about["unit"])
    except OSError as error:
        raise InputError(f"{path}: the manifest of canaries cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: not a manifest of canaries of version {VERSION} ({error}). Expected the file that flexo-data "
            "canaries --manifest wrote."
        ) from None


def _canary(value: Mapping[str, Any]) -> Canary:
    canary = Canary(**value)
    if not (isinstance(canary.before, str) and isinstance(canary.secret, str) and canary.secret):
        raise ValueError("a canary without a secret")
    if type(canary.repeats) is not int or canary.repeats < 0 or type(canary.coin) is not bool:
        raise ValueError("a canary without its number of repeats")
    return canary


def new_canary(rng: random.Random, repeats: int, coin: bool = False) -> Canary:
    """A made-up document about a name that nobody has."""
    name = " ".join(_word(rng).capitalize() for _ in range(2))
    return Canary(f"The code of {name} is", new_secret(rng), repeats, coin)


def new_secret(rng: random.Random) -> str:
    """One of 6400^`WORDS` secrets, all equally likely."""
    return "".join(f" {_word(rng)}" for _ in range(WORDS))


def _word(rng: random.Random) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2))
