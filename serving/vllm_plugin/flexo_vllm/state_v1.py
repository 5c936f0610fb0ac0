"""The same for Model Runner V1, which vLLM takes on CPU. It has no hook, so two of its methods are wrapped."""

from __future__ import annotations

from typing import Any

from flexo_vllm.rows import Plan, Rows


def install() -> None:
    """Wraps the methods, once in a process."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if hasattr(GPUModelRunner, "flexo_plan"):
        return
    prepare, forward = GPUModelRunner._prepare_inputs, GPUModelRunner._model_forward

    def _prepare_inputs(self: Any, scheduler_output: Any, num_scheduled_tokens: Any) -> Any:
        made = prepare(self, scheduler_output, num_scheduled_tokens)
        if rows := _rows(self):
            rows.begin(plan(self, rows, num_scheduled_tokens))
        return made

    def _model_forward(self: Any, *given: Any, **named: Any) -> Any:
        try:
            return forward(self, *given, **named)
        finally:
            if rows := _rows(self):
                rows.end()

    GPUModelRunner._prepare_inputs, GPUModelRunner._model_forward = _prepare_inputs, _model_forward
    GPUModelRunner.flexo_plan = plan


def plan(runner: Any, rows: Rows, num_scheduled_tokens: Any) -> Plan:
    """The pass that a `GPUModelRunner` has prepared."""
    names = runner.input_batch.req_ids[: runner.input_batch.num_reqs]
    ends = runner.query_start_loc.np[1 : len(names) + 1].tolist()
    discarded = runner.discard_request_mask.np[: len(names)].tolist()
    drawing = [(name, end - 1) for name, end, no in zip(names, ends, discarded, strict=True) if not no]
    allowed = [rows.allowed(runner.requests[name].sampling_params) for name in names]
    return Plan(allowed, num_scheduled_tokens[: len(names)].tolist(), drawing)


def _rows(runner: Any) -> Rows | None:
    return getattr(runner.get_model(), "rows", None)
