"""Calls to actors: the caller's side of Ray; the actors' side are the `*_host` modules.

A call is written once, as a generator that yields what has to be waited for and receives the outcome.
`Call.result()` drives it by blocking, `await call` drives it on an event loop; so the rules of finding,
creating and retrying an actor exist once, for jobs, notebooks and the gateway alike.

Ray's errors end here (measured on Ray 2.60): `RayTaskError` carries our own error as its cause;
`ActorUnavailableError` means "perhaps executed"; `ActorDiedError` of an actor that may restart without
limit means that it left through its mailbox, so that the call was never executed and may be sent again. On a
busy machine the news that it left can come late, and the call ends as if it had crashed: asking again settles it,
and how often Ray has restarted the actor tells one that has left from one that has crashed first.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import ray
from ray._private import state as ray_state
from ray._private.state import actors
from ray.exceptions import (
    ActorDiedError,
    ActorUnavailableError,
    GetTimeoutError,
    RayActorError,
    RayError,
    RayTaskError,
    TaskCancelledError,
)

from actors.errors import (
    DRAINING,
    LEAVING,
    HoldfastError,
    InternalError,
    OperationCancelledError,
    SandboxUnavailableError,
    ServiceUnavailableError,
)
from actors.models import Recovery
from actors.notices import Notice, hear
from actors.request_ids import carrying
from actors.rpc.readable_process import in_readable_folder, readable_title

NAMESPACE = "holdfast"
SERVICE_NAME = "service"
_SANDBOX_PREFIX = "sandbox:"
MAILBOX, EXEC, FILES, READS = "mailbox", "exec", "files", "reads"
"""The lanes of a sandbox in which calls may have to wait."""
_RETRY_S = 30.0
_NEWS_S = 2.0
"""How long an actor is waited for that is asked for its news: it takes about a millisecond."""
_MOVES_S = 600.0
"""How long a call waits at most, from its beginning on, for a sandbox that moves off a node that is being drained."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.01, 0.2

_REACHABLE_S = 5.0
_MAX_HANDLES = 10_000
_handles: dict[str, Any] = {}
"""Handles by actor name, for the whole process: finding one anew is a round trip to the cluster's head."""

T = TypeVar("T")
Steps = Generator[Any, Any, T]


def sandbox_actor_name(tenant: str, sandbox_id: str) -> str:
    """The name under which a sandbox's actor is registered in the namespace."""
    return f"{_SANDBOX_PREFIX}{tenant}:{sandbox_id}"


def times_restarted(actor_id: str) -> int:
    """How often Ray has restarted an actor, dead or alive; -1 if it does not remember it."""
    return int(actors(actor_id).get("NumRestarts", -1))


def is_alive(handle: Any) -> bool:
    """Whether an actor has begun its life, and not ended it: not one that waits for its process."""
    return bool(actors(handle._actor_id.hex()).get("State") == "ALIVE")


def awake_sandboxes() -> list[str]:
    """The names of the actors that sandboxes have now, of all tenants."""
    rows = ray.util.list_named_actors(all_namespaces=True)
    return [row["name"] for row in rows if row["namespace"] == NAMESPACE and row["name"].startswith(_SANDBOX_PREFIX)]


def draining_nodes() -> dict[str, int]:
    """The nodes that Ray drains, and each one's deadline in milliseconds since 1970; 0 if it has none."""
    return dict(ray_state.state.get_draining_nodes())


def connect(address: str | None = None) -> None:
    """Joins the Ray cluster, unless this process is part of one already.

    Inside a job Ray injects the address; elsewhere `RAY_ADDRESS` names it. Never starts a cluster.

    Raises:
        ServiceUnavailableError: no cluster answers.
    """
    if ray.is_initialized():
        return
    _check_reachable(address or os.environ.get("RAY_ADDRESS", ""))
    if (title := readable_title()) is not None:
        ray._raylet.setproctitle(title)  # type: ignore[attr-defined]
    try:
        with in_readable_folder():
            ray.init(
                address=address or "auto",
                namespace=NAMESPACE,
                log_to_driver=False,
                configure_logging=False,
            )
    except (ConnectionError, RayError, RuntimeError, ValueError) as e:
        raise ServiceUnavailableError(
            "No Ray cluster answers.",
            hint="Start one with `holdfast serve`, and set RAY_ADDRESS as it prints.",
            context={"cause": type(e).__name__},
        ) from None


def _check_reachable(address: str) -> None:
    """Refuses an address where nobody listens, in seconds: Ray tries for minutes. Passes what is no host:port."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "/" in host:
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_REACHABLE_S).close()
    except OSError:
        raise ServiceUnavailableError(
            "No Ray cluster answers at the address that RAY_ADDRESS, or the call, names.",
            hint="Start one with `holdfast serve`, and set RAY_ADDRESS as it prints.",
        ) from None


@dataclass(frozen=True, slots=True)
class _Soon:
    """A step that waits for a reference, and no longer than so many seconds."""

    ref: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class _Pause:
    """A step that waits so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class _Next:
    """A step that waits for the next reference of a stream; its outcome is None at the end."""

    refs: Any


class Call(Generic[T]):
    """One call that has not been sent yet. Wait for it once: by `result()`, or by `await`."""

    def __init__(self, steps: Callable[[], Steps[T]]) -> None:
        self._steps = steps

    def result(self) -> T:
        """Sends the call and blocks until it has ended. Raises a `HoldfastError`."""
        return _drive(self._steps())

    def __await__(self) -> Generator[Any, None, T]:
        return _drive_async(self._steps()).__await__()


class Stream(Generic[T]):
    """A call that answers with many items. Iterate once, with `for` or `async for`; `close` ends it early."""

    def __init__(
        self, open_stream: Callable[[], Steps[Any]], *, on_close: Callable[[], Call[Any]] | None = None
    ) -> None:
        self._open = open_stream
        self._on_close = on_close
        self._refs: Any = None
        self._first: list[T] = []
        self._ended = False

    def start(self) -> Call[None]:
        """Waits for the first item, so that an error of the whole call shows before anything is answered."""
        return Call(self._start)

    def _start(self) -> Steps[None]:
        if self._refs is None:
            refs, first, self._ended = yield from self._open()
            self._refs, self._first = refs, first

    def __iter__(self) -> Iterator[T]:
        try:
            self.start().result()
            yield from self._first
            if not self._ended:
                for ref in self._refs:
                    yield _drive(_further(ref))
                self._ended = True
        finally:
            if not self._ended and self._on_close is not None:
                self._ended = True
                self._on_close().result()

    async def __aiter__(self) -> AsyncIterator[T]:
        try:
            await self.start()
            for item in self._first:
                yield item
            if not self._ended:
                async for ref in self._refs:
                    yield await _drive_async(_further(ref))
                self._ended = True
        finally:
            self.close()

    def close(self) -> None:
        """Tells the actor to stop producing, if it has not finished. Returns at once."""
        if not self._ended and self._on_close is not None:
            self._ended = True
            submit(self._on_close())


def submit(call: Call[Any]) -> None:
    """Sends a call and forgets its outcome. Never blocks."""
    steps, waited = call._steps(), None
    with contextlib.suppress(StopIteration, HoldfastError, RayError):
        waited = next(steps)
    steps.close()
    if callable(waited):  # its handle has to be found first
        threading.Thread(target=_forgotten, args=(call,), name="submit", daemon=True).start()


def _forgotten(call: Call[Any]) -> None:
    with contextlib.suppress(HoldfastError):
        call.result()


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

    def _found_or_made(self, lane: str | None, near: str | None) -> Steps[tuple[Any, int | None]]:
        """The actor's handle; and if it was made for this call, and so has let it in, how often it was restarted."""
        handle = _handles.get(self.name) or (yield self.find)
        if handle is not None:
            return handle, None
        if self._create is None:
            raise ServiceUnavailableError(
                "No Holdfast service runs in this Ray cluster.",
                hint="Start it with `holdfast serve`.",
            )
        handle, restarts = yield from self._create(lane, near)
        self._remember(handle)
        return handle, restarts

    def call(self, send: Callable[[Any], Any], *, lane: str | None = None, near: str | None = None) -> Steps[Any]:
        """Sends one call. Sends it again only when the actor had left, or was leaving, before it was executed.

        With `lane`, asks to be let in first, and so meets neither an endless queue nor an actor that is restarted.
        `near` names the backup that a new actor had best be near to.
        """

        def once(handle: Any) -> Steps[Any]:
            return (yield send(carrying(handle)))

        return (yield from self._until_served(once, lane, near))

    def stream(self, send: Callable[[Any], Any], *, lane: str) -> Steps[tuple[Any, list[Any], bool]]:
        """Starts a call that yields, up to its first item: (remaining refs, first items, whether that was all)."""

        def once(handle: Any) -> Steps[tuple[Any, list[Any], bool]]:
            refs = send(carrying(handle))
            ref = yield _Next(refs)
            return (refs, [], True) if ref is None else (refs, [(yield ref)], False)

        return (yield from self._until_served(once, lane, None))

    def _until_served(self, once: Callable[[Any], Steps[T]], lane: str | None, near: str | None) -> Steps[T]:
        began = time.monotonic()
        deadline, pauses = began + self._retry_s, _pauses_s()
        while True:
            handle, restarts = yield from self._found_or_made(lane, near)
            has_news = restarts is not None
            try:
                if lane is not None and restarts is None:
                    restarts, has_news = yield from self._let_in(handle, lane, deadline)
                answer = yield from once(handle)
                if has_news:
                    yield from self._hear(handle)
                return answer
            except (ActorDiedError, ActorUnavailableError, RayTaskError) as e:
                had_left = was_leaving(e) or (
                    isinstance(e, ActorUnavailableError)
                    and (self._repeatable or (yield from self._has_left(handle, restarts, deadline)))
                )
                if _is_elsewhere(e):  # the actor is where the files are not; the next one is placed anew
                    handle.leave.remote(0.0)
                    had_left = True
                if _moves(e):  # for as long as the other node can be waited for
                    deadline = min(time.monotonic() + self._retry_s, began + _MOVES_S)
                if not had_left or time.monotonic() > deadline:
                    if has_news and isinstance(e, RayTaskError):
                        yield from self._hear(handle)
                    raise
                if not (self._repeatable and isinstance(e, RayTaskError)):  # the service has answered, so it lives
                    self.forget()
            yield _Pause(next(pauses))

    def _hear(self, handle: Any) -> Steps[None]:
        """Asks an actor how its sandbox came back, and hands on what it says. If it cannot, the next call does."""
        try:
            recovery: Recovery | None = yield _Soon(handle.notice.remote(), _NEWS_S)
        except RayError:
            return
        if recovery is not None:
            at, self.heard = recovery.at, recovery
            told = Call(lambda: self.call_if_alive(lambda actor: actor.told.remote(at), None))
            hear(Notice(self.name.rpartition(":")[2], recovery, told=lambda: submit(told)))

    def _let_in(self, handle: Any, lane: str, deadline: float) -> Steps[tuple[int, bool]]:
        """Waits until the actor lets a call in; returns how often Ray had restarted it then, and if it may have news.

        One that is being restarted answers when it is back.
        """
        pauses = _pauses_s()
        while True:
            try:
                _, restarts, has_news = yield _Soon(handle.let_in.remote(lane), max(1.0, deadline - time.monotonic()))
                return int(restarts), bool(has_news)
            except (ActorUnavailableError, GetTimeoutError):
                if time.monotonic() > deadline:
                    raise SandboxUnavailableError(
                        "The sandbox's actor is being restarted, or its node does not answer.",
                        hint="Try again.",
                        context={"outcome": "not_executed"},
                    ) from None
            yield _Pause(next(pauses))

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
                yield _Pause(next(pauses))
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


def was_leaving(e: RayError) -> bool:
    """Whether a call was not executed because its actor went to sleep: gone already, or about to go."""
    if isinstance(e, RayTaskError):
        cause = e.cause
        return isinstance(cause, SandboxUnavailableError) and cause.context.get(LEAVING) is True
    return isinstance(e, ActorDiedError)


def _is_elsewhere(e: RayError) -> bool:
    """Whether an actor refused a call because the sandbox's files are on another node."""
    cause = e.cause if isinstance(e, RayTaskError) else None
    return isinstance(cause, SandboxUnavailableError) and cause.context.get("reason") == "ELSEWHERE"


def _moves(e: RayError) -> bool:
    """Whether an actor, or the service, refused a call because the sandbox is just being handed over."""
    cause = e.cause if isinstance(e, RayTaskError) else None
    return isinstance(cause, SandboxUnavailableError) and cause.context.get("reason") == DRAINING and was_leaving(e)


def _further(ref: Any) -> Steps[Any]:
    """A further item of a stream. Its call has been executed, at least in part, if its actor is gone."""
    try:
        return (yield ref)
    except RayActorError:
        raise _gone_in_mid_call() from None


@dataclass(frozen=True, slots=True)
class _Result:
    value: Any


def _resumed(send: Callable[[], Any]) -> Any:
    """What the steps wait for next, or their `_Result`. Raises the error that they end with, as one of ours."""
    try:
        return send()
    except StopIteration as end:
        return _Result(end.value)
    except RayError as e:
        raise unwrapped(e) from None


def _drive(steps: Steps[T]) -> T:
    send: Callable[[], Any] = partial(next, steps)
    while not isinstance(waited := _resumed(send), _Result):
        try:
            outcome: Any = None
            if isinstance(waited, _Pause):
                time.sleep(waited.seconds)
            elif isinstance(waited, _Next):
                outcome = next(waited.refs, None)
            elif isinstance(waited, _Soon):
                outcome = waited.ref() if callable(waited.ref) else ray.get(waited.ref, timeout=waited.seconds)
            else:
                outcome = waited() if callable(waited) else ray.get(waited)
        except RayError as e:
            send = partial(steps.throw, e)
        else:
            send = partial(steps.send, outcome)
    return waited.value  # type: ignore[no-any-return]


async def _drive_async(steps: Steps[T]) -> T:
    send: Callable[[], Any] = partial(next, steps)
    while not isinstance(waited := _resumed(send), _Result):
        try:
            outcome: Any = None
            if isinstance(waited, _Pause):
                await asyncio.sleep(waited.seconds)
            elif isinstance(waited, _Next):
                outcome = await anext(waited.refs, None)
            elif isinstance(waited, _Soon):
                outcome = await _in_time(waited)
            else:
                outcome = await asyncio.to_thread(waited) if callable(waited) else await waited
        except RayError as e:
            send = partial(steps.throw, e)
        else:
            send = partial(steps.send, outcome)
    return waited.value  # type: ignore[no-any-return]


async def _in_time(waited: _Soon) -> Any:
    try:
        async with asyncio.timeout(waited.seconds):
            return await (asyncio.to_thread(waited.ref) if callable(waited.ref) else waited.ref)
    except TimeoutError:
        raise GetTimeoutError("The actor did not answer in time.") from None


def _gone_in_mid_call() -> SandboxUnavailableError:
    return SandboxUnavailableError(
        "The actor went away during the call.",
        hint="Look at the sandbox's state before you repeat the call.",
        context={"outcome": "unknown"},
    )


def unwrapped(e: RayError) -> HoldfastError:
    """Our own error out of Ray's wrapping; without pids, addresses and colour codes."""
    if isinstance(e, RayTaskError):
        cause = e.cause
        if isinstance(cause, HoldfastError):
            return cause
        if isinstance(cause, RayError):
            return unwrapped(cause)
        return InternalError("The actor failed in a way it has no name for.", context={"cause": type(cause).__name__})
    if isinstance(e, TaskCancelledError):
        return OperationCancelledError("The call was cancelled.")
    if isinstance(e, ActorUnavailableError):
        return _gone_in_mid_call()
    if isinstance(e, RayActorError):
        return SandboxUnavailableError("The actor is gone.", context={"outcome": "not_executed"})
    if isinstance(e, GetTimeoutError):
        return ServiceUnavailableError("The cluster did not answer in time.")
    return InternalError("Ray failed.", context={"cause": type(e).__name__})
