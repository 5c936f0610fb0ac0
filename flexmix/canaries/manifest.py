"""The manifest of planted canaries: it stays with the owner, and `flexo-leak --canaries` reads it.

{"format": "flexo.canaries", "version": 1, "unit": null, "words": ["and", "cough", ...], "canaries": [
    {"before": "The code of Rimo Kade is", "secret": " cough lay ...", "repeats": 16, "coin": false}, ...]}
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flexo.errors import InputError

FORMAT, VERSION = "flexo.canaries", 1
CONSONANTS, VOWELS = "bdfghjklmnprstvz", "aeiou"
SECRET_WORDS, COIN_WORDS = 8, 20


@dataclass(frozen=True)
class Canary:
    """One made-up document."""

    before: str  # what an attacker knows
    secret: str  # what it wants to know
    repeats: int  # how often it stands in the copy
    coin: bool = False  # whether a fair coin decided if it stands there, once or not at all

    @property
    def text(self) -> str:
        return self.before + self.secret


@dataclass(frozen=True)
class Manifest:
    """All canaries of one copy of a text, and the words that they were drawn from.

    Words of the text itself in a row that nobody wrote: a model learns such a row sooner than digits or made-up words,
    whose few tokens stand in all canaries.
    """

    words: tuple[str, ...]
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

    def other_secret(self, rng: random.Random) -> str:
        """What could have been drawn in the place of a secret."""
        return new_secret(self.words, SECRET_WORDS, rng)

    def write(self, path: Path) -> None:
        """Writes a new file, for its owner alone to read."""
        path.touch(0o600, exist_ok=False)
        about = {"format": FORMAT, "version": VERSION, **asdict(self)}
        path.write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def read_manifest(path: Path) -> Manifest:
    """Raises `InputError` if the file is no manifest of canaries."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        if (about["format"], about["version"]) != (FORMAT, VERSION):
            raise ValueError(f"format {about['format']!r}, version {about['version']!r}")
        made = Manifest(tuple(about["words"]), tuple(map(_canary, about["canaries"])), about["unit"])
        if not made.canaries or len(set(made.words)) < 2 or not all(isinstance(word, str) for word in made.words):
            raise ValueError("no canaries, or no words that they are made of")
        return made
    except OSError as error:
        raise InputError(f"{path}: the manifest of canaries cannot be read ({error.strerror}).") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: not a manifest of canaries of version {VERSION} ({error}). Expected the file that flexo-data "
            "canaries --manifest wrote."
        ) from None


def _canary(value: Mapping[str, Any]) -> Canary:
    canary = Canary(**value)
    if not (isinstance(canary.before, str) and isinstance(canary.secret, str) and canary.secret):
        raise ValueError("a canary without a secret")
    if type(canary.repeats) is not int or type(canary.coin) is not bool:
        raise ValueError("a canary without its number of repeats")
    if not (0 <= canary.repeats <= 1 if canary.coin else canary.repeats >= 1):
        raise ValueError(f"a {'coin' if canary.coin else 'secret'} that stands there {canary.repeats} times")
    canary.text.encode()
    return canary


def draw_canaries(words: Sequence[str], repeats: Sequence[int], coins: int, rng: random.Random) -> tuple[Canary, ...]:
    """A secret for each of `repeats`, about a name that nobody has, and `coins` rows of words, in or out."""
    secrets = [
        Canary(f"The code of {_name(rng)} {_name(rng)} is", new_secret(words, SECRET_WORDS, rng), times)
        for times in repeats
    ]
    return (*secrets, *(Canary("", new_secret(words, COIN_WORDS, rng), rng.getrandbits(1), True) for _ in range(coins)))


def new_secret(words: Sequence[str], count: int, rng: random.Random) -> str:
    """So many words, all rows of them equally likely."""
    return "".join(f" {rng.choice(words)}" for _ in range(count))


def _name(rng: random.Random) -> str:
    return "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2)).capitalize()
