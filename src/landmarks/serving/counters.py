"""The server's metrics: requests, images, batches and reloads, in the format of Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)

BATCHES = (1, 2, 4, 8, 16, 32)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Counters:
    """The server's metrics; none says where an image came from or what it is called."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "landmarks_requests", "Requests by path and status.", ["path", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "landmarks_request_seconds",
            "Seconds from a request's headers to its answer.",
            ["path"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.images = Counter(
            "landmarks_images",
            "Accepted images by outcome: known, unknown, answered (no threshold), unreadable, failed, abandoned.",
            ["outcome"],
            registry=self.registry,
        )
        self.refused = Counter(
            "landmarks_refused", "Requests that were not accepted, by reason.", ["reason"], registry=self.registry
        )
        self.batch = Histogram(
            "landmarks_batch_images", "Images that were answered at once.", buckets=BATCHES, registry=self.registry
        )
        self.accepted = Gauge(
            "landmarks_accepted_images", "Images accepted and not yet answered.", registry=self.registry
        )
        self.reloads = Counter(
            "landmarks_reloads",
            "Recognisers put in place while the server ran: taken, or refused as broken.",
            ["outcome"],
            registry=self.registry,
        )
        self.lessons = Counter(
            "landmarks_lessons",
            "Changes of what the served run knows: taught, forgotten.",
            ["outcome"],
            registry=self.registry,
        )

    def text(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self.registry)
