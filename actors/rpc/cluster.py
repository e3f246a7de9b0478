"""The Ray cluster as a caller sees it: joining it, and the restarts of an actor."""

from __future__ import annotations

import os
import socket

import ray
from ray._private.state import actors
from ray.exceptions import RayError

from actors.errors import ServiceUnavailableError
from actors.rpc.names import NAMESPACE
from actors.rpc.readable_process import in_readable_folder, readable_title

_REACHABLE_S = 5.0


def times_restarted(actor_id: str) -> int:
    """Number of times that Ray has restarted an actor, dead or alive; -1 if Ray does not remember the actor."""
    return int(actors(actor_id).get("NumRestarts", -1))


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
