"""Backups and restores of one sandbox run one after the other; reads are answered meanwhile."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from itertools import pairwise
from typing import Any

import httpx

from tests.acceptance.http_box import HttpBox, refusal
from tests.support.service import Service, eventually
from tests.support.trees import MINUTES_OF_READING

AT_ONCE = 20
ANSWER_S, LONGEST_S = 0.250, 30.0
"""Limits for an answer's time: for the median, unless the operations themselves take long, and for the slowest."""


class Poller:
    """Requests the sandbox's state repeatedly, and records how long each answer took."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self.durations_s: list[float] = []
        self.busy_with: set[str] = set()
        self.failures: list[int] = []
        self._client, self._url = client, url
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._poll)

    def __enter__(self) -> Poller:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _poll(self) -> None:
        while not self._stopping.wait(0.005):
            began = time.perf_counter()
            response = self._client.get(self._url)
            self.durations_s.append(time.perf_counter() - began)
            if response.status_code != 200:
                self.failures.append(response.status_code)
                continue
            operation = response.json().get("operation")
            if operation:
                self.busy_with.add(operation["kind"])

    def percentile_s(self, percent: float) -> float:
        ordered = sorted(self.durations_s)
        return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def test_twenty_operations_at_once_run_one_by_one_while_the_state_stays_readable(
    service: Service, box: HttpBox, record_property: Callable[[str, object], None]
) -> None:
    box.sh("head -c 8000000 /dev/urandom > noise; seq 100000 > numbers; mkdir sub; echo 1 > sub/file")
    handle = box.backup()
    known = {record["id"] for record in box.info()["recent"]}
    start = threading.Barrier(AT_ONCE)

    def send(number: int) -> str:
        with service.client() as client:
            one = HttpBox(client, box.id)
            start.wait(120)
            if number % 2:
                assert one.restore(handle, dir=f"/app/{number % 6}")["success"]
                return handle["id"]
            return one.backup(name=f"number {number}")["id"]

    with service.client() as asking, Poller(asking, box.url) as poller, ThreadPoolExecutor(AT_ONCE) as pool:
        answered = list(pool.map(send, range(AT_ONCE)))

    records = [record for record in box.info()["recent"] if record["id"] not in known]
    times = sorted((datetime.fromisoformat(r["started_at"]), datetime.fromisoformat(r["ended_at"])) for r in records)
    assert len(records) == AT_ONCE
    assert sorted(record["backup_id"] for record in records) == sorted(answered)
    assert {record["outcome"] for record in records} == {"ok"}
    assert sum(record["kind"] == "backup" for record in records) == AT_ONCE // 2
    assert all(started <= ended for started, ended in times)
    assert all(ended <= started for (_, ended), (started, _) in pairwise(times))
    listed = {row["id"] for row in box.client.get(f"{box.url}/backups").json()["backups"]}
    assert listed == {*answered, handle["id"]}

    p99_s = poller.percentile_s(99)
    record_property("p99_ms", round(p99_s * 1000, 1))
    print(f"GET of the state: {len(poller.durations_s)} answers, p50 {poller.percentile_s(50) * 1000:.1f} ms, "
          f"p99 {p99_s * 1000:.1f} ms, worst {max(poller.durations_s) * 1000:.1f} ms")  # fmt: skip
    assert not poller.failures
    assert poller.busy_with == {"backup", "restore"}
    assert len(poller.durations_s) >= 50
    lasted_s = statistics.median((ended - started).total_seconds() for started, ended in times)
    assert poller.percentile_s(50) <= max(ANSWER_S, lasted_s / 2)
    assert max(poller.durations_s) <= LONGEST_S


def test_a_busy_sandbox_blocks_no_other(service: Service, box: HttpBox) -> None:
    box.sh(f"truncate -s {MINUTES_OF_READING} hole")
    codes: list[str] = []
    with service.client() as aside:
        busy = threading.Thread(
            target=lambda: codes.append(refusal(HttpBox(aside, box.id).post("backup", dir="/workspace"))[1])
        )
        busy.start()
        eventually(lambda: bool(running_operation(box)))
        before = running_operation(box)
        with HttpBox(box.client, f"{box.id}-2").destroyed_at_the_end() as other:
            other.sh("echo 1 > file")
            other.restore(other.backup())
        after = running_operation(box)
        assert box.post("cancel").json() == {"cancelled": True}
        busy.join(120)
    assert before["id"] == after["id"]
    assert codes == ["OPERATION_CANCELLED"]


def running_operation(box: HttpBox) -> dict[str, Any]:
    return box.client.get(f"{box.url}/operation").json() or {}
