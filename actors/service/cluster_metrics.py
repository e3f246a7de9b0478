"""The metrics of the whole cluster: its actors' counts, and how full it is. Runs in the service's process."""

from __future__ import annotations

from actors.metrics import ClusterMetrics, Counts
from actors.rpc.cluster import available_resources, awake_sandboxes
from actors.service.placement import SLOTS, sandbox_nodes


def cluster_metrics(counts: Counts, recorded: int | None) -> ClusterMetrics:
    """Adds to `counts` how full the cluster is now. `recorded` is the number of sandboxes in the bucket, if known."""
    nodes, awake = sandbox_nodes(), len(awake_sandboxes())
    return ClusterMetrics(
        counts=counts,
        awake=awake,
        asleep=None if recorded is None else max(0, recorded - awake),
        nodes=len(nodes),
        slots=round(sum(node["Resources"][SLOTS] for node in nodes)),
        free_slots=round(available_resources().get(SLOTS, 0)),
    )
