"""The watch for a drain of this node, run by the node's host: begins the drain, steps it, and ends it if cancelled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from actors.logs import log
from actors.rpc.runtime import Runtime
from actors.service.drain import Drain

DRAIN_S = 1.0
"""Pause between two questions to Ray whether it drains the node. Each takes the cluster's head 2 ms (measured)."""


class Sweeper(Protocol):
    """The part of `NodeSweeper` that a drain needs."""

    def rest(self) -> None:
        """Sweeps no sandbox until `resume`."""

    def resume(self) -> None:
        """Sweeps sandboxes again."""


class DrainWatch:
    """The watch of one node. `step` runs in one thread; the other methods may run in any."""

    def __init__(
        self, runtime: Runtime, node_id: str, *, sweeper: Callable[[], Sweeper], begin: Callable[[int], Drain]
    ) -> None:
        """`begin` returns a new drain of this node, by its deadline in milliseconds since 1970."""
        self._runtime = runtime
        self._node_id = node_id
        self._sweeper = sweeper
        self._begin = begin
        self._drain: Drain | None = None

    @property
    def is_drained(self) -> bool:
        """True if this node is being drained, and all its sandboxes were handed over."""
        return self._drain is not None and self._drain.is_done

    def want(self, tenant: str, sandbox_id: str) -> None:
        """Notes a call to a sandbox that is asleep here while the node is being drained."""
        if self._drain is not None:
            self._drain.want(f"{tenant}/{sandbox_id}")

    def step(self) -> float:
        """Asks once whether the node is being drained, and steps the drain; returns the seconds until the next step."""
        deadline_ms = self._runtime.draining_nodes().get(self._node_id)
        if deadline_ms is not None:
            if self._drain is None:
                self._sweeper().rest()
                log.warning("node_is_being_drained", node=self._node_id, deadline_ms=deadline_ms)
                self._drain = self._begin(deadline_ms)
            self._drain.announce(deadline_ms)
            self._drain.step()
        elif self._drain is not None:
            log.warning("drain_cancelled", node=self._node_id)
            self._drain = None
            self._sweeper().resume()
        return DRAIN_S
