"""Two tenants on one machine: one is at every limit at once, and the other is still served.

`tests/support/hoard.py` is the program with which a sandbox takes resources.
"""

from __future__ import annotations

import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from tests.acceptance.http_box import HttpBox, Running, refusal
from tests.support.service import Service, running

pytestmark = [pytest.mark.alone, pytest.mark.timeout(1200)]
HOARD = Path(__file__).parents[1] / "support" / "hoard.py"
GREEDY, MODEST = "greedy", "modest"
KEYS = {GREEDY: "key-of-the-greedy-tenant", MODEST: "key-of-the-modest-tenant"}
LIMITS = {"HOLDFAST_EXEC_MEMORY_BYTES": str(2**30), "HOLDFAST_EXEC_PROCESSES": "512"}
TAKEN = ("files", "inotify-watches", "timers", "message-queues", "pipes", "files-in-flight", "network-buffers",
         "terminals", "memory", "processes")  # fmt: skip
"""Resources that commands take, besides the many names. "processes" comes last: no command starts after it."""
COMMANDS, READERS, WAITING = 32, 16, 64
"""Numbers of calls that a sandbox serves at once, and of calls that may wait for each lane."""
CONNECTIONS = 2200
PESTERING = 8
ROUNDS = 8
SLOWER = 200
"""Limit for the slowdown against an idle machine: far above what is measured, far below that of a starved tenant."""


def ended(command: Running) -> None:
    """Ends a command that may have ended already: when memory runs out, the kernel kills the largest process."""
    with suppress(OSError):
        command.hang_up()


@dataclass(slots=True)
class Greedy:
    """The tenant that takes all it can get, in its sandbox and from the service."""

    service: Service
    box: HttpBox
    stack: ExitStack
    slow: list[socket.socket] = field(default_factory=list)

    def take(self, kind: str, *at_most: int) -> None:
        """Starts a command that takes as much of a resource as there is; returns once it has."""
        taking = self.box.start("python3", "/workspace/hoard.py", kind, *map(str, at_most))
        self.stack.callback(ended, taking)
        taking.said(b"held ")

    def connect(self) -> socket.socket:
        """Opens a connection and sends nothing."""
        url = httpx.URL(self.service.url)
        assert url.port is not None
        ours = socket.create_connection((url.host, url.port), timeout=30)
        self.stack.callback(ours.close)
        return ours

    def send(self, method: str, path: str, body: bytes = b"", *, length: int | None = None) -> socket.socket:
        """Sends a request and never reads its answer; with a `length`, sends the headers alone and announces a body."""
        lines = [
            f"{method} {self.box.url}/{path} HTTP/1.1",
            "Host: h",
            f"Authorization: Bearer {KEYS[GREEDY]}",
            f"Content-Length: {len(body)}" if length is None else f"Content-Length: {length}\r\nExpect: 100-continue",
            "Content-Type: application/json",
        ]
        ours = self.connect()
        ours.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        return ours

    def fill_lanes(self) -> None:
        """Starts as many downloads and commands as are allowed, and never reads their output."""
        chatty = json.dumps({"argv": ["yes"]}).encode()
        silent = [self.send("GET", "file/workspace/large") for _ in range(READERS)]
        silent += [self.send("POST", "exec", chatty) for _ in range(COMMANDS - len(TAKEN))]
        for answer in silent:
            assert answer.recv(12) == b"HTTP/1.1 200"

    def fill_queues(self) -> None:
        """Sends as many calls as may wait for each lane, and more."""
        calls = (("GET", "file/workspace/large", b""), ("POST", "exec", b'{"argv": ["true"]}'),
                 ("POST", "backup", b'{"dir": "/workspace"}'), ("GET", "files?path=/workspace/many", b""))  # fmt: skip
        for call in calls:
            for _ in range(WAITING + 16):
                self.send(*call)

    def fill_connections(self) -> None:
        """Opens as many connections as it can: first with its key and a body that never ends, then without a key."""
        for _ in range(CONNECTIONS):
            ours = self.send("POST", "exec", length=10_000)
            if ours.recv(12) == b"HTTP/1.1 100":  # else the connection is over the limit
                self.slow.append(ours)
        for _ in range(CONNECTIONS):
            with suppress(ConnectionError):
                self.connect()

    def pester(self) -> None:
        """Goes on calling, like clients that retry at once."""
        stopped = threading.Event()

        def call() -> None:
            with self.service.client(KEYS[GREEDY]) as client:
                while not stopped.is_set():
                    for path in ("/files?path=/workspace/many", "", "/file/workspace/hoard.py", "/backups"):
                        with suppress(httpx.TransportError):
                            client.get(self.box.url + path)

        def send_on() -> None:
            while not stopped.wait(5):
                for ours in self.slow:
                    with suppress(OSError):
                        ours.send(b" ")

        threads = [threading.Thread(target=call) for _ in range(PESTERING)]
        threads.append(threading.Thread(target=send_on))
        for thread in threads:
            thread.start()
            self.stack.callback(thread.join)
        self.stack.callback(stopped.set)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("tenants")
    env = {"HOLDFAST_API_KEYS": json.dumps(KEYS), **LIMITS}
    with running(folder / "home", folder / "data", env=env, key=KEYS[MODEST]) as service:
        yield service


def box_of(service: Service, tenant: str, stack: ExitStack) -> HttpBox:
    """A tenant's sandbox with the hoarding program. It ends with the service: its waiting calls may take long."""
    box = HttpBox(stack.enter_context(service.client(KEYS[tenant])), f"{tenant}-box")
    box.write("/workspace/hoard.py", HOARD.read_bytes())
    return box


def a_command(box: HttpBox) -> None:
    assert box.sh("echo served") == "served\n"


def a_file(box: HttpBox) -> None:
    data = bytes(range(256)) * 4096
    box.write("/workspace/own/file", data)
    assert box.read("/workspace/own/file") == data


def a_listing(box: HttpBox) -> None:
    assert box.client.get(f"{box.url}/files?path=/workspace/own").status_code == 200


def a_backup_and_its_restore(box: HttpBox) -> None:
    handle = box.backup("/workspace/own")
    box.sh("rm /workspace/own/file")
    box.restore(handle)
    assert box.sh("ls /workspace/own") == "file\n"


CALLS: tuple[Callable[[HttpBox], None], ...] = (a_file, a_command, a_listing, a_backup_and_its_restore)


@contextmanager
def met_anew(service: Service) -> Iterator[HttpBox]:
    """The modest tenant's sandbox, on a new connection."""
    with service.client(KEYS[MODEST]) as client:
        yield HttpBox(client, f"{MODEST}-box")


def latencies_s(service: Service) -> dict[str, list[float]]:
    """Returns how long each kind of call took in each round. Every call must succeed."""
    taken: dict[str, list[float]] = {call.__name__: [] for call in CALLS}
    for _ in range(ROUNDS):
        for call in CALLS:
            began = time.monotonic()
            with met_anew(service) as box:
                call(box)
            taken[call.__name__].append(time.monotonic() - began)
    return taken


def compared(before: dict[str, list[float]], during: dict[str, list[float]]) -> float:
    """Prints the slowdown of each kind of call; returns the worst ratio of two medians."""
    worst = 0.0
    for kind, took in during.items():
        was = before[kind]
        ratio = statistics.median(took) / statistics.median(was)
        worst = max(worst, ratio)
        print(
            f"{kind.replace('_', ' ')}: median {statistics.median(was):.3f} s, then {statistics.median(took):.3f} s "
            f"(x {ratio:.1f}); worst {max(was):.3f} s, then {max(took):.3f} s (x {max(took) / max(was):.1f})"
        )
    return worst


def test_a_tenant_at_every_limit_at_once_does_not_starve_the_other(shared: Service) -> None:
    with ExitStack() as stack:
        box_of(shared, MODEST, stack)
        before = latencies_s(shared)
        greedy = Greedy(shared, box_of(shared, GREEDY, stack), stack)
        greedy.box.sh("head -c 64M /dev/zero > large; python3 hoard.py names 50000")
        *first, last = TAKEN
        for kind in first:
            greedy.take(kind)
        greedy.fill_lanes()
        greedy.take(last)
        greedy.fill_queues()
        greedy.fill_connections()
        greedy.pester()
        assert refusal(greedy.box.get("/workspace/large")) == (429, "TOO_MANY_REQUESTS")
        during = latencies_s(shared)
        assert refusal(greedy.box.get("/workspace/large")) == (429, "TOO_MANY_REQUESTS")
        assert compared(before, during) < SLOWER
