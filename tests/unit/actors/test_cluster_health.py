"""The health check of a cluster, with a fake control store, or for a process that has joined no cluster."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import ray._private.worker as ray_worker
from ray.exceptions import RpcError

from actors.errors import ServiceUnavailableError
from actors.rpc import cluster_health


@dataclass
class Node:
    state: int


class ControlStore:
    """Answers with these nodes, or fails."""

    def __init__(self, answer: list[Node] | Exception) -> None:
        self._answer = answer

    def get_all_node_info(self, *, timeout: float) -> dict[int, Node]:
        assert 0 < timeout < 5
        if isinstance(self._answer, Exception):
            raise self._answer
        return dict(enumerate(self._answer))


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray's record of this process, which is in no cluster."""
    worker: Any = ray_worker.global_worker
    monkeypatch.setattr(worker, "gcs_client", None, raising=False)
    yield worker


def test_a_cluster_with_one_living_node_is_healthy(worker: Any) -> None:
    worker.gcs_client = ControlStore([Node(1), Node(0)])
    cluster_health.check()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (RpcError("timed out"), "control store"),  # type: ignore[no-untyped-call]
        ([], "No node"),
        ([Node(1), Node(1)], "No node"),
    ],
)
def test_a_cluster_that_cannot_serve_is_an_error_that_names_the_cause(worker: Any, answer: Any, words: str) -> None:
    worker.gcs_client = ControlStore(answer)
    with pytest.raises(ServiceUnavailableError, match=words):
        cluster_health.check()


def test_a_process_in_no_cluster_gets_an_error(worker: Any) -> None:
    with pytest.raises(ServiceUnavailableError, match="has not joined"):
        cluster_health.check()
    assert cluster_health.dead_parts() == ()
