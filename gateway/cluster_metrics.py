"""The metrics of the whole cluster, as a part of `GET /metrics`.

The counts are those of all actors together, so they are the same at every gateway of a cluster.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

from actors.metrics import METRICS, SUM, ClusterMetrics, Counts, Metric

LIMIT_S = 2.0


class ClusterCollector(Collector):
    """Shows the metrics from the last `refresh`; while the service does not answer, only that it does not."""

    def __init__(self, *, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._known: ClusterMetrics | None = None
        self._asking: asyncio.Future[ClusterMetrics | None] | None = None

    async def refresh(self, ask: Callable[[], Awaitable[ClusterMetrics]]) -> None:
        """Asks the service, for a bounded time. Never raises.

        A question that is not answered in time goes on, since the thread that waits for a lost cluster cannot be
        stopped. Until it ends, no other question is asked.
        """
        if self._asking is None or self._asking.done():
            self._asking = asyncio.ensure_future(_answer(ask))
        asking = self._asking
        await asyncio.wait({asking}, timeout=self._limit_s)
        self._known = asking.result() if asking.done() and not asking.cancelled() else None

    def collect(self) -> Iterator[Family]:
        """The metric families, for Prometheus' client."""
        known = self._known
        yield GaugeMetricFamily(
            "holdfast_service_up", "Whether the service's actor answers", value=float(known is not None)
        )
        if known is None:
            return
        yield GaugeMetricFamily("holdfast_sandboxes_awake", "Sandboxes that have an actor", value=known.awake)
        if known.asleep is not None:
            yield GaugeMetricFamily(
                "holdfast_sandboxes_asleep", "Sandboxes on record without an actor", value=known.asleep
            )
        if known.collected_at is not None:
            yield GaugeMetricFamily(
                "holdfast_gc_last_success_timestamp_seconds",
                "When the last collection of the bucket ended that succeeded",
                value=known.collected_at,
            )
        yield GaugeMetricFamily("holdfast_nodes", "Nodes that take sandboxes", value=known.nodes)
        slots = GaugeMetricFamily("holdfast_slots", "Sandboxes that the nodes can hold awake", labels=["state"])
        slots.add_metric(["used"], known.slots - known.free_slots)
        slots.add_metric(["free"], known.free_slots)
        yield slots
        for metric in METRICS:
            yield _family(metric, known.counts)


async def _answer(ask: Callable[[], Awaitable[ClusterMetrics]]) -> ClusterMetrics | None:
    try:
        return await ask()
    except Exception:  # the gateway's own metrics are needed most when the cluster fails
        return None


def _family(metric: Metric, counts: Counts) -> Family:
    rows = {labels: amount for (name, labels), amount in counts.items() if name == metric.name}
    if metric.bounds:
        return _histogram(metric, rows)
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, amount in sorted(rows.items()):
        family.add_metric(labels, amount)
    return family


def _histogram(metric: Metric, rows: dict[tuple[str, ...], float]) -> Family:
    observed: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for labels, amount in rows.items():
        observed[labels[:-1]][labels[-1]] = amount
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    for values, amounts in sorted(observed.items()):
        buckets, total = [], 0.0
        for index, bound in enumerate([*map(float, metric.bounds), float("inf")]):
            total += amounts.get(str(index), 0.0)
            buckets.append(("+Inf" if bound == float("inf") else str(bound), total))
        family.add_metric(values, buckets, sum_value=amounts.get(SUM, 0.0))
    return family
