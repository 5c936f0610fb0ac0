"""Shows, before anybody is served, that an engine's selections are in force: it must score a prompt as `select_experts`
does, under the public expert alone, each other one alone, and all of them.

What counts is the mean difference of log-probabilities. It may be a tenth of the difference that the experts make, so
that half precision passes, and an engine that ignores a selection does not.
"""

from __future__ import annotations

import threading
from typing import Any

import torch

from flexo.errors import ModelFolderError
from inference.select import expert_names, select_experts
from serving.engines.engine import Ended, Engine, Event, Failed, Job, Scored

LENGTH = 24  # tokens of the prompt
ROUNDING = {torch.float32: 1e-4}  # nats; more in half precision
MINUTES = 10.0


class Probe:
    """What is known of a model before an engine has it, and whether the engine agrees.

    Args:
        model: a merged model in evaluation mode that is not being served yet.
    """

    def __init__(self, model: Any) -> None:
        names, self._rounding = expert_names(model), ROUNDING.get(model.dtype, 0.02)
        dice = torch.Generator().manual_seed(0)
        self._prompt = torch.randint(model.config.vocab_size, (LENGTH,), generator=dice).tolist()
        self._sets = list(dict.fromkeys([*((name,) for name in names), tuple(names)]))
        self._expected = torch.stack([self._scores(model, names) for names in self._sets])
        self._heard = threading.Event()
        self._found: dict[str, Event] = {}
        self._left = len(self._sets)

    def hear(self, events: list[tuple[str, Event]]) -> None:
        """The sink of the engine while it is probed."""
        for job, event in events:
            if isinstance(event, Scored | Failed):
                self._found[job] = event
            if isinstance(event, Ended | Failed):
                self._left -= 1
        if not self._left:
            self._heard.set()

    def check(self, engine: Engine) -> None:
        """Raises `ModelFolderError` unless the engine scores the prompt as it should under every set."""
        for n, names in enumerate(self._sets):
            engine.submit(Job(f"probe{n}", "probe", names, self._prompt, 1, score=True))
        if not self._heard.wait(60 * MINUTES):
            raise ModelFolderError(f"the probe was not answered within {MINUTES:g} minutes. Nothing is served.")
        found = []
        for n, names in enumerate(self._sets):
            event = self._found[f"probe{n}"]
            if not isinstance(event, Scored):
                raise ModelFolderError(f"the probe under {', '.join(names)} failed. Run flexo-check.")
            found.append([logprob for _, logprob, _ in event.tokens])
        found_ST = torch.tensor(found)
        apart_S = (found_ST - self._expected).abs().mean(1)
        others_S = (self._expected[:, None] - self._expected[None]).abs().mean(2)
        nearest = others_S[others_S > 0].min().item() if others_S.any() else 0.0  # of two sets that differ at all
        allowed = max(nearest / 10, self._rounding)
        for names, apart in zip(self._sets, apart_S.tolist(), strict=True):
            if not apart <= allowed:
                raise ModelFolderError(
                    f"under {', '.join(names)} the engine is {apart:.2g} nats per token from what it should say, and "
                    f"{allowed:.2g} is allowed. Selections are not in force, and nothing is served."
                )

    @torch.inference_mode()
    def _scores(self, model: Any, names: tuple[str, ...]) -> torch.Tensor:
        x_1T = torch.tensor([self._prompt], device=model.device)
        with select_experts(model, names):
            logp_TV = model(x_1T).logits[0, :-1].float().log_softmax(-1)
        found_T: torch.Tensor = logp_TV.gather(1, x_1T[0, 1:, None])[:, 0].cpu()
        return found_T
