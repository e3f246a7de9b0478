"""The awake sandboxes of the whole cluster, as the service's actor sees and ends them."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

from actors.rpc.names import sandbox_actor_name
from actors.rpc.runtime import Runtime

_CLOSE_S = 60.0
_EVICTION_S = 60.0
"""Longest pause between two rounds in which idle sandboxes are asked to leave."""
_SHORTEST_PAUSE_S = 0.02


def awake_of(runtime: Runtime, tenant: str, sandbox_ids: Collection[str]) -> set[str]:
    """Returns those of a tenant's sandboxes that have an actor."""
    names = set(runtime.awake_sandboxes())
    return {sandbox_id for sandbox_id in sandbox_ids if sandbox_actor_name(tenant, sandbox_id) in names}


def close_all(runtime: Runtime) -> int:
    """Closes every awake sandbox, before the service stops; returns the number that could not be closed."""
    actors = _actors(runtime)
    for actor in actors.values():
        actor.cancel.remote()
    ended = runtime.answers({actor.close.remote(): name for name, actor in actors.items()}, _CLOSE_S)
    return len(actors) - sum(answer.error is None for answer in ended.values())


class Evictor:
    """Asks idle sandboxes to leave. Each decides for itself whether it is idle."""

    def __init__(self, runtime: Runtime, sleep_after_s: float) -> None:
        """`sleep_after_s` is 0 if sandboxes never sleep; destroyed ones are still asked to leave."""
        self._runtime = runtime
        self._idle_s = sleep_after_s or math.inf
        self._asked: dict[str, Any] = {}
        """The requests that were not answered yet, by the actor's name."""

    def step(self) -> float:
        """Asks each awake sandbox that has answered the last time. Returns the seconds until the next round."""
        answered = self._runtime.answers({ref: name for name, ref in self._asked.items()}, 0)
        self._asked = {name: ref for name, ref in self._asked.items() if name not in answered}
        for name, actor in _actors(self._runtime).items():
            if name not in self._asked:  # at most one request in each mailbox
                self._asked[name] = actor.leave.remote(self._idle_s)
        return self.pause_s

    @property
    def pause_s(self) -> float:
        """The pause between two rounds."""
        return min(max(self._idle_s / 4, _SHORTEST_PAUSE_S), _EVICTION_S)


def _actors(runtime: Runtime) -> dict[str, Any]:
    """The actors of all awake sandboxes, by name."""
    found = {name: runtime.find(name) for name in runtime.awake_sandboxes()}
    return {name: actor for name, actor in found.items() if actor is not None}  # others have just left
