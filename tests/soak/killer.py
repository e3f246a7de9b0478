"""Kills random processes of a service at random times: its sandboxes' actors, daemons, boxes and tools."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

from tests.support.service import Service, comm_of, read_or_empty, workers

ACTORS, DAEMONS, BOXES, TOOLS = "actors", "daemons", "boxes", "tools"
_TITLE = b"ray::SandboxHost"
_PROGRAMS: Mapping[str, frozenset[str]] = {
    DAEMONS: frozenset({"squashfuse_ll", "fuse-overlayfs"}),
    BOXES: frozenset({"bwrap"}),
    TOOLS: frozenset({"mksquashfs", "unsquashfs", "tar"}),
}
_SHORT_LIVED_S = 1.0


class Killer:
    """Kills from a thread of its own, within the block.

    Args:
        every_s: mean time between two kills.
    """

    def __init__(self, service: Service, rng: random.Random, *, every_s: float) -> None:
        self.killed: Counter[str] = Counter()
        self.log: list[str] = []
        self._service = service
        self._rng = rng
        self._every_s = every_s
        self._stopping = threading.Event()
        self._sparing = threading.Lock()
        self._spared = 0
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)

    @property
    def kills(self) -> int:
        """Number of processes killed so far."""
        return self.killed.total()

    @contextmanager
    def sparing(self) -> Iterator[None]:
        """Pauses the killing within the block: a sandbox that is killed again and again never comes up."""
        with self._sparing:
            self._spared += 1
        try:
            yield
        finally:
            with self._sparing:
                self._spared -= 1

    def __enter__(self) -> Killer:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stops killing, and waits until the thread has ended. Repeatable."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopping.wait(min(self._rng.expovariate(1 / self._every_s), 5 * self._every_s)):
            kind = self._rng.choice([ACTORS, ACTORS, DAEMONS, BOXES, TOOLS])
            victim = self._victim(kind)
            with self._sparing:
                if victim is not None and not self._spared:
                    self._kill(*victim)

    def _victim(self, kind: str) -> tuple[str, int] | None:
        """A process of this kind. For kinds that live for an instant, waits a short time for the next one."""
        deadline = time.monotonic() + (_SHORT_LIVED_S if kind in (BOXES, TOOLS) else 0)
        while True:
            if kind == ACTORS:
                found = sorted(workers(self._service, _TITLE))
            else:
                found = [pid for pid in _named(_PROGRAMS[kind]) if self._is_ours(pid)]
            if found:
                return kind, self._rng.choice(found)
            if time.monotonic() > deadline or self._stopping.is_set():
                return None

    def _is_ours(self, pid: int) -> bool:
        """True if the service is an ancestor. Quicker than `Service.pids`: a box lives only for an instant."""
        while pid > 1 and pid != self._service.process.pid:
            stat = read_or_empty(Path(f"/proc/{pid}/stat")).rpartition(b")")[2].split()
            pid = int(stat[1]) if stat else 0
        return pid > 1

    def _kill(self, kind: str, pid: int) -> None:
        name = comm_of(pid)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            return
        self.killed[kind] += 1
        self.log.append(f"{time.monotonic():.3f} killed {kind} {name} {pid}")


def _named(names: AbstractSet[str]) -> list[int]:
    """The processes of this machine with one of these names."""
    pids = sorted(int(folder.name) for folder in Path("/proc").glob("[0-9]*"))
    return [pid for pid in pids if comm_of(pid) in names]
