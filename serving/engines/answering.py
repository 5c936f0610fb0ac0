"""A job on its way: what was made of it so far, its text with stop strings, and its shares."""

from __future__ import annotations

from typing import Any

from inference.views.answer import TokenText
from serving.engines.engine import Ended, Event, Failed, Job, Made, Ranked, Scored
from serving.engines.sampling import Choice, seeded

BROKEN = "the experts of this request made values that are not finite. Ask the coordinator to run flexo-check."


class Answering:
    """The state of one job.

    Every token of the answer counts once in its shares, the end-of-text token and one that completes a stop string
    included. A token that is computed again, for the cache was full, is not drawn again and does not count again.

    Args:
        job: what is asked.
        allowed: for each expert of the model whether it may be used.
        tokenizer: of the model.
        ends: tokens that end an answer.
    """

    def __init__(self, job: Job, allowed: list[bool], tokenizer: Any, ends: set[int]) -> None:
        self.job, self.allowed, self.die = job, allowed, seeded(job.seed)
        self.scored: dict[int, tuple[int, float, Ranked]] = {}  # by the place in the prompt
        self.cached = self.count = 0
        self._ends, self._text = ends, TokenText(tokenizer)
        self._held = ""  # may turn out to be the beginning of a stop string
        self._sums = [0.0] * len(allowed)

    def add(self, choice: Choice | None, shares: list[float]) -> list[Event]:
        """What there is to say once a token was chosen; ends with `Ended` or `Failed` if it was the last."""
        if choice is None:
            return [Failed(BROKEN, again=False)]
        events: list[Event] = []
        if self.job.score and not self.count:
            events.append(Scored([self.scored[place] for place in sorted(self.scored)]))
        self.count += 1
        self._sums = [total + share for total, share in zip(self._sums, shares, strict=True)]
        at_end = choice.token in self._ends
        last = at_end or self.count == self.job.max_tokens
        text, stopped = self._until_stop(self._text.add(choice.token) + (self._text.rest() if last else ""))
        events.append(Made(choice.token, text, choice.logprob, choice.top, shares))
        if stopped or last:
            reason = "stop" if stopped or at_end else "length"
            rest = "" if stopped else self._held
            events.append(Ended(reason, rest, [total / self.count for total in self._sums], self.cached))
        return events

    def _until_stop(self, text: str) -> tuple[str, bool]:
        """The text that can be shown now, and whether a stop string ended it."""
        text = self._held + text
        found = [at for stop in self.job.stop if (at := text.find(stop)) >= 0]
        if found:
            return text[: min(found)], True
        keep = max((_overlap(text, stop) for stop in self.job.stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep], False


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
