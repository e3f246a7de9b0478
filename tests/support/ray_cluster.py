"""A Ray cluster of several nodes on this machine, with the service in it, for programs of `tests.support.drivers`.

Each node has its own data folder, as if on its own machine. Only loopback is used.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import ray
from pydantic import SecretStr
from ray.cluster_utils import Cluster

from actors.bucket import open_catalog
from actors.config import NODE_DATA_DIR, NodeConfig, SandboxConfig
from actors.models import DEFAULT_TENANT
from actors.node.cgroup import Cgroup
from actors.node.memory import Rank
from actors.node.mounting import sweep
from actors.rpc.runtime import SLOTS
from actors.service import host as service_host
from gateway.embedded.ray_head import PRELOADED
from storage.config import BucketConfig
from storage.metadata import SandboxState
from tests.support.mount_leaks import wait_until
from tests.support.s3 import FAST
from tests.support.sandboxes import service_cgroup

ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_oom_score_adjustment": str(int(Rank.SERVICE)),
    "RAY_preload_python_modules": ",".join(PRELOADED),
    # As in cluster.yaml: a lost node is detected within seconds.
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}
"""Environment for a program that makes such a cluster. It must be set at the start, because Ray reads it once."""


def told(bucket: BucketConfig) -> str:
    """A bucket with its keys, in JSON, for the arguments of a test's program."""
    return json.dumps(
        {
            "bucket": bucket.bucket,
            "endpoint_url": str(bucket.endpoint_url),
            "region": bucket.region,
            "access_key_id": bucket.access_key_id.get_secret_value(),
            "secret_access_key": bucket.secret_access_key.get_secret_value(),
        }
    )


PATIENCE_S = 300.0
_CPUS = 6
"""Number of processors that each node reports to Ray, which starts that many workers ahead."""


class Nodes:
    """The cluster's nodes for sandboxes, by number."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster = cluster
        self._folder = folder
        self._nodes: list[Any] = []

    def add(self, *, slots: int) -> int:
        """Adds a node; returns its number."""
        number = len(self._nodes)
        folder = node_folder(self._folder, number)
        self._nodes.append(
            self._cluster.add_node(num_cpus=_CPUS, resources={SLOTS: slots}, env_vars={NODE_DATA_DIR: str(folder)})
        )
        return number

    def id(self, number: int) -> str:
        """Ray's id of a node."""
        return str(self._nodes[number].node_id)

    def number(self, node_id: str | None) -> int | None:
        """The number of the node with this id of Ray's, if there is one."""
        return next((i for i, node in enumerate(self._nodes) if node.node_id == node_id), None)

    def kill(self, number: int) -> None:
        """Kills all processes of a node with SIGKILL, including the workers, which would live on for an instant."""
        workers = children(self.raylet(number), b"ray::")
        self._cluster.remove_node(self._nodes[number], allow_graceful=False)
        for pid in workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def is_alive(self, number: int) -> bool:
        """True if Ray considers the node alive."""
        rows: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        return any(row["NodeID"] == self.id(number) and row["Alive"] for row in rows)

    def raylet(self, number: int) -> int:
        """The pid of the node's raylet."""
        return int(self._nodes[number].all_processes["raylet"][0].process.pid)


class World:
    """The cluster, and the state of its sandboxes in the bucket."""

    def __init__(self, nodes: Nodes, config: SandboxConfig) -> None:
        self.nodes = nodes
        self.config = config
        catalog = open_catalog(config)
        assert catalog is not None
        self.catalog = catalog

    def state(self, sandbox_id: str) -> SandboxState | None:
        """The state document of a sandbox, if there is one."""
        found = self.catalog.sandboxes.find_state(DEFAULT_TENANT, sandbox_id)
        return found.state if found else None

    def place(self, sandbox_id: str) -> int | None:
        """The number of the node with the sandbox's files, if there is one."""
        state = self.state(sandbox_id)
        return self.nodes.number(state.cluster_node) if state else None


@contextmanager
def running(folder: Path, bucket: str, *, slots: list[int], settings: Mapping[str, Any]) -> Iterator[World]:
    """Runs a head without sandboxes, a node for each of `slots`, and the service, joined by this process."""
    described = json.loads(bucket)
    keys = {name: SecretStr(described.pop(name)) for name in ("access_key_id", "secret_access_key")}
    config = SandboxConfig(
        node=NodeConfig(data_dir=folder),
        transfer=FAST,
        bucket=BucketConfig(**described, **keys),
        signing_key=SecretStr("a signing key for tests only"),
        **{"sleep_after_s": 0, "warm_workers": 0, **settings},
    )
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        nodes = Nodes(cluster, folder)
        for count in slots:
            nodes.add(slots=count)
        ray.init(address=cluster.address, namespace="holdfast", log_to_driver=False, configure_logging=False)
        service_host.start_service(config)
        yield World(nodes, config)
    finally:
        ray.shutdown()
        cluster.shutdown()  # type: ignore[no-untyped-call]


def node_folder(folder: Path, number: int) -> Path:
    """A node's data folder."""
    return folder / f"node-{number}"


def clean(folder: Path) -> None:
    """Kills and unmounts what killed nodes have left. They do not come back to do it themselves."""
    for data_dir in folder.glob("node-*"):
        Cgroup.remove_tree(service_cgroup(data_dir))
    assert wait_until(lambda: sweep(folder) == []), sweep(folder)


def children(pid: int, title: bytes) -> list[int]:
    """Living child processes whose command line begins with `title`."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            status = (process / "stat").read_text().rpartition(")")[2].split()
            if int(status[1]) == pid and status[0] != "Z" and (process / "cmdline").read_bytes().startswith(title):
                found.append(int(process.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def pause(pid: int) -> None:
    """Stops a process with SIGSTOP."""
    os.kill(pid, signal.SIGSTOP)


def resume(pid: int) -> None:
    """Continues a process that was stopped."""
    os.kill(pid, signal.SIGCONT)


def drain(node_id: str, *, within_s: float) -> None:
    """Makes Ray announce the end of a node after this many seconds, like a preemption or `ray drain-node`."""
    raylet: Any = import_module("ray._raylet")
    messages: Any = import_module("ray.core.generated.autoscaler_pb2")
    accepted, why_not = raylet.GcsClient(ray.get_runtime_context().gcs_address).drain_node(
        node_id,
        messages.DrainNodeReason.DRAIN_NODE_REASON_PREEMPTION,
        "a test",
        round((time.time() + within_s) * 1000),
    )
    assert accepted, why_not
