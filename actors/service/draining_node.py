"""The sandboxes of a draining node, as the node's host finds and hands them over.

The actor of an awake sandbox hands it over and then leaves. A sandbox that is asleep has no actor, and Ray starts none
on a draining node: so the node's host wakes the sandbox in its own process, and hands it over.
"""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

from actors.config import SandboxConfig
from actors.errors import SandboxUnavailableError
from actors.host.error_filter import guarded
from actors.node_layout import NodeLayout, choose_driver
from actors.rpc.names import sandbox_actor_name
from actors.rpc.runtime import ActorAwayError, ActorEndedError, Runtime
from actors.sandbox.facade import LocalSandbox
from actors.service.drain import Occupant
from storage.catalog import BackupCatalog

_ANSWER_S = 2.0
"""Time limit for the actors' answers whether they are in use, which take about a millisecond."""


class DrainingNode:
    """This node's sandboxes. Thread-safe if no sandbox is handed over by two threads at once."""

    def __init__(self, runtime: Runtime, config: SandboxConfig, catalog: BackupCatalog | None, *, node_id: str) -> None:
        """`config` is this node's; `node_id` is its name in the cluster."""
        self._runtime = runtime
        self._config = config
        self._catalog = catalog
        self._node_id = node_id
        self._layout = NodeLayout(config.node)
        self._settled: set[str] = set()
        """Sandboxes that were handed over, or whose files here are out of date."""

    def occupants(self) -> Sequence[Occupant]:
        """See `drain.Premises`."""
        awake = set(self._runtime.awake_sandboxes())
        asked: dict[Any, tuple[str, str]] = {}
        found: list[Occupant] = []
        for tenant, sandbox in self._boxes():
            name = sandbox_actor_name(tenant, sandbox)
            actor = self._runtime.find(name) if name in awake else None
            if actor is not None:
                asked[actor.usage.remote()] = (tenant, sandbox)
            elif f"{tenant}/{sandbox}" not in self._settled and self._has_record(tenant, sandbox):
                with contextlib.suppress(FileNotFoundError):  # it was handed over just now
                    used_at = self._layout.box(tenant, sandbox).stat().st_mtime
                    found.append(Occupant(tenant, sandbox, is_awake=False, in_use=False, used_at=used_at))
        return [*found, *self._those_in_use(asked)]

    def _boxes(self) -> Iterator[tuple[str, str]]:
        for home in (self._layout.root / "boxes").glob("*/*"):
            yield home.parent.name, home.name

    def _has_record(self, tenant: str, sandbox: str) -> bool:
        return (self._layout.box(tenant, sandbox) / "sandbox.json").exists()

    def _those_in_use(self, asked: dict[Any, tuple[str, str]]) -> Iterator[Occupant]:
        """Yields the asked actors that are on this node. One that does not answer may be, and counts as in use."""
        said = self._runtime.answers({ref: ref for ref in asked}, _ANSWER_S)
        now = time.time()
        for ref, address in asked.items():
            if ref not in said:
                yield Occupant(*address, is_awake=True, in_use=True, used_at=now)
            elif said[ref].error is not None:  # it has just left, or died: the next step shows
                yield Occupant(*address, is_awake=True, in_use=False, used_at=now)
            else:
                node_id, usage = said[ref].value
                if node_id == self._node_id:
                    used_at = now - usage.idle_s
                    yield Occupant(*address, is_awake=True, in_use=usage.is_serving, used_at=used_at)

    def hand_over(self, occupant: Occupant, *, force: bool) -> None:
        """See `drain.Premises`."""
        actor = self._runtime.find(sandbox_actor_name(occupant.tenant, occupant.sandbox))
        if actor is not None:
            self._tell_to_move(actor, force=force)
        else:
            guarded(lambda: self._hand_over_here(occupant))
            self._settled.add(occupant.name)

    def _tell_to_move(self, actor: Any, *, force: bool) -> None:
        """Has an actor hand its sandbox over; returns once the actor has left. Raises HoldfastError."""
        actor.close_door.remote()
        try:
            self._runtime.answer(actor.hand_over.remote(force))
        except ActorEndedError:  # it has left, through its mailbox
            return
        except ActorAwayError as e:
            raise SandboxUnavailableError(
                "The sandbox's actor went away.", context={"outcome": "unknown", "reason": e.reason}
            ) from None

    def _hand_over_here(self, occupant: Occupant) -> None:
        box = LocalSandbox(
            occupant.tenant,
            occupant.sandbox,
            self._config,
            driver=self._driver,
            catalog=self._catalog,
            cluster_node=self._node_id,
        )
        try:
            box.hand_over()
        finally:
            if box.is_awake:  # it failed: the sandbox stays here
                box.close()

    @functools.cached_property
    def _driver(self) -> Any:
        return choose_driver(self._config.node)
