"""The nodes that take sandboxes, as the service's actor sees them: who they are, what is free, where a sandbox goes.

Ray names a node anew each time it joins, but what a sandbox's state remembers is the identity of a data folder. An
actor on each node, the node's host, says which is which; it also keeps the node clean (`actors.service.node_sweeper`).

Source: measured on Ray 2.60. By itself Ray packs new actors on one node, and with SPREAD moves them when they are
restarted; a creation for which nothing is free waits for ever. So the node is chosen here, and asked for softly.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import Counter, deque
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import SandboxUnavailableError
from actors.logs import log
from actors.rpc.cluster import draining_nodes, known_nodes
from actors.rpc.names import NAMESPACE
from actors.sandbox.activity import refused_by_drain

SLOTS = "sandbox_slots"
"""The resource of which each node offers as many as it can hold awake sandboxes."""
REUNION_S = 60.0
"""How long the service waits for nodes that an earlier cluster knew, from its own start on, before they are lost."""
_ANSWER_S = 15.0
_NEWS_S = 2.0
_NEAR_S = 1.0
_FREED_S = 3.0
"""How long a full cluster is looked at again: an actor that has left is in Ray's books for an instant longer."""
_BOOKED_S = 1.0
"""How long a placement of ours may be missing from Ray's books."""
_POLL_S = 0.05


def sandbox_nodes() -> list[dict[str, Any]]:
    """The living nodes that take sandboxes, as Ray describes them."""
    return _that_take_sandboxes(known_nodes())


def _that_take_sandboxes(nodes: list[dict[str, Any]]) -> list[dict[str, Any]]:
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
        self._lock = threading.Lock()
        """Never held while Ray is asked for anything."""
        self._choosing = threading.Lock()
        self._hosts: dict[str, Any] = {}
        self._identities: dict[str, str] = {}
        self._asked: dict[str, Any] = {}
        self._placed: deque[tuple[float, str]] = deque()
        self._began = time.monotonic()

    def attend(self, wait_s: float = _ANSWER_S) -> None:
        """Gives every node its host, and learns who it is. Quick when no node is new."""
        asked = self._unknown()
        if not asked:
            return
        ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=wait_s)
        for node_id, answer in asked.items():
            if answer not in ready:
                continue
            try:
                identity = ray.get(answer)
            except ray.exceptions.RayError as e:  # made anew, and asked again, the next time
                log.warning("node_does_not_answer", node=node_id, error=type(e).__name__)
                identity = None
            with self._lock:
                self._asked.pop(node_id, None)
                if identity is None:
                    self._hosts.pop(node_id, None)
                else:
                    self._identities[node_id] = identity

    def _unknown(self) -> dict[str, Any]:
        """The living nodes of which it is not known who they are, and the answers that they will give."""
        alive = {node["NodeID"] for node in sandbox_nodes()}
        with self._lock:
            for known in (self._hosts, self._identities, self._asked):
                for gone in known.keys() - alive:
                    known.pop(gone, None)
            new = alive - self._identities.keys() - self._asked.keys()
        draining = set(draining_nodes()) if new else set[str]()
        hosts = {node_id: self._old_host(node_id) if node_id in draining else self._host(node_id) for node_id in new}
        asked = {node_id: host.identity.remote() for node_id, host in hosts.items() if host is not None}
        with self._lock:
            self._asked.update(asked)
            return dict(self._asked)

    def _old_host(self, node_id: str) -> Any | None:
        """The host of a node that is being drained: Ray would put no new one there. None once it has left."""
        with contextlib.suppress(ValueError):
            return self._hosts.get(node_id) or ray.get_actor(node_host_name(node_id), namespace=NAMESPACE)
        return None

    def release_drained(self) -> None:
        """Lets the hosts of drained nodes leave, once all their sandboxes have: Ray ends a node on which nobody is."""
        for node_id in draining_nodes():
            if (host := self._old_host(node_id)) is not None:
                host.leave.remote()

    def _host(self, node_id: str) -> Any:
        host = self._hosts.get(node_id)
        if host is None:
            host = self._host_class.options(
                name=node_host_name(node_id),
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                max_restarts=-1,
                max_task_retries=-1,  # nothing that it does has an effect that may not be repeated
                scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
            ).remote(self._config)
            self._hosts[node_id] = host
        return host

    def _named(self, identity: str) -> str | None:
        """What the cluster calls the living node of an identity now; None if there is none, or it is not known yet."""
        with self._lock:
            return next((node_id for node_id, known in self._identities.items() if known == identity), None)

    def is_lost(self, identity: str, cluster_node: str | None) -> bool:
        """Whether a node is gone, and its files with it, as far as this cluster can know.

        It is if this cluster has seen it die, and no node that lives is the same one under another name. A node that
        only an earlier cluster has known is lost when it has not come back a while after the service's own start.
        """
        self.attend(_NEWS_S)
        rows: list[dict[str, Any]] = known_nodes()
        alive = {row["NodeID"]: row["Alive"] for row in rows}
        nodes = {row["NodeID"] for row in _that_take_sandboxes(rows)}
        with self._lock:
            if identity in self._identities.values():
                return False
            if nodes - self._identities.keys():
                return False  # one that has not said who it is may be the same
        if cluster_node in alive:
            return not alive[cluster_node]
        return time.monotonic() - self._began > REUNION_S

    def choose(self, address: tuple[str, str], identity: str | None, cached_backup_id: str | None) -> str:
        """The node for a new actor: where its files are, where a backup's archive is at hand, or where most is free.

        It is none that is being drained. If the files are on such a one, that node's host learns that somebody waits.

        Args:
            address: the sandbox's tenant and name.
            identity: of the node with the sandbox's files, if it has any.
            cached_backup_id: a backup that the sandbox is about to restore.

        Raises:
            SandboxUnavailableError: no slot is free, or none on the node with the files, after seconds; or it moves off
                its node just now, and the caller's side is to ask again in a moment.
        """
        home = self._home(identity) if identity is not None else None
        if home is not None and home in draining_nodes():
            if (host := self._old_host(home)) is not None:
                host.want.remote(*address)
            raise refused_by_drain()
        having = self._having(cached_backup_id) if home is None else set[str]()
        deadline = time.monotonic() + _FREED_S
        while True:
            with self._choosing:
                available, booked = self._books()
                free = {node_id: left for node_id, slots in available.items() if (left := slots - booked[node_id]) >= 1}
                if home is not None:
                    wanted = {home} & free.keys()
                elif having & available.keys():  # where nothing is free only by our books, that shows in a moment
                    wanted = having & free.keys()
                else:
                    wanted = set(free)
                if wanted:
                    chosen = max(wanted, key=lambda node_id: free[node_id])
                    self._placed.append((time.monotonic(), chosen))
                    return chosen
            if time.monotonic() > deadline:
                raise _full(
                    "No node has room for it." if home is None else "The node with its files has no room for it."
                )
            time.sleep(_POLL_S)

    def with_room(self) -> Any:
        """The host of the node where most is free, for work that needs a node's tools. Raises as `choose`."""
        with self._choosing:
            available, _ = self._books()
        if not available:
            raise _full("No node has room for it.")
        return self._host(max(available, key=lambda node_id: available[node_id]))

    def keeper(self, tenant: str, sandbox: str) -> str | None:
        """The identity of the node that has a sandbox's files, as the nodes say who have a record of it.

        For a sandbox of which the bucket does not say it. Of several that is the one that changed its record last.
        """
        nodes = {node["NodeID"] for node in sandbox_nodes()} - draining_nodes().keys()
        if len(nodes) < 2:
            return None
        said = self._told({self._host(node_id).record_changed_at.remote(tenant, sandbox): node_id for node_id in nodes})
        changed = {node_id: at for node_id, at in said.items() if at is not None}
        if not changed:
            return None
        with self._lock:
            return self._identities.get(max(changed, key=lambda node_id: changed[node_id]))

    def has_record(self, tenant: str, sandbox: str) -> bool:
        """Whether a node has a sandbox's files. Raises SandboxUnavailableError: a node that may have them is silent."""
        nodes = {node["NodeID"] for node in sandbox_nodes()}
        said = self._told({self._host(node_id).record_changed_at.remote(tenant, sandbox): node_id for node_id in nodes})
        if any(at is not None for at in said.values()):
            return True
        if said.keys() < nodes:
            raise SandboxUnavailableError(
                "A node that may have the sandbox's files does not answer.", context={"outcome": "not_executed"}
            )
        return False

    def _home(self, identity: str) -> str | None:
        """The living node of an identity; None if there is none that has said so."""
        alive = {node["NodeID"] for node in sandbox_nodes()}
        if self._named(identity) not in alive:  # it has just joined, or died
            self.attend()
        return self._named(identity)

    def _books(self) -> tuple[dict[str, float], Counter[str]]:
        """How many slots are free on each node that has any, by Ray's books; and what was placed there just now.

        The one may count the other already, or not. For who holds `_choosing`.
        """
        free: dict[str, dict[str, float]] = available_resources_per_node()  # type: ignore[no-untyped-call]
        now = time.monotonic()
        while self._placed and now - self._placed[0][0] > _BOOKED_S:
            self._placed.popleft()
        nodes = {node["NodeID"] for node in sandbox_nodes()} - draining_nodes().keys()
        slots = {node_id: free.get(node_id, {}).get(SLOTS, 0.0) for node_id in nodes}
        available = {node_id: count for node_id, count in slots.items() if count >= 1}
        return available, Counter(node_id for _, node_id in self._placed)

    def _having(self, backup_id: str | None) -> set[str]:
        """The nodes that have a backup's archive in their cache, as far as they say so in an instant."""
        nodes = {node["NodeID"] for node in sandbox_nodes()} if backup_id is not None else set[str]()
        if len(nodes) < 2:
            return set()
        said = self._told({self._host(node_id).has_archive.remote(backup_id): node_id for node_id in nodes})
        return {node_id for node_id, has in said.items() if has}

    def _told(self, asked: dict[Any, str]) -> dict[str, Any]:
        """The answers that nodes give within an instant."""
        ready, _ = ray.wait(list(asked), num_returns=len(asked), timeout=_NEAR_S)
        said = {}
        for answer in ready:
            with contextlib.suppress(ray.exceptions.RayError):
                said[asked[answer]] = ray.get(answer)
        return said


def _full(message: str) -> SandboxUnavailableError:
    return SandboxUnavailableError(
        message,
        hint="Try again later, delete sandboxes, add nodes, or raise the slots of each.",
        context={"outcome": "not_executed", "reason": "FULL"},
    )
