"""The actor that each node has: it says who the node is, and keeps it clean. A thin Ray shell round `actors.upkeep`."""

from __future__ import annotations

import functools
import threading
import time
from typing import TYPE_CHECKING, Any

import ray

from actors.logs import configure_logging, log

if TYPE_CHECKING:
    from actors.config import SandboxConfig
    from actors.upkeep import Upkeep

_SWEEP_S = 300.0


class NodeHost:
    """One node's actor. `__init__` does nothing that can fail: Ray would never start it again.

    Its sweeps run in a thread of their own, the first one at once.
    """

    def __init__(self, config: SandboxConfig) -> None:
        self._config = config
        threading.Thread(target=self._keep_clean, name="sweep", daemon=True).start()

    @functools.cached_property
    def _upkeep(self) -> Upkeep:
        from actors.bucket import open_catalog
        from actors.config import on_this_node
        from actors.upkeep import Upkeep

        configure_logging()
        here = on_this_node(self._config)
        return Upkeep(here.node, open_catalog(here))

    def identity(self) -> str:
        return self._upkeep.identity()

    def has_archive(self, backup_id: str) -> bool:
        return self._upkeep.has_archive(backup_id)

    def _keep_clean(self) -> None:
        while True:
            try:
                self._upkeep.sweep()
            except Exception as e:  # the next one tries again
                log.error("sweep_failed", error=type(e).__name__)
            time.sleep(_SWEEP_S)


@functools.cache
def node_host_class() -> Any:
    """Made once: Ray would send each one it is given through the cluster's head, to every worker anew."""
    return ray.remote(NodeHost)
