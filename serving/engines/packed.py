"""The engine for every day: transformers' continuous batching, with experts, attention, cache and sampling by request.

Four things differ from transformers' own, each through a class of ours or on one object, never by changing a module:
MoE blocks route each token by its request (`routing`), attention is by request (`attention`), cached prefixes are
private (`prefixes`), and one step draws each token by its request's settings (`PackedRunner`). A pass that fails ends
the requests in it, and the engine goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import accumulate
from typing import Any, cast

import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.continuous_api import ContinuousBatchingManager, OutputRouter
from transformers.generation.continuous_batching.model_runner import ModelRunner

from serving.engines.attention import PER_REQUEST, Packing
from serving.engines.engine import EngineOptions, Job, Sink
from serving.engines.local import LocalEngine
from serving.engines.prefixes import Owner, PrivatePrefixes
from serving.engines.routing import EntitledBlock, Rows

LOG = logging.getLogger("flexo.serve")


class PackedEngine(LocalEngine):
    """Requests of all kinds in one row of tokens. The model's blocks are exchanged until `close`."""

    def __init__(self, model: Any, tokenizer: Any, sink: Sink, options: EngineOptions = EngineOptions()) -> None:
        super().__init__(model, tokenizer, sink, options)
        layers = model.model.layers
        chooses = self.served.chooses
        self.rows = Rows(chooses, len(self.known), layers[0].mlp.gate.top_k, model.device)
        self._blocks, self._attention = [layer.mlp for layer in layers], model.config._attn_implementation
        for layer, counts in zip(layers, chooses, strict=True):
            layer.mlp = EntitledBlock(layer.mlp, self.rows, counts)
        model.set_attn_implementation(PER_REQUEST)
        self.manager = PackedManager(self)
        self.manager.start()

    def submit(self, job: Job) -> None:
        super().submit(job)
        ends = sorted(self.served.ends)
        added = self.manager.add_request(list(job.tokens), job.id, job.max_tokens, eos_token_id=ends or None)
        if added is None:
            self.fail(job.id, "the engine has stopped.", again=True)

    def cancel(self, job: str) -> None:
        if self.forget(job):
            self.manager.cancel_request(job)

    def close(self) -> None:
        if self.manager.is_running():
            self.manager.stop(block=True, hard_stop=True)
        self.manager.destroy()
        super().close()
        for layer, block in zip(self.model.model.layers, self._blocks, strict=True):
            layer.mlp = block
        self.model.set_attn_implementation(self._attention)

    def run_pass(self, forward: Callable[[torch.Tensor], torch.Tensor], requests: list[Any]) -> list[int]:
        """Runs the model on the tokens of `requests`; returns the next token of those whose prompt was read.

        Args:
            forward: from places in the row of tokens to their logits [places, V].
            requests: transformers' `FutureRequestState`s, in the order of their tokens.
        """
        names = [request.state.request_id for request in requests]
        answers, counts = [self.answering(name) for name in names], [request.query_length for request in requests]
        public = [name == "public" for name in self.known]
        ends = list(accumulate(counts))
        at = [end - 1 for end, request in zip(ends, requests, strict=True) if request.has_new_token]
        scored: list[tuple[Any, int, int]] = []  # answer, place in its prompt, and how many logits of it
        wanted = list(at)
        for request, answer, end, count in zip(requests, answers, ends, counts, strict=True):
            first = request.state.position_offset - count
            if answer and answer.job.score and (length := min(count, len(answer.job.tokens) - 1 - first)) > 0:
                wanted += range(end - count, end - count + length)
                scored.append((answer, first + 1, length))
        with self.rows.prepared([answer.allowed if answer else public for answer in answers], counts):
            logits_PV = forward(torch.tensor(wanted, dtype=torch.long, device=self.model.device))
        start = len(at)
        for answer, first, length in scored:
            self.record_prompt(answer, first, logits_PV[start : start + length])
            start += length
        drawing = [name for name, request in zip(names, requests, strict=True) if request.has_new_token]
        found = self.extend(drawing, logits_PV[: len(at)], self.rows.shares(at))
        for name, (_, over) in zip(drawing, found, strict=True):
            if over:  # it may not know: a stop string, values that are not finite
                self.manager.cancel_request(name)
        return [token for token, _ in found]

    def owner(self, request: str) -> Owner | None:
        """Whose cached prefixes a request may read and leave; nobody's where the prompt is to be scored."""
        answer = self.answering(request)
        return (answer.job.tenant, answer.allowed) if answer and not answer.job.score else None

    def found_prefix(self, request: str, tokens: int) -> None:
        answer = self.answering(request)
        if answer and not answer.count:
            answer.cached = tokens


class PackedManager(ContinuousBatchingManager):
    """transformers' loop, which outlives a pass that fails."""

    def __init__(self, engine: PackedEngine) -> None:
        options = engine.options
        self.engine = engine
        config = ContinuousBatchingConfig(
            page_size=options.block_tokens,
            num_blocks=options.blocks,
            max_batch_tokens=options.pass_tokens,
            max_requests_per_batch=min(options.at_once, options.pass_tokens),
            allow_block_sharing=options.share_prefixes,
            use_async_batching=False,
            use_cuda_graph=False,
            max_blocks_per_request=0,
        )
        settings = cast(Any, GenerationConfig)(do_sample=False, eos_token_id=-1, max_new_tokens=1)
        super().__init__(engine.model, settings, config)
        self.output_router = Failures(engine)

    def switch_to_cb_friendly_attn(self, model: Any, auto_switch_to_flash: bool = True) -> None:
        """It has been switched."""

    def _create_batch_processor(self) -> Any:
        made: Any = super()._create_batch_processor()
        made.model_runner = PackedRunner(
            self.engine, self.logit_processor, made.cb_config, made.inputs_and_outputs, made.cache, False, False
        )
        if made.cache.use_prefix_sharing:
            PrivatePrefixes(made.cache, self.engine.owner, self.engine.found_prefix)
        return made

    def _generation_loop_body(self, batch_processor: Any, bootstrapping: bool) -> bool:
        runner = batch_processor.model_runner
        try:
            going = super()._generation_loop_body(batch_processor, bootstrapping)
        except Exception as error:  # of any kind: strangers' requests must not end with this one
            LOG.exception("a pass failed")
            why = RuntimeError(f"a pass failed ({type(error).__name__}).")
            if runner.in_pass:
                batch_processor.handle_batch_error(why)
            else:
                batch_processor.fail_all_requests(why)
            going = True
        runner.in_pass = False
        self.engine.tell()
        return going


class PackedRunner(ModelRunner):
    """Runs a pass, and draws the tokens."""

    def __init__(self, engine: PackedEngine, processor: Any, config: Any, io: Any, *rest: Any) -> None:
        super().__init__(processor, config, io, *rest)
        self.engine, self.in_pass = engine, False

    def compute_batch(self, model: Any, batch_data: dict[str, Any]) -> None:
        self.in_pass = True
        io: Any = self.inputs_and_outputs
        given = batch_data | {"packing": Packing(batch_data)}

        def forward(places: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(**given, logits_to_keep=places).logits
            return logits[0]

        tokens = self.engine.run_pass(forward, io.requests_in_batch)
        io.output_ids[0, : len(tokens)] = torch.tensor(tokens, dtype=io.output_ids.dtype, device=io.output_ids.device)


class Failures(OutputRouter):
    """Of transformers' own results only failures are of use; tokens have been told by then."""

    def __init__(self, engine: PackedEngine) -> None:
        super().__init__()
        self.engine = engine

    def deliver(self, output: Any) -> None:
        if output.error:
            self.engine.fail(output.request_id, output.error, again=True)

    def deliver_batch(self, outputs: list[Any]) -> None:
        for output in outputs:
            self.deliver(output)
