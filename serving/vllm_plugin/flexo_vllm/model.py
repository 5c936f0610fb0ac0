"""vLLM's own FlexOlmo, whose layers choose among the experts that each token may use."""

from __future__ import annotations

from typing import Any

import torch
from flexo_vllm import SETTING, state_v1
from flexo_vllm.rows import Rows
from vllm.model_executor.models.transformers import TransformersMoEForCausalLM
from vllm.model_executor.models.transformers import moe as backend
from vllm.model_executor.models.utils import extract_layer_index


def cannot_be_honoured(config: Any) -> list[str]:
    """What of a `VllmConfig` moves or shares rows of a batch, or counts tokens, as the plugin does not know it."""
    how, scheduler = config.parallel_config, config.scheduler_config
    found = {
        "speculative decoding": config.speculative_config is not None,
        "LoRA": config.lora_config is not None,
        "a KV connector": config.kv_transfer_config is not None,
        "EPLB": how.enable_eplb,
        "expert parallel": how.enable_expert_parallel,
        "data parallel": how.data_parallel_size > 1,
        "pipeline parallel": how.pipeline_parallel_size > 1,
        "context parallel": how.prefill_context_parallel_size > 1 or how.decode_context_parallel_size > 1,
        "sequence parallel": how.use_sequence_parallel_moe,
        "dual batch overlap": how.use_ubatching,
        "asynchronous scheduling": bool(scheduler.async_scheduling),
    }
    return [name for name, given in found.items() if given]


class EntitledFlexOlmo(TransformersMoEForCausalLM):  # type: ignore[misc]
    """Refuses to be loaded except by `flexo_vllm.process`, which keeps the cached prefixes of requests apart."""

    def recursive_replace(self) -> None:
        """Called while the model is built, where layers of the checkpoint are replaced by vLLM's."""
        config = self.vllm_config
        setting = (config.additional_config or {}).get(SETTING)
        if setting is None:
            raise ValueError("flexo-vllm: started by something else than flexo-serve. Use flexo-serve with kind: vllm.")
        if wrong := cannot_be_honoured(config):
            raise ValueError(f"flexo-vllm: entitlements do not hold under {', '.join(wrong)}. Switch it off.")
        self.rows = rows = Rows(setting, config.scheduler_config.max_num_batched_tokens, config.device_config.device)
        if not config.use_v2_model_runner:
            state_v1.install()
        ours: list[Any] = []
        whole = backend.FusedMoEFactory

        def factory(*given: Any, **named: Any) -> Any:
            counts = rows.counted[extract_layer_index(named["prefix"])]

            def choose(
                hidden_states: torch.Tensor, gating_output: torch.Tensor, topk: int, renormalize: bool
            ) -> tuple[torch.Tensor, torch.Tensor]:
                chosen: tuple[torch.Tensor, torch.Tensor] = rows.route(gating_output, topk, renormalize, counts)
                return chosen

            ours.append(choose)
            return whole(*given, **named | {"custom_routing_function": choose})

        backend.FusedMoEFactory = factory
        try:
            super().recursive_replace()
        finally:
            backend.FusedMoEFactory = whole
        for layer in self.moe_layers:  # whatever newer versions do: no layer may choose otherwise
            if getattr(layer.router, "custom_routing_function", None) not in ours:
                raise ValueError(f"flexo-vllm: {layer.layer_name} does not choose by entitlement. Another vLLM?")
        if len(self.moe_layers) != len(rows.counted):
            raise ValueError(f"flexo-vllm: {len(self.moe_layers)} layers of experts, not {len(rows.counted)}.")

    def load_weights(self, weights: Any) -> Any:
        """Also refuses kernels that choose experts by themselves, which is known by now."""
        loaded = super().load_weights(weights)
        if any(layer.is_monolithic for layer in self.moe_layers):
            raise ValueError("flexo-vllm: this kernel chooses experts by itself. Choose another moe_backend.")
        return loaded

    @staticmethod
    def get_model_state_cls() -> Any:
        """What Model Runner V2 asks each model for."""
        from flexo_vllm.state import EntitledState

        return EntitledState
