"""The metrics of one gateway: its own of HTTP, and the cluster's beside them.

Labels are route templates, methods and statuses; never a sandbox or a tenant.
"""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from gateway.cluster_metrics import ClusterCollector

_METHODS = frozenset({"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"})
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class HttpMetrics:
    """The metrics of one app, in a registry of their own so that two apps fit into one process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.in_flight = Gauge("holdfast_http_requests_in_flight", "Requests being answered", registry=self.registry)
        self._requests = Counter(
            "holdfast_http_requests", "Requests answered", ["route", "method", "status"], registry=self.registry
        )
        self._durations = Histogram(
            "holdfast_http_request_duration_seconds",
            "Time from a request's headers to the end of its answer",
            ["route", "method"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self._received = Counter(
            "holdfast_http_received_bytes", "Bytes of bodies received", ["route"], registry=self.registry
        )
        self._sent = Counter("holdfast_http_sent_bytes", "Bytes of bodies sent", ["route"], registry=self.registry)
        self.cluster = ClusterCollector()
        self.registry.register(self.cluster)

    def observe(
        self, route: str, method: str, status: int, *, duration_s: float, received_bytes: int, sent_bytes: int
    ) -> None:
        """Counts one request that has ended."""
        known = method if method in _METHODS else "OTHER"
        self._requests.labels(route, known, str(status)).inc()
        self._durations.labels(route, known).observe(duration_s)
        self._received.labels(route).inc(received_bytes)
        self._sent.labels(route).inc(sent_bytes)

    def exposition(self) -> Response:
        """The answer with all metrics, in Prometheus' text format."""
        return Response(generate_latest(self.registry), headers={"Content-Type": CONTENT_TYPE_LATEST})
