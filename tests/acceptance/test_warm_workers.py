"""A new sandbox takes a process that waits for it already, and another one takes that one's place."""

from __future__ import annotations

from collections.abc import Callable

from tests.acceptance.http_box import HttpBox
from tests.support.service import Service, eventually, workers


def test_new_sandboxes_are_made_of_workers_that_wait_and_are_replaced(
    service: Service, boxes: Callable[[], HttpBox]
) -> None:
    for _ in range(6):  # more than ever wait at once
        eventually(lambda: bool(workers(service, b"ray::IDLE")), timeout_s=60)
        before, awake = set(service.pids()), workers(service, b"ray::SandboxHost")

        assert boxes().sh("echo hello") == "hello\n"

        new = workers(service, b"ray::SandboxHost") - awake
        assert new and new <= before
