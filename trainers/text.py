"""From files of text to the data module of a run: tokenise once, cut into windows, mix own and public."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from flexmix.best_fit import BestFit
from flexmix.packing import Packed, Packing, Windows
from flexmix.tokens import prepare_shard
from merge.errors import InputError


@dataclass(frozen=True)
class DataOptions:
    """How text becomes batches."""

    tokens: int  # seen in training, in all
    length: int = 256  # tokens in a window
    batch_size: int = 8  # windows per step, over all devices
    packing: Packing = "concat"  # of training text; best_fit cuts fewer documents and pads
    public_share: float = 0.0  # of the windows, for experts
    eval_windows: int = 64  # of each held-out set
    moment_windows: int = 256  # read to know a domain from inside the anchor
    cache: Path = Path("data/tokens")  # token shards, kept between runs

    def __post_init__(self) -> None:
        if min(self.tokens, self.length, self.batch_size, self.moment_windows) < 1 or not 0 <= self.public_share < 1:
            raise InputError(
                f"data: tokens {self.tokens}, length {self.length}, batch_size {self.batch_size} and moment_windows "
                f"{self.moment_windows} must be positive, and public_share {self.public_share} from 0 up to 1."
            )
        if self.packing not in get_args(Packing):
            raise InputError(f"data.packing: {self.packing!r}, expected {' or '.join(get_args(Packing))}.")

    @property
    def tokens_per_step(self) -> int:
        return self.length * self.batch_size

    @property
    def steps(self) -> int:
        return max(1, self.tokens // self.tokens_per_step)

    def settings(self) -> dict[str, Any]:
        """What decides about the result; where shards are kept does not."""
        return {name: value for name, value in asdict(self).items() if name != "cache"}

    def windows(self, source: Path, model: Path) -> Windows:
        """The windows of a corpus file under the tokenizer of a model folder, plainly cut: what is measured on."""
        return Windows(prepare_shard(source, model, self.cache), self.length, str(source))

    def training_windows(self, source: Path, model: Path) -> Packed:
        """The windows of a corpus file as `packing` says: what is trained on."""
        if self.packing == "best_fit":
            return BestFit(prepare_shard(source, model, self.cache), self.length)
        return self.windows(source, model)
