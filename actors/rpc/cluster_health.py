"""The health of the Ray cluster, as a caller sees it: its dead processes, and whether its control store answers.

The cluster's actors answer calls as long as they live, even if its control store is dead; a call that needs the store
waits for it. So neither shows that a call would succeed. Knows Ray, and imports it only when asked.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from actors.errors import ServiceUnavailableError

_CONTROL_STORE, _RAYLET = "gcs_server", "raylet"
_ALIVE = 0
"""The state of a living node. Source: GcsNodeInfo.GcsNodeState in gcs.proto of Ray 2.60."""
ANSWER_S = 3.0
"""Time limit for the control store's answer, which takes about a millisecond."""


def dead_parts() -> tuple[str, ...]:
    """The ended processes of the cluster that this process started, of those that new sandboxes need."""
    node: Any = getattr(sys.modules.get("ray._private.worker"), "_global_node", None)
    dead = [kind for kind, _ in node.dead_processes()] if node is not None else []
    return tuple(kind for kind in (_CONTROL_STORE, _RAYLET) if kind in dead)


def is_gone() -> bool:
    """Tells whether the control store of the cluster that this process started has ended, as when all is ended at once.

    From then on, any call to Ray waits for it, and after a minute Ray ends the waiting process.
    Source: gcs_rpc_server_reconnect_timeout_s in ray_config_def.h of Ray 2.60.
    """
    return _CONTROL_STORE in dead_parts()


def check() -> None:
    """Checks that the cluster that this process has joined can serve calls. Blocks for a round trip.

    Raises:
        ServiceUnavailableError: this process has joined none; or a part of the cluster has ended, its control store
            does not answer, or no node is alive.
    """
    if dead := dead_parts():
        raise ServiceUnavailableError(
            f"A part of Ray has ended on this machine: {', '.join(dead)}.", hint="Start the service anew."
        )
    worker: Any = import_module("ray._private.worker")
    errors: Any = import_module("ray.exceptions")
    client = getattr(worker.global_worker, "gcs_client", None)
    if client is None:
        raise ServiceUnavailableError("This process has not joined a Ray cluster.")
    try:
        nodes = client.get_all_node_info(timeout=ANSWER_S)
    except errors.RayError as e:
        raise ServiceUnavailableError(
            "The cluster's control store does not answer.", context={"cause": type(e).__name__}
        ) from None
    if not any(node.state == _ALIVE for node in nodes.values()):
        raise ServiceUnavailableError("No node of the cluster is alive.")
