"""The plain engine: padded batches, each sequence under its own `select_experts`; nothing of transformers is changed.

A batch is done when its longest answer is. On uneven work that takes longer than the packed engine
(`benchmarks/serving.md`), and it answers the same.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any

import torch
from transformers import DynamicCache

from inference.attribution import attribute
from inference.select import select_experts
from serving.engines.answering import Answering
from serving.engines.engine import EngineOptions, Job, Sink
from serving.engines.local import LocalEngine

LOG = logging.getLogger("flexo.serve")


class PaddedEngine(LocalEngine):
    """Takes the jobs that wait, at most `at_once`, and runs them to their end."""

    def __init__(self, model: Any, tokenizer: Any, sink: Sink, options: EngineOptions = EngineOptions()) -> None:
        super().__init__(model, tokenizer, sink, options)
        self._waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="padded", daemon=True)
        self._closing = False
        self._thread.start()

    def submit(self, job: Job) -> None:
        super().submit(job)
        self._waiting.put(job.id)
        if self._closing:
            self.fail(job.id, "the engine has stopped.", again=True)

    def close(self) -> None:
        self._closing = True
        self._waiting.put(None)
        self._thread.join()
        super().close()

    def _run(self) -> None:
        while (first := self._waiting.get()) is not None and not self._closing:
            names: list[str | None] = [first]
            while len(names) < self.options.at_once and not self._waiting.empty():
                names.append(self._waiting.get())
            batch = [answer for name in names if name and (answer := self.answering(name))]
            try:
                if batch:
                    self._answer(batch)
            except Exception as error:  # of any kind: the next batch has other requests in it
                LOG.exception("a pass failed")
                for answer in batch:
                    self.fail(answer.job.id, f"a pass failed ({type(error).__name__}).", again=True)
            if None in names:
                return

    @torch.inference_mode()
    def _answer(self, batch: list[Answering]) -> None:
        """Runs a batch until all answers are over, one token at a time."""
        prompts, names = [list(answer.job.tokens) for answer in batch], [answer.job.id for answer in batch]
        longest = max(map(len, prompts))
        pad = [longest - len(prompt) for prompt in prompts]
        device, run, keep = self.model.device, self.model, 0 if any(answer.job.score for answer in batch) else 1
        x_BT = torch.tensor([[0] * n + prompt for n, prompt in zip(pad, prompts, strict=True)], device=device)
        mask_BT = torch.arange(longest, device=device) >= torch.tensor(pad, device=device)[:, None]
        place_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        choices = [[name for name, may in zip(self.known, answer.allowed, strict=True) if may] for answer in batch]
        over = [False] * len(batch)
        with select_experts(self.model, choices), attribute(self.model) as record:
            while not all(over) and not self._closing:
                logits_BTV = run(
                    x_BT, attention_mask=mask_BT, position_ids=place_BT, past_key_values=cache, logits_to_keep=keep
                ).logits
                for row, answer in enumerate(batch):
                    if answer.job.score and not answer.count:
                        self.record_prompt(answer, 1, logits_BTV[row, pad[row] : -1])
                found = self.extend(names, logits_BTV[:, -1], record.latest().tolist())
                over = [before or ended for before, (_, ended) in zip(over, found, strict=True)]
                self.tell()
                x_BT = torch.tensor([[token] for token, _ in found], device=device)
                mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(batch), 1)], 1)
                place_BT, keep = place_BT[:, -1:] + 1, 1
