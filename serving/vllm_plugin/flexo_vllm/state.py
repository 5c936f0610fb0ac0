"""Which token of a pass belongs to which request, as Model Runner V2 tells a model's state."""

from __future__ import annotations

from typing import Any

from flexo_vllm.rows import Plan
from vllm.v1.worker.gpu.model_states.default import DefaultModelState


class EntitledState(DefaultModelState):  # type: ignore[misc]
    """vLLM's, which also prepares the rows of each pass."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.rows = self.model.rows
        self._allowed: dict[str, list[bool]] = {}

    def add_request(self, req_index: int, new_req_data: Any) -> None:
        super().add_request(req_index, new_req_data)
        self._allowed[new_req_data.req_id] = self.rows.allowed(new_req_data.sampling_params)

    def remove_request(self, req_id: str) -> None:
        super().remove_request(req_id)
        self._allowed.pop(req_id, None)

    def prepare_inputs(self, input_batch: Any, req_states: Any) -> dict[str, Any]:
        """Before a pass, also before one that only warms up, whose requests nobody has added."""
        names, counts = list(input_batch.req_ids), input_batch.num_scheduled_tokens.tolist()
        ends = input_batch.query_start_loc_np[1 : len(names) + 1].tolist()
        left = (input_batch.prefill_len_np - input_batch.num_computed_tokens_np).tolist()
        drawing = [
            (name, end - 1)
            for name, end, count, todo in zip(names, ends, counts, left, strict=True)
            if count >= todo and name in self._allowed
        ]
        self.rows.begin(Plan([self._allowed.get(name, self.rows.public) for name in names], counts, drawing))
        found: dict[str, Any] = super().prepare_inputs(input_batch, req_states)
        return found

    def postprocess_state(self, *given: Any, **named: Any) -> None:
        super().postprocess_state(*given, **named)
        self.rows.end()
