"""What the engine may ask its workers for: vLLM's `worker_extension_cls`."""

from __future__ import annotations

from typing import Any


class Shares:
    """Mixed into vLLM's worker."""

    def flexo_shares(self) -> list[tuple[str, list[float]]]:
        """Shares of the tokens since the last time; see `Rows.take`."""
        worker: Any = self
        found: list[tuple[str, list[float]]] = worker.model_runner.get_model().rows.take()
        return found
