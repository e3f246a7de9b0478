"""The cluster's figures on `/metrics`, also when the cluster does not answer."""

from __future__ import annotations

import asyncio

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry

from actors.errors import ServiceUnavailableError
from actors.metrics import CALL_SECONDS, CALLS, ClusterMetrics
from gateway.cluster_metrics import ClusterCollector
from tests.unit.gateway.conftest import DEADLINE_S, Gateway


def samples(text: str) -> dict[tuple[str, tuple[str, ...]], float]:
    """The samples, by name and the values of the labels in the order of the labels' names."""
    return {
        (sample.name, tuple(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_show_the_actors_counts_and_the_clusters_load(gateway: Gateway) -> None:
    tenant = gateway.cluster.tenant("default")
    tenant.tally.add(CALLS, "exec", "ok", amount=3)
    for seconds in (0.01, 0.2, 9000.0):
        tenant.tally.add(CALL_SECONDS, "exec", amount=seconds)
    gateway.request("POST", "/v1/sandbox")
    found = samples(gateway.request("GET", "/metrics").text)
    assert found["holdfast_service_up", ()] == 1
    assert found["holdfast_sandboxes_awake", ()] == 1
    assert found["holdfast_sandboxes_asleep", ()] == 7
    assert (found["holdfast_slots", ("used",)], found["holdfast_slots", ("free",)]) == (1, 9)
    assert found["holdfast_calls_total", ("exec", "ok")] == 3
    buckets = [
        found["holdfast_call_duration_seconds_bucket", ("exec", le)] for le in ("0.005", "0.025", "0.25", "+Inf")
    ]
    assert buckets == [0, 1, 2, 3]
    assert found["holdfast_call_duration_seconds_count", ("exec",)] == 3
    assert found["holdfast_call_duration_seconds_sum", ("exec",)] == pytest.approx(9000.21)
    assert found["holdfast_http_requests_total", ("POST", "/v1/sandbox", "200")] == 1


@pytest.mark.parametrize("failure", [ServiceUnavailableError("Gone."), RuntimeError("Ray has not been started yet.")])
def test_metrics_answer_without_a_cluster(gateway: Gateway, failure: Exception) -> None:
    gateway.request("GET", "/metrics")
    gateway.cluster.tenant("default").not_ready = failure
    response = gateway.request("GET", "/metrics")
    found = samples(response.text)
    assert (response.status_code, found["holdfast_service_up", ()]) == (200, 0)
    assert ("holdfast_sandboxes_awake", ()) not in found
    assert found["holdfast_http_requests_total", ("GET", "/metrics", "200")] == 1


def test_a_silent_cluster_gets_one_request_at_a_time_until_it_answers() -> None:
    async def scenario() -> None:
        collector, answers, asked = ClusterCollector(limit_s=0.01), asyncio.Event(), list[int]()
        registry = CollectorRegistry()
        registry.register(collector)

        async def ask() -> ClusterMetrics:
            asked.append(len(asked))
            await answers.wait()
            return ClusterMetrics(counts={}, awake=5, asleep=None, nodes=1, slots=5, free_slots=0)

        for _ in range(3):
            await collector.refresh(ask)
            assert registry.get_sample_value("holdfast_service_up") == 0
        assert asked == [0]
        answers.set()
        async with asyncio.timeout(DEADLINE_S):
            while not registry.get_sample_value("holdfast_service_up"):
                await collector.refresh(ask)
        assert registry.get_sample_value("holdfast_sandboxes_awake") == 5
        assert registry.get_sample_value("holdfast_sandboxes_asleep") is None

    asyncio.run(scenario())
