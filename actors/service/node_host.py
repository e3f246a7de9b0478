"""The actor of each node: it reports the node's identity, sweeps the node, and empties it when Ray drains it.

A thin Ray shell round `actors.service.node_sweeper` and `actors.service.drain`.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ray

from actors.host.error_filter import guarded
from actors.logs import configure_logging, log
from actors.node.memory import Rank, give_rank
from actors.rpc.cluster import draining_nodes

if TYPE_CHECKING:
    from actors.config import SandboxConfig
    from actors.service.drain import Drain
    from actors.service.node_sweeper import NodeSweeper

_SWEEP_S = 300.0
_DRAIN_S = 1.0
"""Pause between two questions to Ray whether it drains the node. Each takes the cluster's head 2 ms (measured)."""


class NodeHost:
    """One node's actor. `__init__` does nothing that can fail: Ray would never start the actor again.

    Sweeps, scrub and the watch for a drain run in threads of their own; the first of each begins at once.
    """

    def __init__(self, config: SandboxConfig) -> None:
        give_rank(Rank.SERVICE)
        self._config = config
        self._node_id = ray.get_runtime_context().get_node_id()
        self._drain: Drain | None = None
        threading.Thread(target=self._keep_clean, name="sweep", daemon=True).start()
        threading.Thread(target=self._watch_for_drain, name="drain", daemon=True).start()
        threading.Thread(target=self._scrub, name="scrub", daemon=True).start()

    @functools.cached_property
    def _sweeper(self) -> NodeSweeper:
        from actors.bucket import open_catalog
        from actors.config import on_this_node
        from actors.service.node_sweeper import NodeSweeper

        configure_logging()
        here = on_this_node(self._config)
        return NodeSweeper(here.node, open_catalog(here))

    def identity(self) -> str:
        return self._sweeper.identity()

    def has_archive(self, backup_id: str) -> bool:
        return self._sweeper.has_archive(backup_id)

    def record_changed_at(self, tenant: str, sandbox_id: str) -> float | None:
        return self._sweeper.record_changed_at(tenant, sandbox_id)

    @ray.method(concurrency_group="adopt")
    def adopt(self, tenant: str, backup_id: str, owner: str) -> None:
        """Adopts a backup on this node, with the node's tools."""
        from actors.bucket import configured, open_catalog
        from actors.config import on_this_node
        from actors.service.adoption import adoption

        configure_logging()
        here = on_this_node(self._config)
        guarded(lambda: adoption(here, configured(open_catalog(here), here)).adopt(tenant, backup_id, owner))

    def _keep_clean(self) -> None:
        while True:
            try:
                self._sweeper.sweep()
            except Exception as e:  # the next sweep tries again
                log.error("sweep_failed", error=type(e).__name__)
            time.sleep(_SWEEP_S)

    def _scrub(self) -> None:
        from actors.service.scrub import keep_on

        keep_on(lambda: self._sweeper.scrub)

    def want(self, tenant: str, sandbox_id: str) -> None:
        """Notes a call to a sandbox that is asleep here while the node is being drained."""
        if self._drain is not None:
            self._drain.want(f"{tenant}/{sandbox_id}")

    @ray.method(max_task_retries=0)
    def leave(self) -> None:
        """Ends this actor once the node is drained. It is the node's last actor, so Ray then ends the node."""
        if self._drain is not None and self._drain.is_done:
            log.info("node_drained", node=self._node_id)
            ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    def _watch_for_drain(self) -> None:
        while True:
            try:
                self._attend(draining_nodes().get(self._node_id))
            except Exception as e:  # the cluster's head is away for a moment, or the disk hangs
                log.warning("drain_not_attended", error=type(e).__name__)
            time.sleep(_DRAIN_S)

    def _attend(self, deadline_ms: int | None) -> None:
        if deadline_ms is None:
            if self._drain is not None:
                log.warning("drain_cancelled", node=self._node_id)
                self._drain = None
                self._sweeper.resume()
            return
        if self._drain is None:
            self._drain = self._begun(deadline_ms)
        self._drain.announce(deadline_ms)
        self._drain.step()

    def _begun(self, deadline_ms: int) -> Drain:
        from actors.bucket import open_catalog
        from actors.config import on_this_node
        from actors.service.drain import Drain, schedule
        from actors.service.draining_node import DrainingNode

        self._sweeper.rest()
        log.warning("node_is_being_drained", node=self._node_id, deadline_ms=deadline_ms)
        here = on_this_node(self._config)
        premises = DrainingNode(here, open_catalog(here), node_id=self._node_id)
        return Drain(premises, schedule(deadline_ms, time.time()), start=_start)


def _start(act: Callable[[], None]) -> None:
    threading.Thread(target=act, name="hand-over", daemon=True).start()


@functools.cache
def node_host_class() -> Any:
    """The remote class of `NodeHost`, made once: Ray sends each new one through the cluster's head to every worker."""
    return ray.remote(concurrency_groups={"adopt": 1})(NodeHost)  # type: ignore[call-overload]
