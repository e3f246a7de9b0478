"""A reference to a named actor: finds it, creates it, and sends a call again when it was not executed.

On a busy machine Ray may learn late that an actor has left (ended on purpose). A call then fails as if it had
crashed, so the caller pings the actor. If Ray's count of its restarts has grown, it had crashed before it left.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import ray
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
)

from actors.errors import SandboxUnavailableError, ServiceUnavailableError
from actors.models import Recovery
from actors.notices import Notice, hear
from actors.request_ids import carrying
from actors.rpc.calls import Call, Next, Pause, Soon, Steps, submit
from actors.rpc.cluster import times_restarted
from actors.rpc.names import NAMESPACE
from actors.rpc.ray_errors import is_elsewhere, moves, was_leaving

_RETRY_S = 30.0
_NEWS_S = 2.0
"""Time limit for an actor's answer to `notice`, which takes about a millisecond."""
_MOVES_S = 600.0
"""Time limit for a call to a sandbox that moves off a draining node, from the call's beginning."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2
_MAX_HANDLES = 10_000
_handles: dict[str, Any] = {}
"""The cache of handles by actor name, for the whole process: finding an actor is a round trip to the cluster's head."""
T = TypeVar("T")


class ActorRef:
    """A named actor of the service. Its handle is found, cached, and dropped when the actor is gone.

    With `create`, a missing actor is created. `create` yields steps like any other call.
    """

    def __init__(
        self,
        name: str,
        *,
        create: Callable[[str | None, str | None], Steps[tuple[Any, int]]] | None = None,
        repeatable: bool = False,
        retry_s: float = _RETRY_S,
    ) -> None:
        """`create` takes the lane of the call to admit, and the id of a backup that the actor's node should have in its
        cache (both may be None). It returns the handle, and the number of times that Ray has restarted the actor.

        `repeatable` says that every call may be sent again, executed or not.

        `retry_s` is the time limit for waiting for an actor that is being restarted, and for retries after one left.
        """
        self.name = name
        self._create = create
        self._repeatable = repeatable
        self._retry_s = retry_s
        self.heard: Recovery | None = None
        """The sandbox's recovery, if its actor has reported one to a call by this reference."""

    def find(self) -> Any | None:
        """Returns the actor's handle, or None if no such actor lives. Blocks for a round trip if it is not cached."""
        handle = _handles.get(self.name)
        if handle is None:
            try:
                handle = ray.get_actor(self.name, namespace=NAMESPACE)
            except ValueError:
                return None
            self._remember(handle)
        return handle

    def _remember(self, handle: Any) -> None:
        if len(_handles) >= _MAX_HANDLES:
            _handles.clear()
        _handles[self.name] = handle

    def forget(self) -> None:
        """Drops the cached handle of an actor that is gone."""
        _handles.pop(self.name, None)

    def get(self) -> Steps[Any]:
        """Returns the actor's handle; creates the actor if that is allowed."""
        handle, _ = yield from self._found_or_made(None, None)
        return handle

    def _found_or_made(self, lane: str | None, cached_backup_id: str | None) -> Steps[tuple[Any, int | None]]:
        """Returns the actor's handle, and its number of restarts if it was made and has admitted the call."""
        handle = _handles.get(self.name) or (yield self.find)
        if handle is not None:
            return handle, None
        if self._create is None:
            raise ServiceUnavailableError(
                "No Holdfast service runs in this Ray cluster.",
                hint="Start it with `holdfast serve`.",
            )
        handle, restarts = yield from self._create(lane, cached_backup_id)
        self._remember(handle)
        return handle, restarts

    def call(
        self, send: Callable[[Any], Any], *, lane: str | None = None, cached_backup_id: str | None = None
    ) -> Steps[Any]:
        """Sends one call. Sends it again only if the actor had left, or was leaving, before it was executed.

        With `lane`, asks for admission first: this bounds the queue, and waits for an actor that is being restarted.
        `cached_backup_id` names a backup that the node of a new actor should have in its cache.
        """

        def once(handle: Any) -> Steps[Any]:
            return (yield send(carrying(handle)))

        return (yield from self._until_served(once, lane, cached_backup_id))

    def stream(self, send: Callable[[Any], Any], *, lane: str) -> Steps[tuple[Any, list[Any], bool]]:
        """Starts a stream and waits for its first item. Returns (remaining refs, first items, whether it ended)."""

        def once(handle: Any) -> Steps[tuple[Any, list[Any], bool]]:
            refs = send(carrying(handle))
            ref = yield Next(refs)
            return (refs, [], True) if ref is None else (refs, [(yield ref)], False)

        return (yield from self._until_served(once, lane, None))

    def _until_served(
        self, once: Callable[[Any], Steps[T]], lane: str | None, cached_backup_id: str | None
    ) -> Steps[T]:
        began = time.monotonic()
        deadline, pauses = began + self._retry_s, _pauses_s()
        while True:
            handle, restarts = yield from self._found_or_made(lane, cached_backup_id)
            has_news = restarts is not None
            try:
                if lane is not None and restarts is None:
                    restarts, has_news = yield from self._admit(handle, lane, deadline)
                answer = yield from once(handle)
                if has_news:
                    yield from self._hear(handle)
                return answer
            except (ActorDiedError, ActorUnavailableError, RayTaskError) as e:
                had_left = was_leaving(e) or (
                    isinstance(e, ActorUnavailableError)
                    and (self._repeatable or (yield from self._has_left(handle, restarts, deadline)))
                )
                if is_elsewhere(e):  # the files are on another node: the next actor is placed anew
                    handle.leave.remote(0.0)
                    had_left = True
                if moves(e):  # extends the wait for the sandbox's arrival elsewhere
                    deadline = min(time.monotonic() + self._retry_s, began + _MOVES_S)
                if not had_left or time.monotonic() > deadline:
                    if has_news and isinstance(e, RayTaskError):
                        yield from self._hear(handle)
                    raise
                if not (self._repeatable and isinstance(e, RayTaskError)):  # the service has answered, so it lives
                    self.forget()
            yield Pause(next(pauses))

    def _hear(self, handle: Any) -> Steps[None]:
        """Asks an actor for its sandbox's recovery and reports that to the caller. If this fails, a later call asks."""
        try:
            recovery: Recovery | None = yield Soon(handle.notice.remote(), _NEWS_S)
        except RayError:
            return
        if recovery is not None:
            at, self.heard = recovery.at, recovery
            acknowledgement = Call(lambda: self.call_if_alive(lambda actor: actor.acknowledge.remote(at), None))
            hear(Notice(self.name.rpartition(":")[2], recovery, acknowledge=lambda: submit(acknowledgement)))

    def _admit(self, handle: Any, lane: str, deadline: float) -> Steps[tuple[int, bool]]:
        """Waits for admission. Returns the actor's number of restarts, and whether it may have a recovery to report.

        An actor that is being restarted answers once it is back.
        """
        pauses = _pauses_s()
        while True:
            try:
                _, restarts, has_news = yield Soon(handle.admit.remote(lane), max(1.0, deadline - time.monotonic()))
                return int(restarts), bool(has_news)
            except (ActorUnavailableError, GetTimeoutError):
                if time.monotonic() > deadline:
                    raise SandboxUnavailableError(
                        "The sandbox's actor is being restarted, or its node does not answer.",
                        hint="Try again.",
                        context={"outcome": "not_executed"},
                    ) from None
            yield Pause(next(pauses))

    def _has_left(self, handle: Any, restarts: int | None, deadline: float) -> Steps[bool]:
        """Tells whether an actor that did not answer had left. If it had crashed, Ray restarts it.

        It may have crashed, been restarted and left since: its number of restarts then differs from that at admission.
        A call that asked for no admission continues a transfer. Another actor does not know that transfer, so the call
        has no effect there and may be sent again.
        """
        pauses = _pauses_s()
        while time.monotonic() < deadline:
            try:
                yield handle.ping.remote()
            except ActorDiedError:
                now = yield lambda: times_restarted(handle._actor_id.hex())
                return restarts is None or bool(now == restarts)
            except ActorUnavailableError:
                yield Pause(next(pauses))
            else:
                return False
        return False

    def call_if_alive(self, send: Callable[[Any], Any], default: T) -> Steps[Any | T]:
        """Sends one call if the actor lives. Returns `default` if it does not, or if it leaves meanwhile."""
        for _ in range(2):  # a cached handle may be of an actor that has left and has a successor
            handle = _handles.get(self.name) or (yield self.find)
            if handle is None:
                break
            try:
                return (yield send(carrying(handle)))
            except RayActorError:
                self.forget()
        return default


def _pauses_s() -> Iterator[float]:
    """Yields the pauses before the first, the second, … retry."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
