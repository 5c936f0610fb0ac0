"""Figures for Prometheus, by key and by expert."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from serving.gateway.answers import Response
from serving.gateway.pool import Pool

SECONDS = (0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120)


class Metrics:
    """Counts of one server."""

    def __init__(self, pool: Pool) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "flexo_requests", "Requests by key and status.", ["key", "status"], registry=self.registry
        )
        self._tokens = Counter("flexo_tokens", "Tokens by key and kind.", ["key", "kind"], registry=self.registry)
        self._experts = Counter(
            "flexo_expert_tokens", "Tokens of answers, times the expert's share.", ["expert"], registry=self.registry
        )
        self.first = Histogram(
            "flexo_first_token_seconds",
            "To the first token of a stream.",
            registry=self.registry,
            buckets=SECONDS,
        )
        self.whole = Histogram(
            "flexo_answer_seconds", "To the end of an answer.", registry=self.registry, buckets=SECONDS
        )
        for name, about, value in (
            ("flexo_engines", "Engines that answer.", lambda: pool.served.alive if pool.served else 0),
            ("flexo_engine_restarts", "Engines started again.", lambda: pool.served.restarts if pool.served else 0),
            ("flexo_jobs", "Answers on their way.", lambda: pool.served.load if pool.served else 0),
        ):
            Gauge(name, about, registry=self.registry).set_function(value)

    def answered(self, key: str, response: Response) -> None:
        """Counts the tokens of an answer."""
        self._tokens.labels(key, "prompt").inc(response.prompt_tokens)
        self._tokens.labels(key, "completion").inc(response.completion_tokens)
        for expert, share in response.shares().items():
            self._experts.labels(expert).inc(share * response.completion_tokens)

    def text(self) -> bytes:
        return generate_latest(self.registry)
