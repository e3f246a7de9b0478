"""Whichever part of the service is dead or hangs, `/ready` reports it, and a stop ends everything in time and order."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from actors.node import mountinfo
from tests.acceptance.http_box import HttpBox, refusal
from tests.support.service import Service, comm_of, eventually, nothing_left, start, workers

pytestmark = pytest.mark.alone

STOP_LIMIT_S = 30.0
READY_LIMIT_S = 10.0
END_S = 10.0
"""Time for the last processes to end, if the stop took almost all of its own."""


def named(name: str) -> Callable[[Service], set[int]]:
    return lambda service: {pid for pid in service.pids() if comm_of(pid) == name}


def titled(title: bytes) -> Callable[[Service], set[int]]:
    return lambda service: workers(service, title)


@dataclass(frozen=True, slots=True)
class Fault:
    """A signal to some of the service's processes, and whether `/ready` must report it."""

    of: Callable[[Service], set[int]]
    number: signal.Signals
    shows: bool
    env: Mapping[str, str] = field(default_factory=dict)

    def strike(self, service: Service) -> None:
        struck = self.of(service)
        assert struck, "there is nothing to strike"
        for pid in struck:
            os.kill(pid, self.number)


FAULTS = {
    "nothing": Fault(lambda service: {service.process.pid}, signal.SIGCONT, shows=False),
    "the control store is dead": Fault(named("gcs_server"), signal.SIGKILL, shows=True),
    "the control store hangs": Fault(named("gcs_server"), signal.SIGSTOP, shows=True),
    "the raylet is dead": Fault(named("raylet"), signal.SIGKILL, shows=True),
    "the raylet hangs": Fault(named("raylet"), signal.SIGSTOP, shows=False),
    "the service's actor hangs": Fault(titled(b"ray::ServiceHost"), signal.SIGSTOP, shows=True),
    "the sandboxes' actors hang": Fault(titled(b"ray::SandboxHost"), signal.SIGSTOP, shows=False),
    "the store hangs": Fault(named("rclone"), signal.SIGSTOP, shows=True),
    "the FUSE daemons hang": Fault(
        named("squashfuse_ll"), signal.SIGSTOP, shows=False, env={"HOLDFAST_DRIVER": "mixed"}
    ),
}


class Asking:
    """A request that stays open until the service ends it."""

    def __init__(self, service: Service) -> None:
        self.answer: httpx.Response | None = None
        self._service = service
        self._thread = threading.Thread(target=self._ask, daemon=True)
        self._thread.start()

    def _ask(self) -> None:
        with self._service.client() as client:
            self.answer = client.post(
                "/v1/sandbox/asked/exec",
                json={"argv": ["sh", "-c", "touch begun; sleep 600"]},
                timeout=STOP_LIMIT_S * 2,
            )

    def ended(self) -> httpx.Response:
        self._thread.join(STOP_LIMIT_S)
        assert self.answer is not None
        return self.answer


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_stop_ends_everything_in_time_whichever_part_is_dead(tmp_path: Path, fault: Fault) -> None:
    service = start(tmp_path / "home", tmp_path / "data", env=fault.env)
    with service.client() as client:
        box = HttpBox(client, "box")
        box.sh("echo 1 > file")
        box.restore(box.backup("/workspace"))
        assert mountinfo.mounts_under(service.data_dir)
    asking = Asking(service)
    eventually(service.node_path("asked", "/workspace/begun").exists)
    service.pids()

    fault.strike(service)
    if fault.shows:
        began = time.monotonic()
        headers = {"Authorization": f"Bearer {service.api_key}"}
        answer = httpx.get(f"{service.url}/ready", headers=headers, timeout=READY_LIMIT_S)
        assert refusal(answer)[0] == 503
        assert time.monotonic() - began < READY_LIMIT_S

    began = time.monotonic()
    assert service.stop(signal.SIGTERM) == 0
    took_s = time.monotonic() - began
    assert took_s < STOP_LIMIT_S, f"it took {took_s:.1f} s"
    assert mountinfo.mounts_under(service.data_dir) == []
    # Processes of Ray's dashboard end as soon as they notice that Ray has ended.
    nothing_left(service, timeout_s=max(STOP_LIMIT_S - took_s, END_S))
    assert "Traceback" not in service.stderr.read_text()
    if asking.ended().status_code != 200:
        assert refusal(asking.ended()) in ((503, "SERVICE_UNAVAILABLE"), (503, "SANDBOX_UNAVAILABLE"))
    else:
        assert '"code": "' in asking.ended().text.rpartition("event: error")[2]
    shutil.rmtree(service.ray_folder, ignore_errors=True)
