"""What `/metrics` tells Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .batcher import Batcher

SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
TOKENS = (16, 64, 256, 512, 1024, 2048, 4096, 8192, 16384, 65536)


class Measures:
    """Counts of this server."""

    def __init__(self) -> None:
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "bertfast_requests", "Requests answered.", ["path", "status"], registry=own
        )
        self.seconds = Histogram(
            "bertfast_request_seconds",
            "From a request's headers to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=own,
        )
        self.cancelled = Counter("bertfast_cancelled", "Requests whose client left.", registry=own)
        self.tokens = Counter("bertfast_tokens", "Tokens computed.", registry=own)
        self.sequences = Counter("bertfast_sequences", "Inputs computed.", registry=own)
        self.batch_tokens = Histogram(
            "bertfast_batch_tokens", "Tokens of a batch.", buckets=TOKENS, registry=own
        )
        self.batch_seconds = Histogram(
            "bertfast_batch_seconds", "Of a batch's computation.", buckets=SECONDS, registry=own
        )
        self.queue_texts = Gauge("bertfast_queue_texts", "Texts not yet answered.", registry=own)
        self.queue_tokens = Gauge("bertfast_queue_tokens", "Tokens that wait.", registry=own)
        self.ready = Gauge("bertfast_ready", "Whether a worker can compute.", registry=own)
        self.deaths = Gauge("bertfast_worker_deaths", "Workers that ended.", registry=own)

    def observe(self, tokens: int, sequences: int, seconds: float) -> None:
        """Counts a batch."""
        self.tokens.inc(tokens)
        self.sequences.inc(sequences)
        self.batch_tokens.observe(tokens)
        self.batch_seconds.observe(seconds)

    def text(self, batcher: Batcher, texts: int) -> bytes:
        """In Prometheus' format."""
        self.queue_texts.set(texts)
        self.queue_tokens.set(batcher.waiting)
        self.ready.set(batcher.ready)
        self.deaths.set(batcher.deaths)
        return generate_latest(self.registry)
