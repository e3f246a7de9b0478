"""The calls of other actors to the service's actor."""

from __future__ import annotations

import contextlib
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from actors.errors import ServiceUnavailableError
from actors.logs import log
from actors.metrics import Counts
from actors.rpc.names import NAMESPACE, SERVICE_NAME
from actors.rpc.ray_errors import unwrapped

_REPORT_S = 1.0
_NODE_ASKED_S = 30.0


def report_to_service(counts: Counts) -> None:
    """Sends counts to the service's actor. Raises HoldfastError: they did not arrive."""
    try:
        with contextlib.suppress(GetTimeoutError):  # they may still arrive, and must not count twice
            ray.get(_service().report.remote(counts), timeout=_REPORT_S)
    except RayError as e:
        raise unwrapped(e) from None
    except ValueError:
        raise ServiceUnavailableError("No Holdfast service runs in this Ray cluster.") from None


def is_node_lost(identity: str, cluster_node: str | None) -> bool:
    """True if the service considers a node lost. False if the service cannot be asked."""
    try:
        return bool(ray.get(_service().is_lost.remote(identity, cluster_node), timeout=_NODE_ASKED_S))
    except (ValueError, RayError) as e:
        log.warning("node_not_asked_for", error=type(e).__name__)
        return False


def note_backup(tenant: str, sandbox_id: str) -> None:
    """Tells the service that a backup was made, and that the sandbox has a retention policy. Waits for no answer.

    A message that is lost does no harm: the policy is applied after the next backup, and by each collection.
    """
    try:
        _service().backup_made.remote(tenant, sandbox_id)
    except (ValueError, RayError) as e:
        log.warning("retention_not_asked_for", sandbox=sandbox_id, error=type(e).__name__)


def _service() -> Any:
    """The handle of the service's actor. Raises ValueError if there is none."""
    return ray.get_actor(SERVICE_NAME, namespace=NAMESPACE)
