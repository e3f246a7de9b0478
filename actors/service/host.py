"""The service's one actor: a thin Ray shell round `actors.service.facade`. It alone creates the sandboxes' actors."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.bucket import open_catalog
from actors.config import SandboxConfig
from actors.errors import SandboxUnavailableError
from actors.host.error_filter import guarded
from actors.host.observation import Watch, observed
from actors.logs import configure_logging, log
from actors.metrics import Counts
from actors.node.memory import Rank, give_rank
from actors.rpc.cluster import awake_sandboxes, draining_nodes, is_alive
from actors.rpc.names import NAMESPACE, SERVICE_NAME, sandbox_actor_name
from actors.rpc.ray_errors import unwrapped, was_leaving
from actors.sandbox.host import LANES, SandboxHost
from actors.service.cluster_metrics import cluster_metrics
from actors.service.creation_lock import CreationLock
from actors.service.facade import Service, is_log_disk_full
from actors.service.node_host import node_host_class
from actors.service.placement import SLOTS, Nodes
from actors.service.warm_workers import WarmWorkers
from actors.state.document import StateRead

_SERVICE_LANES = {"spawn": 64, "collect": 2, "adopt": 4, "metrics": 2, "report": 2, "lost": 8}
"""Threads by lane, so that slow calls (a full cluster, a large bucket) delay no others, least of all urgent ones."""
_SERVICE_THREADS = 32
_SPAWN_S = 30.0
_CLOSE_S = 60.0
_LEAVING_POLL_S = 0.02
_HOUSEKEEPING_S = 5.0
_EVICTION_S = 60.0
"""Longest pause between two rounds in which idle sandboxes are asked to leave."""
_COUNT_S, _COUNT_SHARE = 30.0, 100.0
"""The pause between counts of the bucket's sandboxes: at least so many seconds, and so many times the count's time."""


@functools.cache
def _sandbox_class() -> Any:
    """The remote class of sandboxes, made once: Ray sends each new one through the cluster's head to every worker."""
    return ray.remote(concurrency_groups=LANES)(SandboxHost)  # type: ignore[call-overload]


@observed
class ServiceHost:
    """The service's one actor. It creates sandboxes' actors, so that none inherits a job's folder and environment."""

    def __init__(self, config: SandboxConfig) -> None:
        configure_logging()
        give_rank(Rank.SERVICE)
        self.watch = Watch()
        self._config = config
        self._service = Service(config, open_catalog(config), awake=_awake)
        self._nodes = Nodes(node_host_class(), config)
        self._creation_lock = CreationLock()
        self._warm = WarmWorkers(config.warm_workers)
        self._recorded: int | None = None
        threading.Thread(target=self._keep_house, daemon=True, name="housekeeping").start()
        threading.Thread(target=self._keep_count, daemon=True, name="count").start()
        threading.Thread(target=self._let_idle_ones_leave, daemon=True, name="evictor").start()

    @ray.method(concurrency_group="spawn")
    def spawn(self, tenant: str, sandbox_id: str, lane: str | None, cached_backup_id: str | None) -> tuple[Any, int]:
        """Returns a sandbox's actor, which has admitted a call to `lane`. Creates the actor if there is none.

        `cached_backup_id` names a backup that the sandbox is about to restore.

        Returns:
            The handle, and the number of times that Ray has restarted the actor.

        Raises:
            SandboxUnavailableError: no node has a free slot, for which Ray would wait for ever; or another call is
                creating the actor.
            TooManyCallsError: too many calls wait for the actor.
        """
        name = sandbox_actor_name(tenant, sandbox_id)
        with self._creation_lock.held(name):
            return self._spawn(name, tenant, sandbox_id, lane, cached_backup_id)

    def _spawn(
        self, name: str, tenant: str, sandbox_id: str, lane: str | None, cached_backup_id: str | None
    ) -> tuple[Any, int]:
        deadline = time.monotonic() + _SPAWN_S
        while True:
            found: StateRead | None = None
            try:
                actor, is_ours = ray.get_actor(name, namespace=NAMESPACE), False
            except ValueError:  # there is none
                (actor, found), is_ours = self._new_actor(name, tenant, sandbox_id, cached_backup_id), True
                deadline = time.monotonic() + _SPAWN_S
            try:
                told: Any = ray.get(actor.admit.remote(lane, found), timeout=max(0.0, deadline - time.monotonic()))
                node, restarts, _ = told
                if is_ours:
                    self._warm.replace(node)
                return actor, restarts
            except ray.exceptions.RayTaskError as e:
                if not was_leaving(e) or time.monotonic() > deadline:
                    raise unwrapped(e) from None
                time.sleep(_LEAVING_POLL_S)
            except (ray.exceptions.ActorDiedError, ray.exceptions.ActorUnavailableError):
                # It was leaving, and its name is free in an instant; or it crashed, and is being restarted.
                if time.monotonic() > deadline:
                    raise _not_started() from None
                time.sleep(_LEAVING_POLL_S)
            except ray.exceptions.GetTimeoutError:
                if is_ours and not is_alive(actor):  # it has never answered a call, so nothing is lost with it
                    ray.kill(actor)
                raise _not_started() from None

    def _new_actor(
        self, name: str, tenant: str, sandbox_id: str, cached_backup_id: str | None
    ) -> tuple[Any, StateRead | None]:
        """Creates a sandbox's actor; returns it, and the sandbox's state. The caller holds the creation lock."""
        found = self._service.find_state(tenant, sandbox_id)
        if found is None:  # the bucket is down, or the state is damaged
            home = self._nodes.keeper(tenant, sandbox_id)
        else:
            home = found.stored.state.node if found.stored else None
        node = guarded(lambda: self._nodes.choose((tenant, sandbox_id), home, cached_backup_id))
        config = self._config.model_copy(update={"conditional_writes": self._service.has_conditional_writes})
        actor = (
            _sandbox_class()
            .options(
                name=name,
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                num_cpus=0,
                resources={SLOTS: 1},
                max_restarts=-1,
                max_task_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=True),
            )
            .remote(tenant, sandbox_id, config)
        )
        if found == StateRead(None):  # while its process starts
            found = self._service.record_new(tenant, sandbox_id)
        return actor, found

    def close_all(self) -> int:
        """Closes every awake sandbox, before the service stops; returns the number that could not be closed."""
        actors = list(_sandboxes().values())
        for actor in actors:
            actor.cancel.remote()
        closing: list[Any] = [actor.close.remote() for actor in actors]
        if not closing:
            return 0
        ended, waiting = ray.wait(closing, num_returns=len(closing), timeout=_CLOSE_S)
        return len(waiting) + sum(not _succeeded(ref) for ref in ended)

    def _keep_house(self) -> None:
        while True:
            try:
                self._service.try_conditional_writes()
            except Exception as e:  # no StorageError, so a defect: nodes still need attention
                log.error("conditional_writes_not_tried", error=type(e).__name__)
            try:
                self._nodes.attend()
                self._warm.fill()
                self._nodes.release_drained()
                self._move_if_drained()
            except Exception as e:  # the cluster's head is away for a moment
                log.warning("nodes_not_attended", error=type(e).__name__)
            time.sleep(_HOUSEKEEPING_S)

    def _move_if_drained(self) -> None:
        """Ends this process if its node is being drained: Ray restarts the actor on another node within seconds."""
        draining = draining_nodes()
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        others = {node["NodeID"] for node in nodes if node["Alive"]} - draining.keys()
        if others and ray.get_runtime_context().get_node_id() in draining:
            log.warning("service_moves")
            os._exit(1)

    def _keep_count(self) -> None:
        while True:
            began = time.monotonic()
            try:
                self._recorded = self._service.count_sandboxes()
            except Exception as e:  # the bucket is down, or answers nonsense
                log.warning("sandboxes_not_counted", error=type(e).__name__)
            time.sleep(max(_COUNT_S, _COUNT_SHARE * (time.monotonic() - began)))

    def _let_idle_ones_leave(self) -> None:
        idle_s = self._config.sleep_after_s or math.inf  # destroyed ones are still asked to leave
        asked: dict[str, Any] = {}
        while True:
            time.sleep(min(max(idle_s / 4, _LEAVING_POLL_S), _EVICTION_S))
            try:
                asked = {name: ref for name, ref in asked.items() if not ray.wait([ref], timeout=0)[0]}
                for name, actor in _sandboxes().items():
                    if name not in asked:  # at most one request in each mailbox
                        asked[name] = actor.leave.remote(idle_s)
            except Exception as e:  # the cluster's head is away for a moment
                log.warning("idle_sandboxes_not_asked", error=type(e).__name__)

    def ping(self) -> bool:
        return True

    @ray.method(concurrency_group="lost")
    def is_lost(self, identity: str, cluster_node: str | None) -> bool:
        """Tells whether a node (identity, name in the cluster) is gone with its files."""
        return self._nodes.is_lost(identity, cluster_node)

    def ready(self) -> tuple[str, ...]:
        return guarded(self._service.ready)

    def create_sandbox(self, tenant: str, labels: Mapping[str, str]) -> str:
        return guarded(lambda: self._service.create_sandbox(tenant, labels))

    def sandboxes(self, tenant: str, limit: int, cursor: str | None) -> Any:
        return guarded(lambda: self._service.sandboxes(tenant, limit, cursor))

    def exists(self, tenant: str, sandbox_id: str) -> bool:
        def look() -> bool:
            # The bucket may not know it yet: an actor that dies soon after its start leaves files, and no state.
            return self._service.exists(tenant, sandbox_id) or self._nodes.has_record(tenant, sandbox_id)

        return guarded(look)

    def describe(self, tenant: str, sandbox_id: str) -> Any:
        return guarded(lambda: self._service.describe(tenant, sandbox_id))

    def backups(self, tenant: str, sandbox_id: str, limit: int, cursor: str | None) -> Any:
        return guarded(lambda: self._service.backups(tenant, sandbox_id, limit, cursor))

    def backup(self, tenant: str, backup_id: str) -> Any:
        return guarded(lambda: self._service.backup(tenant, backup_id))

    def delete_backup(self, tenant: str, backup_id: str) -> None:
        guarded(lambda: self._service.delete_backup(tenant, backup_id))

    @ray.method(concurrency_group="adopt")
    def adopt(self, tenant: str, backup_id: str, owner: str | None) -> Any:
        return guarded(lambda: self._service.adopt(tenant, backup_id, owner, self._adopt_on_a_node))

    def _adopt_on_a_node(self, tenant: str, backup_id: str, owner: str) -> None:
        try:
            ray.get(self._nodes.with_room().adopt.remote(tenant, backup_id, owner))
        except ray.exceptions.RayTaskError as e:
            raise unwrapped(e) from None

    @ray.method(concurrency_group="collect")
    def delete_damaged_backup(self, backup_id: str) -> None:
        guarded(lambda: self._service.delete_damaged_backup(backup_id))

    @ray.method(concurrency_group="collect")
    def collect(self, dry_run: bool) -> Any:
        return guarded(lambda: self._service.collect(dry_run))

    def lifecycle(self, expire_days: int | None) -> Any:
        return guarded(lambda: self._service.lifecycle(expire_days))

    def doctor(self) -> Any:
        return guarded(self._service.doctor)

    def events(self, tenant: str, sandbox_id: str, limit: int) -> Any:
        return guarded(lambda: self._service.events(tenant, sandbox_id, limit))

    def set_labels(self, tenant: str, sandbox_id: str, labels: Mapping[str, str]) -> Any:
        return guarded(lambda: self._service.set_labels(tenant, sandbox_id, labels))

    def change_labels(self, tenant: str, sandbox_id: str, labels: Mapping[str, str], removed: Sequence[str]) -> Any:
        return guarded(lambda: self._service.change_labels(tenant, sandbox_id, labels, removed))

    @ray.method(concurrency_group="report")
    def report(self, counts: Counts) -> None:
        """Adds the counts of a sandbox's actor."""
        self.watch.tally.merge(counts)

    @ray.method(concurrency_group="metrics")
    def metrics(self) -> Any:
        return guarded(lambda: cluster_metrics(self.watch.tally.counts(), self._recorded))


def start_service(config: SandboxConfig) -> None:
    """Starts the service's actor in the cluster this process has joined, unless it runs; returns once it answers."""
    actor: Any = (
        ray.remote(concurrency_groups=_SERVICE_LANES)(ServiceHost)  # type: ignore[call-overload]
        .options(
            name=SERVICE_NAME,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=_SERVICE_THREADS,
        )
        .remote(config)
    )
    ray.get(actor.ready.remote())


def stop_service() -> int:
    """Closes every sandbox of the cluster this process has joined; returns the number that could not be closed."""
    try:
        actor: Any = ray.get_actor(SERVICE_NAME, namespace=NAMESPACE)
    except ValueError:
        return 0
    failed: Any = ray.get(actor.close_all.remote(), timeout=120)
    return int(failed)


def _not_started() -> SandboxUnavailableError:
    if is_log_disk_full():
        return SandboxUnavailableError(
            "The sandbox's actor did not start in time: the disk of Ray's files is full.",
            hint="Make room on that disk, which is that of the folder for temporary files.",
            context={"outcome": "not_executed", "reason": "NO_SPACE"},
        )
    return SandboxUnavailableError(
        "The sandbox's actor did not start in time.", hint="Try again.", context={"outcome": "not_executed"}
    )


def _sandboxes() -> dict[str, Any]:
    """The actors of all awake sandboxes, by name."""
    found = {}
    for name in awake_sandboxes():
        with contextlib.suppress(ValueError):  # it has left by itself
            found[name] = ray.get_actor(name, namespace=NAMESPACE)
    return found


def _succeeded(ref: Any) -> bool:
    try:
        ray.get(ref)
    except ray.exceptions.RayError:
        return False
    return True


def _awake(tenant: str, sandbox_ids: Collection[str]) -> set[str]:
    names = set(awake_sandboxes())
    return {sandbox_id for sandbox_id in sandbox_ids if sandbox_actor_name(tenant, sandbox_id) in names}
