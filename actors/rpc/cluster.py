"""The Ray cluster as its members see it: joining it, and questions to its control store."""

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
    """How often Ray has restarted an actor, dead or alive; -1 if it does not remember it."""
    return int(actors(actor_id).get("NumRestarts", -1))


def is_alive(handle: Any) -> bool:
    """Whether an actor has begun its life, and not ended it: not one that waits for its process."""
    return bool(actors(handle._actor_id.hex()).get("State") == "ALIVE")


def awake_sandboxes() -> list[str]:
    """The names of the actors that sandboxes have now, of all tenants."""
    rows = ray.util.list_named_actors(all_namespaces=True)
    return [row["name"] for row in rows if row["namespace"] == NAMESPACE and row["name"].startswith(SANDBOX_PREFIX)]


def known_nodes() -> list[dict[str, Any]]:
    """The nodes of the cluster, the dead ones too, as Ray describes them."""
    return ray.nodes()  # type: ignore[no-untyped-call,no-any-return]


def available_resources() -> dict[str, float]:
    """The resources of the whole cluster that nobody has taken."""
    return ray.available_resources()  # type: ignore[no-untyped-call,no-any-return]


def draining_nodes() -> dict[str, int]:
    """The nodes that Ray drains, and each one's deadline in milliseconds since 1970; 0 if it has none."""
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
    """Refuses an address where nobody listens, in seconds: Ray tries for minutes. Passes what is no host:port."""
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
