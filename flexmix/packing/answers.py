"""Which positions of conversations are trained on with `data.loss_on=assistant`: those that predict an answer.

tokens   E <|user|> Why ? <|assistant|> Because .   E <|user|> ...
labels   .    .      . .        .       Because .   E      .            "." stands for `NO_LABEL`, one to the left
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from flexmix.tokens.shard import TokenShard
from flexo.errors import InputError

LossOn = Literal["all", "assistant"]

Places = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]


def check_answers(shard: TokenShard, where: str) -> None:
    """Raises `InputError` unless every document of a shard is a conversation, and there are answers in them."""
    if shard.conversations < shard.documents:
        held = f"{shard.documents - shard.conversations:,} of {shard.documents:,} documents are no conversations"
        raise InputError(
            f"{where}: data.loss_on=assistant, and {held}. Nothing would be learned from those: give conversations "
            "alone (the column 'messages' with role and content), or set data.loss_on=all."
        )
    if not len(shard.answers):
        raise InputError(
            f"{where}: data.loss_on=assistant, and there is no message of the role 'assistant'. Name the roles so, or "
            "set data.loss_on=all."
        )


def check_loss_on(loss_on: str) -> None:
    """Raises `InputError` for a setting that is none."""
    if loss_on not in get_args(LossOn):
        raise InputError(f"data.loss_on: {loss_on!r}, expected {' or '.join(get_args(LossOn))}.")


def in_answers(shard: TokenShard, place: Places) -> Flags:
    """Whether the tokens at these places of a shard, of any shape, are part of an answer."""
    first, behind = shard.answers[:, 0], shard.answers[:, 1]
    number = np.searchsorted(first, place, side="right") - 1
    return (number >= 0) & (place < behind[np.maximum(number, 0)])


def with_answers(shard: TokenShard, start: Places, size: Places) -> Flags:
    """Of `size` tokens from each `start` on, whether they predict a token of an answer."""
    first, behind = shard.answers[:, 0], shard.answers[:, 1]
    number = np.searchsorted(behind, start + 1, side="right")  # the first answer that does not end before
    return (number < len(first)) & (first[np.minimum(number, len(first) - 1)] <= start + size)
