"""The nodes that take sandboxes, as the service's actor sees them: their identities, free slots, and the placement.

Ray gives a node a new name each time it joins, but a sandbox's state names the identity of the node's data folder. An
actor on each node, the node's host, reports that identity; it also sweeps the node (`actors.service.node_sweeper`).

Source: measured on Ray 2.60. By itself Ray packs new actors on one node, and with SPREAD moves them when they are
restarted; a creation for which nothing is free waits for ever. So the service chooses the node, and asks Ray softly.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from actors.errors import SandboxMovingError, SandboxUnavailableError
from actors.logs import log
from actors.rpc.runtime import Runtime

REUNION_S = 60.0
"""Time from the service's start after which nodes that only an earlier cluster knew count as lost."""
_ANSWER_S = 15.0
_NEWS_S = 2.0
_NEAR_S = 1.0
_FREED_S = 3.0
"""Time for which a full cluster is asked again: Ray still counts an actor for an instant after it has left."""
_BOOKED_S = 1.0
"""Time for which Ray's count may not include a placement of ours."""
_POLL_S = 0.05


def node_host_name(node_id: str) -> str:
    """The name under which a node's host is registered in the namespace."""
    return f"node:{node_id}"


class Nodes:
    """All nodes of the cluster. Thread-safe."""

    def __init__(
        self,
        runtime: Runtime,
        make_host: Callable[[str], Any],
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`make_host` returns the host of a node, by the node's name in the cluster. It makes the host if needed."""
        self._runtime = runtime
        self._make_host = make_host
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        """Never held during a request to Ray."""
        self._choosing = threading.Lock()
        self._hosts: dict[str, Any] = {}
        self._identities: dict[str, str] = {}
        self._asked: dict[str, Any] = {}
        self._placed: deque[tuple[float, str]] = deque()
        self._began = clock()

    def attend(self, wait_s: float = _ANSWER_S) -> None:
        """Gives every node its host, and learns the node's identity. Quick when no node is new."""
        asked = self._unknown()
        if not asked:
            return
        said = self._runtime.answers({ref: node_id for node_id, ref in asked.items()}, wait_s)
        for node_id, answer in said.items():
            if answer.error is not None:  # the next call finds or makes the host again
                log.warning("node_does_not_answer", node=node_id, error=answer.error)
            with self._lock:
                self._asked.pop(node_id, None)
                if answer.error is not None:
                    self._hosts.pop(node_id, None)
                else:
                    self._identities[node_id] = answer.value

    def _unknown(self) -> dict[str, Any]:
        """Asks the living nodes of unknown identity for it; returns the pending answers by node."""
        alive = self._alive()
        with self._lock:
            for known in (self._hosts, self._identities, self._asked):
                for gone in known.keys() - alive:
                    known.pop(gone, None)
            new = alive - self._identities.keys() - self._asked.keys()
        draining = set(self._runtime.draining_nodes()) if new else set[str]()
        hosts = {node_id: self._old_host(node_id) if node_id in draining else self._host(node_id) for node_id in new}
        asked = {node_id: host.identity.remote() for node_id, host in hosts.items() if host is not None}
        with self._lock:
            self._asked.update(asked)
            return dict(self._asked)

    def _old_host(self, node_id: str) -> Any | None:
        """The existing host of a draining node, on which Ray starts no new one. None once it has left."""
        return self._hosts.get(node_id) or self._runtime.find(node_host_name(node_id))

    def release_drained(self) -> None:
        """Asks the hosts of draining nodes to leave once their sandboxes have: Ray ends a node without actors."""
        for node_id in self._runtime.draining_nodes():
            if (host := self._old_host(node_id)) is not None:
                host.leave.remote()

    def _host(self, node_id: str) -> Any:
        host = self._hosts.get(node_id)
        if host is None:
            host = self._make_host(node_id)
            self._hosts[node_id] = host
        return host

    def _named(self, identity: str) -> str | None:
        """The name in the cluster of the living node of an identity; None if there is none, or it is not known yet."""
        with self._lock:
            return next((node_id for node_id, known in self._identities.items() if known == identity), None)

    def is_lost(self, identity: str, cluster_node: str | None) -> bool:
        """Tells whether a node is gone with its files, as far as this cluster can know.

        A node is lost if this cluster has seen it die, and no living node has its identity. A node that only an earlier
        cluster knew is lost if it has not come back `REUNION_S` after the service's start.
        """
        self.attend(_NEWS_S)
        rows = self._runtime.nodes()
        alive = {row.id: row.is_alive for row in rows}
        nodes = {row.id for row in rows if row.takes_sandboxes}
        with self._lock:
            if identity in self._identities.values():
                return False
            if nodes - self._identities.keys():
                return False  # a node of unknown identity may be this one
        if cluster_node in alive:
            return not alive[cluster_node]
        return self._clock() - self._began > REUNION_S

    def choose(self, address: tuple[str, str], identity: str | None, cached_backup_id: str | None) -> str:
        """Chooses the node for a new actor: the node with its files, a node with a backup's archive, or the emptiest.

        It never chooses a draining node. If the files are on one, that node's host learns that a caller waits.

        Args:
            address: the sandbox's tenant and name.
            identity: the identity of the node with the sandbox's files, if there is one.
            cached_backup_id: a backup that the sandbox is about to restore.

        Raises:
            SandboxUnavailableError: no slot (or none on the node with the files) became free within `_FREED_S`; or the
                sandbox is moving off its node, and the caller's side should retry soon.
        """
        home = self._home(identity) if identity is not None else None
        if home is not None and home in self._runtime.draining_nodes():
            if (host := self._old_host(home)) is not None:
                host.want.remote(*address)
            raise SandboxMovingError
        having = self._having(cached_backup_id) if home is None else set[str]()
        deadline = self._clock() + _FREED_S
        while True:
            with self._choosing:
                available, booked = self._available(), self._booked()
                free = {node_id: left for node_id, slots in available.items() if (left := slots - booked[node_id]) >= 1}
                if home is not None:
                    wanted = {home} & free.keys()
                elif having & available.keys():  # if only our placements fill them, Ray's count soon tells for sure
                    wanted = having & free.keys()
                else:
                    wanted = set(free)
                if wanted:
                    chosen = max(wanted, key=lambda node_id: free[node_id])
                    self._placed.append((self._clock(), chosen))
                    return chosen
            if self._clock() > deadline:
                raise _full(
                    "No node has room for it." if home is None else "The node with its files has no room for it."
                )
            self._sleep(_POLL_S)

    def with_room(self) -> Any:
        """The host of the node with most free slots, for work that needs a node's tools and takes no slot.

        Raises SandboxUnavailableError: no node has a free slot.
        """
        available = self._available()
        if not available:
            raise _full("No node has room for it.")
        return self._host(max(available, key=lambda node_id: available[node_id]))

    def keeper(self, tenant: str, sandbox: str) -> str | None:
        """The identity of the node with a sandbox's files, by the nodes' records. None if unknown.

        Needed where the bucket does not name the node. Of several nodes, it is the one whose record changed last. With
        fewer than two nodes there is no choice, and the result is None.
        """
        nodes = self._alive() - self._runtime.draining_nodes().keys()
        if len(nodes) < 2:
            return None
        said = self._told({self._host(node_id).record_changed_at.remote(tenant, sandbox): node_id for node_id in nodes})
        changed = {node_id: at for node_id, at in said.items() if at is not None}
        if not changed:
            return None
        with self._lock:
            return self._identities.get(max(changed, key=lambda node_id: changed[node_id]))

    def has_record(self, tenant: str, sandbox: str) -> bool:
        """Tells whether a node has a sandbox's files.

        Raises SandboxUnavailableError: none of those that answered has them, and a node did not answer.
        """
        nodes = self._alive()
        said = self._told({self._host(node_id).record_changed_at.remote(tenant, sandbox): node_id for node_id in nodes})
        if any(at is not None for at in said.values()):
            return True
        if said.keys() < nodes:
            raise SandboxUnavailableError(
                "A node that may have the sandbox's files does not answer.", context={"outcome": "not_executed"}
            )
        return False

    def _home(self, identity: str) -> str | None:
        """The name in the cluster of the living node of an identity. Asks new nodes first if needed."""
        alive = self._alive()
        if self._named(identity) not in alive:  # it has just joined, or died
            self.attend()
        return self._named(identity)

    def _alive(self) -> set[str]:
        """The names in the cluster of the living nodes that take sandboxes."""
        return {node.id for node in self._runtime.nodes() if node.takes_sandboxes}

    def _available(self) -> dict[str, float]:
        """The free slots of each node that has any and is not being drained, by Ray's count."""
        free = self._runtime.free_slots()
        nodes = self._alive() - self._runtime.draining_nodes().keys()
        slots = {node_id: free.get(node_id, 0.0) for node_id in nodes}
        return {node_id: count for node_id, count in slots.items() if count >= 1}

    def _booked(self) -> Counter[str]:
        """The number of our latest placements on each node, which Ray's count may not yet include.

        The caller holds `_choosing`.
        """
        now = self._clock()
        while self._placed and now - self._placed[0][0] > _BOOKED_S:
            self._placed.popleft()
        return Counter(node_id for _, node_id in self._placed)

    def _having(self, backup_id: str | None) -> set[str]:
        """The nodes with a backup's archive in their cache, of those that answer within `_NEAR_S`."""
        nodes = self._alive() if backup_id is not None else set[str]()
        if len(nodes) < 2:
            return set()
        said = self._told({self._host(node_id).has_archive.remote(backup_id): node_id for node_id in nodes})
        return {node_id for node_id, has in said.items() if has}

    def _told(self, asked: Mapping[Any, str]) -> dict[str, Any]:
        """The answers that arrive within `_NEAR_S`, by node."""
        said = self._runtime.answers(asked, _NEAR_S)
        return {node_id: answer.value for node_id, answer in said.items() if answer.error is None}


def _full(message: str) -> SandboxUnavailableError:
    return SandboxUnavailableError(
        message,
        hint="Try again later, delete sandboxes, add nodes, or raise the slots of each.",
        context={"outcome": "not_executed", "reason": "FULL"},
    )
