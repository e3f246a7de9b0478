"""The spawner of the service: finds or makes a sandbox's actor, on the right node, and has it admit the caller."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from actors.errors import SandboxUnavailableError, TurnedAwayError
from actors.rpc.names import sandbox_actor_name
from actors.rpc.runtime import ActorAwayError, ActorEndedError, NoAnswerInTimeError, Runtime
from actors.service.creation_lock import CreationLock
from actors.service.facade import is_log_disk_full
from actors.service.placement import Nodes
from actors.service.warm_workers import WarmWorkers
from actors.state.document import StateRead

_SPAWN_S = 30.0
_LEAVING_POLL_S = 0.02


class MakeActor(Protocol):
    """Makes a sandbox's actor, unless it exists."""

    def __call__(
        self, name: str, node_id: str, tenant: str, sandbox_id: str, *, conditional_writes: bool | None
    ) -> Any:
        """Returns the actor's handle at once; its process may not have started.

        `conditional_writes` says whether the bucket has them, if that is known.
        """


class States(Protocol):
    """The part of `Service` that the spawner needs: the sandboxes' states in the bucket."""

    @property
    def has_conditional_writes(self) -> bool | None: ...
    def find_state(self, tenant: str, sandbox_id: str) -> StateRead | None: ...
    def record_new(self, tenant: str, sandbox_id: str) -> StateRead | None: ...


class Spawner:
    """The one maker of sandboxes' actors. Thread-safe."""

    def __init__(
        self,
        runtime: Runtime,
        states: States,
        nodes: Nodes,
        warm: WarmWorkers,
        make: MakeActor,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._runtime = runtime
        self._states = states
        self._nodes = nodes
        self._warm = warm
        self._make = make
        self._clock = clock
        self._sleep = sleep
        self._creation_lock = CreationLock()

    def spawn(self, tenant: str, sandbox_id: str, lane: str | None, cached_backup_id: str | None) -> tuple[Any, int]:
        """Returns a sandbox's actor, which has admitted a call to `lane`. Creates the actor if there is none.

        `cached_backup_id` names a backup that the sandbox is about to restore.

        Returns:
            The handle, and the number of times that Ray has restarted the actor.

        Raises:
            SandboxUnavailableError: no node has a free slot, for which Ray would wait for ever; or another call is
                creating the actor.
            TooManyCallsError: too many calls wait for the actor.
        """
        name = sandbox_actor_name(tenant, sandbox_id)
        with self._creation_lock.held(name), self._warm.awaited():
            return self._spawn(name, tenant, sandbox_id, lane, cached_backup_id)

    def _spawn(
        self, name: str, tenant: str, sandbox_id: str, lane: str | None, cached_backup_id: str | None
    ) -> tuple[Any, int]:
        deadline = self._clock() + _SPAWN_S
        while True:
            found: StateRead | None = None
            actor, is_ours = self._runtime.find(name), False
            if actor is None:
                (actor, found), is_ours = self._new_actor(name, tenant, sandbox_id, cached_backup_id), True
                deadline = self._clock() + _SPAWN_S
            try:
                told = self._runtime.answer(actor.admit.remote(lane, found), max(0.0, deadline - self._clock()))
                node, restarts, _ = told
                if is_ours:
                    self._warm.replace(node)
                return actor, restarts
            except TurnedAwayError:
                if self._clock() > deadline:
                    raise
            except (ActorEndedError, ActorAwayError):
                # It was leaving, and its name is free in an instant; or it crashed, and is being restarted.
                if self._clock() > deadline:
                    raise _not_started() from None
            except NoAnswerInTimeError:
                if is_ours and not self._runtime.has_started(actor):  # it never answered, so nothing is lost with it
                    self._runtime.kill(actor)
                raise _not_started() from None
            self._sleep(_LEAVING_POLL_S)

    def _new_actor(
        self, name: str, tenant: str, sandbox_id: str, cached_backup_id: str | None
    ) -> tuple[Any, StateRead | None]:
        """Creates a sandbox's actor; returns it, and the sandbox's state. The caller holds the creation lock."""
        found = self._states.find_state(tenant, sandbox_id)
        if found is None:  # the bucket is down, or the state is damaged
            home = self._nodes.keeper(tenant, sandbox_id)
        else:
            home = found.stored.state.node if found.stored else None
        node = self._nodes.choose((tenant, sandbox_id), home, cached_backup_id)
        conditional_writes = self._states.has_conditional_writes
        actor = self._make(name, node, tenant, sandbox_id, conditional_writes=conditional_writes)
        if found == StateRead(None):  # while its process starts
            found = self._states.record_new(tenant, sandbox_id)
        return actor, found


def _not_started() -> SandboxUnavailableError:
    if is_log_disk_full():
        return SandboxUnavailableError(
            "The sandbox's actor did not start in time: the disk of Ray's files is full.",
            hint="Make room on that disk, which is that of the folder for temporary files.",
            context={"outcome": "not_executed", "reason": "NO_SPACE"},
        )
    return SandboxUnavailableError(
        "The sandbox's actor did not start in time.", hint="Try again.", context={"outcome": "not_executed"}
    )
