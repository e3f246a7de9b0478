"""The Ray cluster of one machine, for the embedded service: loopback only, with token authentication.

Source: measured on Ray 2.60. Without RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER=0 Ray binds every port to all interfaces, on
Linux too. Token authentication has to be set for each process. Workers start in a third of the time if Ray is compiled
to .pyc and a worker imports the modules below before it is needed.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from actors.config import NODE_DATA_DIR
from actors.node.memory import Rank
from actors.rpc.cluster_health import is_gone
from gateway.embedded.start_failures import ray_did_not_start

PRELOADED = (
    "ray._common.pydantic_compat",
    "pydantic.v1.fields",
    "starlette.datastructures",
    "ray._private.arrow_serialization",
    "anyio.to_thread",
    "actors.host.preload",
)
"""Modules that idle workers import, to become sandboxes later; the same in cluster.yaml and rayservice.yaml."""
SHARED = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")
"""Environment variables that every Ray driver of the cluster needs too, with the values that `start` sets."""
_OBJECT_STORE_BYTES = 512 * 1024**2
_END_S = 5.0


@dataclass(frozen=True, slots=True)
class RayHead:
    """A running cluster. `address` is for Ray drivers, `jobs_url` for `ray job submit` (None if it was joined)."""

    address: str
    jobs_url: str | None


def start(folder: Path, token_file: Path, *, slots: int) -> RayHead:
    """Starts a cluster for `slots` sandboxes that lives as long as this process; its files go to `folder`.

    Call it before anything imports Ray, which reads its environment once.

    Raises:
        ServiceUnavailableError: Ray did not start. Some of its processes may be left: see `end_leftovers`.
    """
    os.environ.update(
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN_PATH=str(token_file),
        RAY_USAGE_STATS_ENABLED="0",
        RAY_preload_python_modules=",".join(PRELOADED),
        RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO="0",
        RAY_worker_oom_score_adjustment=str(int(Rank.SERVICE)),
        PATH=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
    )
    for name in ("RAY_ADDRESS", "PYTHONDONTWRITEBYTECODE", NODE_DATA_DIR):
        os.environ.pop(name, None)
    ray = _ray()
    try:
        with _free_agent_port():
            context = ray.init(
                namespace="holdfast",
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                object_store_memory=_OBJECT_STORE_BYTES,
                resources={"sandbox_slots": slots},
                _temp_dir=str(folder),
                log_to_driver=False,
                configure_logging=False,
            )
        _name_cluster(context.address_info["gcs_address"], folder)
    except Exception as e:
        raise ray_did_not_start(e) from e
    return RayHead(address=context.address_info["gcs_address"], jobs_url=f"http://{context.address_info['webui_url']}")


def _name_cluster(address: str, folder: Path) -> None:
    """Records which cluster has its files in `folder`, as `ray start` does and `ray.init` does not.

    A job's supervisor reads there which cluster its job is of. Without the record, it takes any cluster with processes
    on this machine, perhaps a wrong one. Source: get_ray_address_from_environment in ray._private.services, Ray 2.60.
    """
    utils: Any = import_module("ray._private.utils")
    utils.write_ray_address(address, str(folder))


@contextlib.contextmanager
def _free_agent_port() -> Iterator[None]:
    """Makes a cluster started within the block use a free port for its dashboard agent, which runs the jobs.

    `ray.init` always asks for 52365, and has no argument for it. If another Ray has that port, its agent gets our jobs:
    it refuses them, or runs them in the wrong cluster. With port 0 an agent takes a free port and announces it.
    Source: ray._private.parameter.RayParams and ray.dashboard.agent of Ray 2.60.
    """
    parameter: Any = import_module("ray._private.parameter")
    theirs = parameter.RayParams
    parameter.RayParams = functools.partial(theirs, dashboard_agent_listen_port=0)
    try:
        yield
    finally:
        parameter.RayParams = theirs


def join(address: str) -> RayHead:
    """Joins a running cluster. Only the operator knows its jobs' URL. Raises ServiceUnavailableError."""
    from actors.rpc.cluster import connect

    connect(address)
    return RayHead(address=address, jobs_url=None)


def end_leftovers(folder: Path) -> None:
    """Kills processes left by an earlier cluster with its files in `folder`: its agents outlive a killed raylet.

    Only Ray's own processes: a driver neither names the folder in its arguments nor has Ray's title.
    """
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(int(process.name))
            try:
                if _belongs_to(process, folder):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    select.select([pidfd], [], [], _END_S)
            finally:
                os.close(pidfd)


def _belongs_to(process: Path, folder: Path) -> bool:
    command, inside = (process / "cmdline").read_bytes(), os.fsencode(folder) + b"/"
    if inside in command and os.fsencode(sysconfig.get_path("platlib")) in command:
        return True
    return command.startswith(b"ray::") and any(
        os.readlink(os.fsencode(file)).startswith(inside) for file in (process / "fd").iterdir()
    )


def stop() -> None:
    """Ends the cluster that this process started, with all its processes; only leaves one that it joined. Repeatable.

    Does nothing if the control store has ended before: `end_leftovers` ends the rest.
    """
    if not is_gone():
        _ray().shutdown()


def _ray() -> ModuleType:
    import ray

    return ray
