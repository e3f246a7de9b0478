"""The Ray cluster as its members see it: joining it, and requests to its control store."""

from __future__ import annotations

import os
import socket
from typing import Any

import ray
from ray._private import state as ray_state
from ray._private.state import actors
from ray.exceptions import RayError

from actors.errors import ServiceUnavailableError
from actors.rpc.names import NAMESPACE, SANDBOX_PREFIX
from actors.rpc.readable_process import in_readable_folder, readable_title

_REACHABLE_S = 5.0


def times_restarted(actor_id: str) -> int:
    """Number of times that Ray has restarted an actor, dead or alive; -1 if Ray does not remember the actor."""
    return int(actors(actor_id).get("NumRestarts", -1))


def is_alive(handle: Any) -> bool:
    """Tells whether an actor is alive: it has started and not ended. One that waits for its process is not."""
    return bool(actors(handle._actor_id.hex()).get("State") == "ALIVE")


def awake_sandboxes() -> list[str]:
    """The names of all sandboxes' actors that exist now, of all tenants."""
    rows = ray.util.list_named_actors(all_namespaces=True)
    return [row["name"] for row in rows if row["namespace"] == NAMESPACE and row["name"].startswith(SANDBOX_PREFIX)]


def known_nodes() -> list[dict[str, Any]]:
    """All nodes of the cluster, dead ones included, as Ray describes them."""
    return ray.nodes()  # type: ignore[no-untyped-call,no-any-return]


def available_resources() -> dict[str, float]:
    """The free resources of the whole cluster."""
    return ray.available_resources()  # type: ignore[no-untyped-call,no-any-return]


def draining_nodes() -> dict[str, int]:
    """The deadline of each node that Ray drains, in milliseconds since 1970; 0 for none."""
    return dict(ray_state.state.get_draining_nodes())


def connect(address: str | None = None) -> None:
    """Joins the Ray cluster, unless this process is part of one already.

    Inside a job Ray injects the address; elsewhere `RAY_ADDRESS` names it. Never starts a cluster.

    Raises:
        ServiceUnavailableError: no cluster answers.
    """
    if ray.is_initialized():
        return
    _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
    if (title := readable_title()) is not None:
        ray._raylet.setproctitle(title)  # type: ignore[attr-defined]
    try:
        with in_readable_folder():
            ray.init(
                address=address or "auto",
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, RayError, RuntimeError, ValueError) as e:
        raise ServiceUnavailableError(
            "No Ray cluster answers.",
            hint="Start one with `holdfast serve`, and set RAY_ADDRESS as it prints.",
            context={"cause": type(e).__name__},
        ) from None


def _check_reachable(address: str) -> None:
    """Refuses an address on which nobody listens, within seconds: Ray tries for minutes. Checks host:port only."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHABLE_S).close()
    except OSError:
        raise ServiceUnavailableError(
            "No Ray cluster answers at the address that RAY_ADDRESS, or the call, names.",
            hint="Start one with `holdfast serve`, and set RAY_ADDRESS as it prints.",
        ) from None
