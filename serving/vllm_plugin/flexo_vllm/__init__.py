"""vLLM's side of `flexo-serve`: each request uses the experts that it names, the public one alone if it names none.

The model goes by a name that no vLLM without this plugin knows. So where the plugin is not loaded, which vLLM only
logs, the engine does not start, instead of serving all experts to everybody.
"""

from __future__ import annotations

ARCHITECTURE = "FlexoEntitledForCausalLM"
VERSIONS = ("0.32.",)  # of vLLM, that `make vllm` was run with
SETTING = "flexo"  # in vLLM's `additional_config` and in a request's `extra_args`


def register() -> None:
    """Called by vLLM in each of its processes, perhaps more than once."""
    import vllm

    if not vllm.__version__.startswith(VERSIONS):
        raise RuntimeError(
            f"vLLM {vllm.__version__}: flexo-vllm was made for {', '.join(VERSIONS)}x, and other versions may route "
            "otherwise. Install one of these."
        )
    vllm.ModelRegistry.register_model(ARCHITECTURE, "flexo_vllm.model:EntitledFlexOlmo")
