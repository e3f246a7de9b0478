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
from actors.host.loops import keep_on
from actors.logs import configure_logging, log
from actors.node.memory import Rank, give_rank
from actors.rpc.names import NAMESPACE
from actors.rpc.ray_runtime import RayRuntime, on_node
from actors.service.drain_watch import DRAIN_S, DrainWatch
from actors.service.placement import node_host_name

if TYPE_CHECKING:
    from actors.config import SandboxConfig
    from actors.service.drain import Drain
    from actors.service.node_sweeper import NodeSweeper

_AFTER_FAILURE_S = 300.0


class NodeHost:
    """One node's actor. `__init__` does nothing that can fail: Ray would never start the actor again.

    Sweeps, scrub and the watch for a drain run in threads of their own; the first of each begins at once.
    """

    def __init__(self, config: SandboxConfig) -> None:
        give_rank(Rank.SERVICE)
        self._config = config
        self._runtime = RayRuntime()
        self._node_id = self._runtime.this_node()
        self._watch = DrainWatch(self._runtime, self._node_id, sweeper=lambda: self._sweeper, begin=self._begun)
        keep_on(lambda: self._sweeper.step(), name="sweep", failed="sweep_failed", retry_s=_AFTER_FAILURE_S)
        keep_on(self._watch.step, name="drain", failed="drain_not_attended", retry_s=DRAIN_S)
        keep_on(
            lambda: self._sweeper.scrub.step(), name="scrub", failed="scrub_failed", retry_s=_AFTER_FAILURE_S, nice=19
        )

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

    @ray.method(concurrency_group="adopt")
    def flatten(self, tenant: str, backup_id: str) -> str:
        """Makes a full backup of an incremental one on this node, with the node's tools; returns its id."""
        from actors.bucket import configured, open_catalog
        from actors.config import on_this_node
        from actors.service.flattening import flattening

        configure_logging()
        here = on_this_node(self._config)
        return guarded(lambda: flattening(here, configured(open_catalog(here), here)).flatten(tenant, backup_id))

    def want(self, tenant: str, sandbox_id: str) -> None:
        """Notes a call to a sandbox that is asleep here while the node is being drained."""
        self._watch.want(tenant, sandbox_id)

    @ray.method(max_task_retries=0)
    def leave(self) -> None:
        """Ends this actor once the node is drained. It is the node's last actor, so Ray then ends the node."""
        if self._watch.is_drained:
            log.info("node_drained", node=self._node_id)
            ray.actor.exit_actor()  # type: ignore[no-untyped-call]

    def _begun(self, deadline_ms: int) -> Drain:
        from actors.bucket import open_catalog
        from actors.config import on_this_node
        from actors.service.drain import Drain, schedule
        from actors.service.draining_node import DrainingNode

        here = on_this_node(self._config)
        premises = DrainingNode(self._runtime, here, open_catalog(here), node_id=self._node_id)
        return Drain(premises, schedule(deadline_ms, time.time()), start=_start)


def _start(act: Callable[[], None]) -> None:
    threading.Thread(target=act, name="hand-over", daemon=True).start()


def make_node_host(node_id: str, config: SandboxConfig) -> Any:
    """Returns the handle of a node's host; makes the host unless it exists."""
    return (
        _host_class()
        .options(
            name=node_host_name(node_id),
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,  # all its methods may be repeated
            scheduling_strategy=on_node(node_id, soft=False),
        )
        .remote(config)
    )


@functools.cache
def _host_class() -> Any:
    """The remote class of `NodeHost`, made once: Ray sends each new one through the cluster's head to every worker."""
    return ray.remote(concurrency_groups={"adopt": 1})(NodeHost)  # type: ignore[call-overload]
