"""Metrics for Prometheus. Each gateway has its own registry, so that tests can run two in one process."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from e5_gateway.targets import Targets

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class Metrics:
    """The gateway's counters and gauges. `render()` is the body of GET /metrics."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests answered", "route", "method", "status")
        self.seconds = Histogram(
            "e5_gateway_request_seconds",
            "From the first byte of a request to the last of its answer",
            ["route"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.texts = self._counter("texts", "Texts embedded", "api")
        self.tokens = self._counter("input_tokens", "Tokens of the texts embedded", "api")
        self.predictions = self._counter("predictions", "Predictions of the Replicate API that ended", "status")
        self.webhooks = self._counter("webhooks", "Webhook deliveries tried", "outcome")
        self.cut_off = self._counter("connections_cut_off", "Connections that the gateway ended, by reason", "reason")
        self.waiting = self._gauge("queue_waiting", "Requests that wait for their turn")
        self.running = self._gauge("queue_running", "Requests that a target computes", "target")
        self.bytes = self._gauge("queue_running_bytes", "Bytes of the requests that a target computes", "target")
        self.ready = self._gauge("target_ready", "1 when a target can compute, else 0", "target")
        self.different = self._gauge(
            "target_different",
            "1 for a target that differs from the others and gets no requests",
            "target",
            "difference",
        )

    def count_embedded(self, api: str, prediction_metrics: dict[str, object]) -> None:
        """Add a prediction's own `texts` and `input_tokens`."""
        for counter, name in ((self.texts, "texts"), (self.tokens, "input_tokens")):
            value = prediction_metrics.get(name)
            if isinstance(value, int | float):
                counter.labels(api).inc(value)

    def count_cut_off(self, reason: str) -> None:
        self.cut_off.labels(reason).inc()

    def render(self, targets: Targets) -> bytes:
        for gauge in (self.running, self.bytes, self.ready, self.different):
            gauge.clear()  # of targets that have left
        for target in targets:
            self.running.labels(target.url).set(target.running)
            self.bytes.labels(target.url).set(target.bytes)
            self.ready.labels(target.url).set(target.ready)
            if target.difference:
                self.different.labels(target.url, target.difference).set(1)
        return generate_latest(self.registry)

    def _counter(self, name: str, description: str, *labels: str) -> Counter:
        return Counter(f"e5_gateway_{name}", description, labels, registry=self.registry)

    def _gauge(self, name: str, description: str, *labels: str) -> Gauge:
        return Gauge(f"e5_gateway_{name}", description, labels, registry=self.registry)
