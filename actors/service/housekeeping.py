"""The service's regular work: attention to the nodes, and the count of the bucket's sandboxes."""

from __future__ import annotations

import time
from collections.abc import Callable

from actors.logs import log
from actors.rpc.runtime import Runtime
from actors.service.placement import Nodes
from actors.service.warm_workers import WarmWorkers

HOUSEKEEPING_S = 5.0
_COUNT_S, _COUNT_SHARE = 30.0, 100.0
"""The pause between counts of the bucket's sandboxes: at least so many seconds, and so many times the count's time."""


class Housekeeping:
    """Gives new nodes their hosts, keeps workers warm, and lets drained nodes end. Moves off a draining node itself."""

    def __init__(
        self,
        runtime: Runtime,
        nodes: Nodes,
        warm: WarmWorkers,
        *,
        try_conditional_writes: Callable[[], None],
        move: Callable[[], None],
    ) -> None:
        """`move` ends this process, so that Ray restarts the service's actor on another node within seconds."""
        self._runtime = runtime
        self._nodes = nodes
        self._warm = warm
        self._try_conditional_writes = try_conditional_writes
        self._move = move

    def step(self) -> float:
        """Does one round; returns the seconds until the next one."""
        try:
            self._try_conditional_writes()
        except Exception as e:  # no StorageError, so a defect: nodes still need attention
            log.error("conditional_writes_not_tried", error=type(e).__name__)
        self._nodes.attend()
        self._warm.fill()
        self._nodes.release_drained()
        draining = self._runtime.draining_nodes().keys()
        others = {node.id for node in self._runtime.nodes() if node.is_alive} - draining
        if others and self._runtime.this_node() in draining:
            log.warning("service_moves")
            self._move()
        return HOUSEKEEPING_S


class SandboxCount:
    """The number of sandboxes in the bucket, counted now and then: a count lists the whole bucket."""

    def __init__(self, count: Callable[[], int | None], *, clock: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._clock = clock
        self.latest: int | None = None
        """As of the last count; None before the first one, and without a bucket."""

    def step(self) -> float:
        """Counts once; returns the seconds until the next count. A count that fails leaves `latest` as it is."""
        began = self._clock()
        try:
            self.latest = self._count()
        except Exception as e:  # the bucket is down, or answers nonsense
            log.warning("sandboxes_not_counted", error=type(e).__name__)
        return max(_COUNT_S, _COUNT_SHARE * (self._clock() - began))
