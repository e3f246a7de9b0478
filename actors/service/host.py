"""The service's one actor: a thin Ray shell round `actors.service.facade`. It alone creates the sandboxes' actors."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import ray

from actors.bucket import open_catalog
from actors.config import SandboxConfig
from actors.host.error_filter import guarded
from actors.host.loops import keep_on
from actors.host.observation import Watch, observed
from actors.logs import configure_logging
from actors.metrics import Counts
from actors.models import BackupFilesOptions, ForkOrder, PageOptions, Retention, RetentionChange, RetentionRun
from actors.node.memory import Rank, give_rank
from actors.rpc.names import NAMESPACE, SERVICE_NAME
from actors.rpc.ray_runtime import RayRuntime, on_node
from actors.rpc.runtime import SLOTS
from actors.sandbox.host import LANES, SandboxHost
from actors.service.awake import Evictor, awake_of, close_all
from actors.service.cluster_metrics import cluster_metrics
from actors.service.collection import CollectionTimer
from actors.service.contents import BackupContents
from actors.service.facade import Service
from actors.service.forking import ClusterTargets, Forking
from actors.service.housekeeping import HOUSEKEEPING_S, Housekeeping, SandboxCount
from actors.service.node_host import make_node_host
from actors.service.placement import Nodes
from actors.service.retention import RetentionQueue
from actors.service.spawner import Spawner
from actors.service.warm_workers import WarmWorkers

_SERVICE_LANES = {
    "spawn": 64,
    "collect": 2,
    "adopt": 4,
    "contents": 2,
    "metrics": 2,
    "report": 2,
    "lost": 8,
    "retention": 4,
    "fork": 8,
}
"""Threads by lane, so that slow calls (a full cluster, a large bucket) delay no others, least of all urgent ones."""
_SERVICE_THREADS = 32


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
        runtime = self._runtime = RayRuntime()
        catalog = open_catalog(config)
        self._service = Service(
            config,
            catalog,
            awake=lambda tenant, ids: awake_of(runtime, tenant, ids),
            meter=self.watch.tally,
        )
        self._contents = BackupContents(config, catalog)
        self._retention = self._service.retention
        self._retained = RetentionQueue(self._retention.apply)
        self._nodes = Nodes(runtime, lambda node_id: make_node_host(node_id, config))
        warm = WarmWorkers(runtime, config.warm_workers)
        self._spawner = Spawner(runtime, self._service, self._nodes, warm, self._make)
        self._forking = Forking(ClusterTargets(config, catalog))
        self._count = SandboxCount(self._service.count_sandboxes)
        house = Housekeeping(
            runtime,
            self._nodes,
            warm,
            try_conditional_writes=self._service.try_conditional_writes,
            move=lambda: os._exit(1),
        )
        evictor = Evictor(runtime, config.sleep_after_s)
        keep_on(house.step, name="housekeeping", failed="nodes_not_attended", retry_s=HOUSEKEEPING_S)
        keep_on(self._count.step, name="count", failed="sandboxes_not_counted", retry_s=HOUSEKEEPING_S)
        keep_on(self._retained.step, name="retention", failed="retention_failed", retry_s=HOUSEKEEPING_S)
        if config.gc_every_s and config.bucket is not None:
            timer = CollectionTimer(self._service.collection, config.gc_every_s)
            keep_on(timer.step, name="gc", failed="gc_failed", retry_s=HOUSEKEEPING_S, nice=10)
        keep_on(evictor.step, name="evictor", failed="idle_sandboxes_not_asked", retry_s=evictor.pause_s)

    @ray.method(concurrency_group="spawn")
    def spawn(self, tenant: str, sandbox_id: str, lane: str | None, cached_backup_id: str | None) -> tuple[Any, int]:
        """Returns a sandbox's actor and its number of restarts; see `Spawner.spawn`."""
        return guarded(lambda: self._spawner.spawn(tenant, sandbox_id, lane, cached_backup_id))

    def _make(self, name: str, node_id: str, tenant: str, sandbox_id: str, *, conditional_writes: bool | None) -> Any:
        """See `spawner.MakeActor`."""
        config = self._config.model_copy(update={"conditional_writes": conditional_writes})
        return (
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
                scheduling_strategy=on_node(node_id, soft=True),
            )
            .remote(tenant, sandbox_id, config)
        )

    def close_all(self) -> int:
        """Closes every awake sandbox, before the service stops; returns the number that could not be closed."""
        return close_all(self._runtime)

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

    @ray.method(concurrency_group="contents")
    def backup_files(self, tenant: str, backup_id: str, wanted: BackupFilesOptions) -> Any:
        return guarded(lambda: self._contents.files(tenant, backup_id, wanted))

    @ray.method(concurrency_group="contents")
    def backup_changes(self, tenant: str, before: str, after: str, wanted: PageOptions) -> Any:
        return guarded(lambda: self._contents.changes(tenant, before, after, wanted))

    def delete_backup(self, tenant: str, backup_id: str) -> None:
        guarded(lambda: self._service.delete_backup(tenant, backup_id))

    @ray.method(concurrency_group="fork")
    def fork(self, tenant: str, order: ForkOrder) -> Any:
        return guarded(lambda: self._forking.fork(tenant, order))

    @ray.method(concurrency_group="adopt")
    def adopt(self, tenant: str, backup_id: str, owner: str | None) -> Any:
        return guarded(lambda: self._service.adopt(tenant, backup_id, owner, self._adopt_on_a_node))

    @ray.method(concurrency_group="adopt")
    def flatten(self, tenant: str, backup_id: str) -> Any:
        return guarded(lambda: self._service.flatten(tenant, backup_id, self._flatten_on_a_node))

    def _flatten_on_a_node(self, tenant: str, backup_id: str) -> str:
        return str(self._runtime.answer(self._nodes.with_room().flatten.remote(tenant, backup_id)))

    def _adopt_on_a_node(self, tenant: str, backup_id: str, owner: str) -> None:
        self._runtime.answer(self._nodes.with_room().adopt.remote(tenant, backup_id, owner))

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

    def retention(self, tenant: str, sandbox_id: str) -> Any:
        return guarded(lambda: self._retention.policy(tenant, sandbox_id))

    def set_retention(self, tenant: str, sandbox_id: str, wanted: Retention) -> Any:
        return guarded(lambda: self._retention.set(tenant, sandbox_id, wanted))

    def change_retention(self, tenant: str, sandbox_id: str, change: RetentionChange) -> Any:
        return guarded(lambda: self._retention.change(tenant, sandbox_id, change))

    @ray.method(concurrency_group="retention")
    def apply_retention(self, tenant: str, sandbox_id: str, options: RetentionRun) -> Any:
        return guarded(lambda: self._retention.run(tenant, sandbox_id, options))

    @ray.method(concurrency_group="report")
    def backup_made(self, tenant: str, sandbox_id: str) -> None:
        """Notes a backup of a sandbox with a retention policy, which is then applied in the background."""
        self._retained.add(tenant, sandbox_id)

    @ray.method(concurrency_group="report")
    def report(self, counts: Counts) -> None:
        """Adds the counts of a sandbox's actor."""
        self.watch.tally.merge(counts)

    @ray.method(concurrency_group="metrics")
    def metrics(self) -> Any:
        collected_at = self._service.collection.collected_at
        return guarded(
            lambda: cluster_metrics(
                self._runtime, self.watch.tally.counts(), recorded=self._count.latest, collected_at=collected_at
            )
        )


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
    actor = RayRuntime().find(SERVICE_NAME)
    if actor is None:
        return 0
    failed: Any = ray.get(actor.close_all.remote(), timeout=120)
    return int(failed)
