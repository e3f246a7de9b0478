"""A new sandbox takes a warm worker, and a new worker replaces it."""

from __future__ import annotations

from collections.abc import Callable

from tests.acceptance.http_box import HttpBox
from tests.support.service import Service, eventually, workers


def test_new_sandboxes_take_warm_workers_which_are_replaced(service: Service, boxes: Callable[[], HttpBox]) -> None:
    for _ in range(6):  # more than the number of warm workers
        eventually(lambda: bool(workers(service, b"ray::IDLE")), timeout_s=60)
        before, awake = set(service.pids()), workers(service, b"ray::SandboxHost")

        assert boxes().sh("echo hello") == "hello\n"

        new = workers(service, b"ray::SandboxHost") - awake
        assert new and new <= before
