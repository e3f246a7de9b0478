"""The nodes that take sandboxes, as the service's actor sees them: who they are, what is free, where a sandbox goes.

Ray names a node anew each time it joins, but what a sandbox's state remembers is the identity of a data folder. An
actor on each node, the node's host, says which is which; it also keeps the node clean (`actors.upkeep`).

Source: measured on Ray 2.60. By itself Ray packs new actors on one node, and with SPREAD moves them when they are
restarted; a creation for which nothing is free waits for ever. So the node is chosen here, and asked for softly.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from typing import Any

import ray
import structlog
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import SandboxUnavailableError
from actors.rpc import NAMESPACE

log = structlog.get_logger(__name__)

SLOTS = "sandbox_slots"
"""The resource of which each node offers as many as it can hold awake sandboxes."""
REUNION_S = 60.0
"""How long the service waits for nodes that an earlier cluster knew, from its own start on, before they are lost."""
_ANSWER_S = 15.0
_NEAR_S = 0.5
_FREED_S = 2.0
"""How long a full cluster is looked at again: an actor that has left is in Ray's books for an instant longer."""
_BOOKED_S = 1.0
"""How long a placement of ours may be missing from Ray's books."""
_POLL_S = 0.05


def sandbox_nodes() -> list[dict[str, Any]]:
    """The living nodes that take sandboxes, as Ray describes them."""
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"] and node["Resources"].get(SLOTS)]


def node_host_name(node_id: str) -> str:
    """The name under which a node's host is registered in the namespace."""
    return f"node:{node_id}"


class Nodes:
    """All nodes of the cluster. Thread-safe."""

    def __init__(self, host_class: Any, config: Any) -> None:
        """`host_class` is the remote class of a node's host, made with `config`."""
        self._host_class = host_class
        self._config = config
        self._attending = threading.Lock()
        self._lock = threading.Lock()
        self._hosts: dict[str, Any] = {}
        self._identities: dict[str, str] = {}
        self._placed: deque[tuple[float, str]] = deque()
        self._began = time.monotonic()

    def attend(self) -> None:
        """Gives every node its host, and learns who it is. Quick when no node is new."""
        with self._attending:
            asked = self._unknown()
            if not asked:
                return
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=_ANSWER_S)
            for node_id, answer in asked.items():
                try:
                    identity = ray.get(answer, timeout=0)
                except ray.exceptions.RayError as e:  # it goes on starting; asked again the next time
                    log.warning("node_does_not_answer", node=node_id, error=type(e).__name__)
                else:
                    with self._lock:
                        self._identities[node_id] = identity

    def _unknown(self) -> dict[str, Any]:
        """The living nodes of which it is not known who they are, and the answers that they will give."""
        alive = {node["NodeID"] for node in sandbox_nodes()}
        with self._lock:
            for gone in self._hosts.keys() - alive:
                self._hosts.pop(gone)
                self._identities.pop(gone, None)
            return {node_id: self._host(node_id).identity.remote() for node_id in alive - self._identities.keys()}

    def _host(self, node_id: str) -> Any:
        if node_id not in self._hosts:
            self._hosts[node_id] = self._host_class.options(
                name=node_host_name(node_id),
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,  # nothing that it does has an effect that may not be repeated
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            ).remote(self._config)
        return self._hosts[node_id]

    def named(self, identity: str) -> str | None:
        """What the cluster calls the living node of an identity now; None if there is none, or it is not known yet."""
        with self._lock:
            return next((node_id for node_id, known in self._identities.items() if known == identity), None)

    def is_lost(self, identity: str, cluster_node: str | None) -> bool:
        """Whether a node is gone, and its files with it, as far as this cluster can know.

        It is if this cluster has seen it die, and no node that lives is the same one under another name. A node that
        only an earlier cluster has known is lost when it has not come back a while after the service's own start.
        """
        self.attend()
        with self._lock:
            if identity in self._identities.values():
                return False
            rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
            alive = {row["NodeID"]: row["Alive"] for row in rows}
            if any(node["NodeID"] not in self._identities for node in sandbox_nodes()):
                return False  # one that has not said who it is may be the same
            if cluster_node in alive:
                return not alive[cluster_node]
            return time.monotonic() - self._began > REUNION_S

    def choose(self, identity: str | None, near: str | None) -> str:
        """The node for a new actor: where its files are, where a backup's archive is at hand, or where most is free.

        Args:
            identity: of the node with the sandbox's files, if it has any.
            near: a backup that the sandbox is about to restore.

        Raises:
            SandboxUnavailableError: no slot is free, or none on the node with the files; at once.
        """
        home = self._home(identity) if identity is not None else None
        deadline = time.monotonic() + _FREED_S
        while True:
            free = self._free()
            if home is not None and home not in free:
                if time.monotonic() > deadline:
                    raise _full("The node with the sandbox's files has no room for it.")
            elif home is not None:
                return self._book(home)
            elif free:
                return self._book(self._nearest(free, near) or max(free, key=lambda node_id: free[node_id]))
            elif time.monotonic() > deadline:
                raise _full("No node has room for the sandbox.")
            time.sleep(_POLL_S)

    def _home(self, identity: str) -> str | None:
        """The living node of an identity; None if there is none that has said so."""
        alive = {node["NodeID"] for node in sandbox_nodes()}
        if self.named(identity) not in alive:  # it has just joined, or died
            self.attend()
        return self.named(identity)

    def _free(self) -> dict[str, float]:
        """How many slots are free on each node that has any."""
        available: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
        now = time.monotonic()
        with self._lock:
            while self._placed and now - self._placed[0][0] > _BOOKED_S:
                self._placed.popleft()
            booked = Counter(node_id for _, node_id in self._placed)
        nodes = {node["NodeID"] for node in sandbox_nodes()}
        free = {node_id: available.get(node_id, {}).get(SLOTS, 0.0) - booked[node_id] for node_id in nodes}
        return {node_id: slots for node_id, slots in free.items() if slots >= 1}

    def _book(self, node_id: str) -> str:
        with self._lock:
            self._placed.append((time.monotonic(), node_id))
        return node_id

    def _nearest(self, free: dict[str, float], near: str | None) -> str | None:
        """Of the nodes that have the backup's archive in their cache, the one where most is free."""
        if near is None or len(free) < 2:
            return None
        with self._lock:
            asked = {node_id: self._host(node_id).has_archive.remote(near) for node_id in free}
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=_NEAR_S)
        try:
            having = [node_id for node_id, answer in asked.items() if answer in ready and ray.get(answer)]
        except ray.exceptions.RayError:
            return None
        return max(having, key=lambda node_id: free[node_id], default=None)


def _full(message: str) -> SandboxUnavailableError:
    return SandboxUnavailableError(
        message,
        hint="Try again later, delete sandboxes, add nodes, or raise the slots of each.",
        context={"outcome": "not_executed", "reason": "FULL"},
    )
