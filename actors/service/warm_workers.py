"""Ray worker processes that the service starts before a sandbox needs one.

Each sandbox takes a worker of its own. To start one costs half a second of processor time; a waiting worker becomes an
actor in some ten milliseconds. Ray fills its own pool once, with the first Ray driver, and does not refill it when
actors have used it up. But the raylet's PrestartWorkers request starts more at any time. The request is internal to Ray
and may change: any failure here costs speed, and nothing else.

Source: measured on Ray 2.60. A request starts as many workers as it asks for, whatever is there already, but not more
at once than `worker_maximum_startup_concurrency`. A worker that is not used within its keep-alive time ends.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from actors.logs import log
from actors.rpc.runtime import ClusterNode, Runtime, WorkersNotStartedError

_KEEP_ALIVE_S = 600
_AT_ONCE = 2
"""Workers for each request: a node with two cores starts no more at once, and drops the rest of a larger request."""


class WarmWorkers:
    """Keeps some workers ready on every node that takes sandboxes."""

    def __init__(self, runtime: Runtime, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`count` is the number for each node; 0 keeps none."""
        self._runtime = runtime
        self._count = count
        self._clock = clock
        self._filled_at: dict[str, float] = {}
        self._wanted: dict[str, int] = {}
        self._works = True
        self._lock = threading.Lock()
        self._waiting = 0
        """Number of calls that wait for a worker now."""
        self._used = Counter[str]()
        """Number of workers of each node that have become sandboxes, and are not replaced yet."""

    def fill(self) -> None:
        """Fills the pools of nodes that are new, or whose workers' time is over, a few workers at a time.

        The service calls it regularly.
        """
        if not self._count:
            return
        now, nodes = self._clock(), [node for node in self._runtime.nodes() if node.takes_sandboxes]
        for gone in self._filled_at.keys() - {node.id for node in nodes}:
            del self._filled_at[gone]
            self._wanted.pop(gone, None)
        for node in nodes:
            node_id = node.id
            if now - self._filled_at.get(node_id, -_KEEP_ALIVE_S) >= _KEEP_ALIVE_S:
                self._filled_at[node_id], self._wanted[node_id] = now, self._count
            with self._lock:
                batch = min(_AT_ONCE, self._wanted[node_id])
                self._wanted[node_id] -= batch
            if batch:
                self._start(node, batch)

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Counts a call that waits for a worker within the block. Used workers are replaced once no call waits.

        So in a burst of new sandboxes, no worker for later takes the processors from those that are waited for.
        """
        with self._lock:
            self._waiting += 1
        try:
            yield
        finally:
            with self._lock:
                self._waiting -= 1
                used = self._used if not self._waiting else Counter[str]()
                if used:
                    self._used = Counter()
            if used:
                threading.Thread(target=self._replace, args=(used,), name="warm-worker", daemon=True).start()

    def replace(self, node_id: str) -> None:
        """Notes that a worker of a node has become a sandbox. It is replaced as `awaited` says."""
        with self._lock:
            if self._count:
                self._used[node_id] += 1

    def _replace(self, used: Mapping[str, int]) -> None:
        for node in self._runtime.nodes():
            if node.takes_sandboxes and (gone := min(self._count, used.get(node.id, 0))):
                now = min(_AT_ONCE, gone)
                with self._lock:  # `fill` starts the rest
                    self._wanted[node.id] = min(self._count, self._wanted.get(node.id, 0) + gone - now)
                self._start(node, now)

    def _start(self, node: ClusterNode, count: int) -> None:
        if not self._works:
            return
        try:
            self._runtime.start_workers(node, count, _KEEP_ALIVE_S)
        except WorkersNotStartedError as e:
            log.info("no_warm_workers_now", error=str(e))
        except NotImplementedError as e:  # another Ray than the one we know
            self._works = False
            log.warning("no_warm_workers", error=str(e))
