"""The metrics of the whole cluster: its actors' counts, and how full it is. Runs in the service's process."""

from __future__ import annotations

from datetime import datetime

from actors.metrics import ClusterMetrics, Counts
from actors.rpc.runtime import Runtime


def cluster_metrics(
    runtime: Runtime, counts: Counts, *, recorded: int | None, collected_at: datetime | None
) -> ClusterMetrics:
    """Adds to `counts` how full the cluster is now. `recorded` is the number of sandboxes in the bucket, if known."""
    nodes, awake = [node for node in runtime.nodes() if node.takes_sandboxes], len(runtime.awake_sandboxes())
    return ClusterMetrics(
        counts=counts,
        awake=awake,
        asleep=None if recorded is None else max(0, recorded - awake),
        nodes=len(nodes),
        slots=round(sum(node.slots for node in nodes)),
        free_slots=round(sum(runtime.free_slots().values())),
        collected_at=collected_at.timestamp() if collected_at is not None else None,
    )
