"""What the gateway counts, in a registry of its own."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from shoal.swarm.sessions.generation import Route
from shoal.swarm.text.pieces import Usage

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)


class GatewayMetrics:
    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        kept = self.registry
        self.requests = Counter("shoal_http_requests", "Answered requests", ["route", "status"], registry=kept)
        self.prompt_tokens = Counter("shoal_prompt_tokens", "Tokens of prompts", ["model"], registry=kept)
        self.new_tokens = Counter("shoal_completion_tokens", "Tokens generated", ["model"], registry=kept)
        self.failovers = Counter("shoal_failovers", "Hops replaced within a session", ["model"], registry=kept)
        self.moves = Counter("shoal_layer_moves", "Times that this node exchanged its layers", ["model"], registry=kept)
        self.sessions = Gauge("shoal_gateway_sessions", "Sessions open at this gateway", registry=kept)
        self.first_token = Histogram(
            "shoal_first_token_seconds", "Request to first piece of text", ["model"], buckets=_SECONDS, registry=kept
        )
        self.per_token = Histogram(
            "shoal_token_seconds",
            "Mean time per token after the first",
            ["model"],
            buckets=_TOKEN_SECONDS,
            registry=kept,
        )
        self.duration = Histogram(
            "shoal_generation_seconds", "Whole generation", ["model"], buckets=_SECONDS, registry=kept
        )

    def generated(self, model: str, usage: Usage, route: Route, first_s: float | None, total_s: float) -> None:
        """One session ended well; seconds count from the request's arrival."""
        self.prompt_tokens.labels(model).inc(usage.prompt_tokens)
        self.new_tokens.labels(model).inc(usage.completion_tokens)
        self.failovers.labels(model).inc(len(route.failovers))
        self.duration.labels(model).observe(total_s)
        if first_s is not None:
            self.first_token.labels(model).observe(first_s)
            if usage.completion_tokens > 1:
                self.per_token.labels(model).observe((total_s - first_s) / (usage.completion_tokens - 1))

    def text(self) -> bytes:
        """Prometheus' exposition format."""
        return generate_latest(self.registry)
