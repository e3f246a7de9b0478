"""A reference to a named actor: finds it, creates it, and sends a call again when it was not executed.

On a busy machine the news that an actor has left can come late, and the call ends as if it had crashed: asking again
settles it, and how often Ray has restarted the actor tells one that has left from one that has crashed first.
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
"""How long an actor is waited for that is asked for its news: it takes about a millisecond."""
_MOVES_S = 600.0
"""How long a call waits at most, from its beginning on, for a sandbox that moves off a node that is being drained."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2
_MAX_HANDLES = 10_000
_handles: dict[str, Any] = {}
"""Handles by actor name, for the whole process: finding one anew is a round trip to the cluster's head."""
T = TypeVar("T")


class ActorRef:
    """A named actor of the service: found, remembered, and forgotten when it is gone.

    With `create`, an actor that does not exist is made: `create` yields like any other step.
    """

    def __init__(
        self,
        name: str,
        *,
        create: Callable[[str | None, str | None], Steps[tuple[Any, int]]] | None = None,
        repeatable: bool = False,
        retry_s: float = _RETRY_S,
    ) -> None:
        """`create` is given the lane of the call that is to be let in, and the backup that the actor's node had best
        have at hand, if there are any; it gives the handle, and how often Ray has restarted the actor.

        `repeatable` says that every call may be sent again, executed or not.

        `retry_s` bounds how long a call waits for an actor that is restarted, or is sent again to actors that leave.
        """
        self.name = name
        self._create = create
        self._repeatable = repeatable
        self._retry_s = retry_s
        self.heard: Recovery | None = None
        """The sandbox's recovery, as its actor has told a call that was made here."""

    def find(self) -> Any | None:
        """The actor's handle, or None when no such actor lives. Blocks for a round trip if not remembered."""
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
        """Lets go of the handle of an actor that is gone."""
        _handles.pop(self.name, None)

    def get(self) -> Steps[Any]:
        """The actor's handle; creates the actor where that is allowed."""
        handle, _ = yield from self._found_or_made(None, None)
        return handle

    def _found_or_made(self, lane: str | None, cached_backup_id: str | None) -> Steps[tuple[Any, int | None]]:
        """The actor's handle; and if it was made for this call, and so has let it in, how often it was restarted."""
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
        """Sends one call. Sends it again only when the actor had left, or was leaving, before it was executed.

        With `lane`, asks to be let in first, and so meets neither an endless queue nor an actor that is restarted.
        `cached_backup_id` names the backup that a new actor had best be near to.
        """

        def once(handle: Any) -> Steps[Any]:
            return (yield send(carrying(handle)))

        return (yield from self._until_served(once, lane, cached_backup_id))

    def stream(self, send: Callable[[Any], Any], *, lane: str) -> Steps[tuple[Any, list[Any], bool]]:
        """Starts a call that yields, up to its first item: (remaining refs, first items, whether that was all)."""

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
                if is_elsewhere(e):  # the actor is where the files are not; the next one is placed anew
                    handle.leave.remote(0.0)
                    had_left = True
                if moves(e):  # for as long as the other node can be waited for
                    deadline = min(time.monotonic() + self._retry_s, began + _MOVES_S)
                if not had_left or time.monotonic() > deadline:
                    if has_news and isinstance(e, RayTaskError):
                        yield from self._hear(handle)
                    raise
                if not (self._repeatable and isinstance(e, RayTaskError)):  # the service has answered, so it lives
                    self.forget()
            yield Pause(next(pauses))

    def _hear(self, handle: Any) -> Steps[None]:
        """Asks an actor how its sandbox came back, and hands on what it says. If it cannot, the next call does."""
        try:
            recovery: Recovery | None = yield Soon(handle.notice.remote(), _NEWS_S)
        except RayError:
            return
        if recovery is not None:
            at, self.heard = recovery.at, recovery
            told = Call(lambda: self.call_if_alive(lambda actor: actor.told.remote(at), None))
            hear(Notice(self.name.rpartition(":")[2], recovery, told=lambda: submit(told)))

    def _admit(self, handle: Any, lane: str, deadline: float) -> Steps[tuple[int, bool]]:
        """Waits until the actor lets a call in; returns how often Ray had restarted it then, and if it may have news.

        One that is being restarted answers when it is back.
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
        """Whether an actor that did not answer had left, and did not crash: one that crashed is restarted.

        It may have been restarted, and have left since; then it was restarted more often than when it let the call in.
        What was not let in goes on with a transfer, and has no effect on another actor.
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
        """Sends one call if the actor lives; otherwise, or if it leaves in the meantime, gives `default`."""
        for _ in range(2):  # a remembered handle may be of an actor that has left, and has a successor
            handle = _handles.get(self.name) or (yield self.find)
            if handle is None:
                break
            try:
                return (yield send(carrying(handle)))
            except RayActorError:
                self.forget()
        return default


def _pauses_s() -> Iterator[float]:
    """How long to wait before the first, the second, … repetition."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
