"""Calls that are not sent yet, and their two drivers: a blocking thread, or an event loop.

A call is written once, as a generator (`Steps`) that yields what has to be waited for and receives the outcome.
`Call.result()` drives it by blocking, `await call` drives it on an event loop; so the rules of finding, creating and
retrying an actor (`actor_ref`) exist once, for jobs, notebooks and the gateway alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from actors.errors import HoldfastError
from actors.rpc.ray_errors import gone_in_mid_call, unwrapped

T = TypeVar("T")
Steps = Generator[Any, Any, T]


@dataclass(frozen=True, slots=True)
class Soon:
    """A step that waits for a reference, or a callable's end, for so many seconds at most."""

    ref: Any
    seconds: float


@dataclass(frozen=True, slots=True)
class Pause:
    """A step that waits so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Next:
    """A step that waits for the next reference of a stream; its outcome is None at the end."""

    refs: Any


class Call(Generic[T]):
    """One call that is not sent yet. Wait for it once: by `result()`, or by `await`."""

    def __init__(self, steps: Callable[[], Steps[T]]) -> None:
        self._steps = steps

    def result(self) -> T:
        """Sends the call and blocks until it has ended. Raises a `HoldfastError`."""
        return drive(self._steps())

    def __await__(self) -> Generator[Any, None, T]:
        return drive_async(self._steps()).__await__()


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
        """Waits for the first item, so that an error of the whole call is raised before anything is answered."""
        return Call(self._start)

    def _start(self) -> Steps[None]:
        if self._refs is None:
            refs, first, self._ended = yield from self._open()
            self._refs, self._first = refs, first

    def __iter__(self) -> Generator[T, None, None]:
        try:
            self.start().result()
            yield from self._first
            if not self._ended:
                for ref in self._refs:
                    yield drive(_further(ref))
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
                    yield await drive_async(_further(ref))
                self._ended = True
        finally:
            self.close()

    def close(self) -> None:
        """Tells the actor to stop producing, if it has not finished. Returns at once."""
        if not self._ended and self._on_close is not None:
            self._ended = True
            submit(self._on_close())


def submit(call: Call[Any]) -> None:
    """Sends a call and ignores its outcome. Never blocks."""
    steps, waited = call._steps(), None
    with contextlib.suppress(StopIteration, HoldfastError, RayError):
        waited = next(steps)
    steps.close()
    if callable(waited):  # the call has to find the actor first, which blocks
        threading.Thread(target=_forgotten, args=(call,), name="submit", daemon=True).start()


def _forgotten(call: Call[Any]) -> None:
    with contextlib.suppress(HoldfastError):
        call.result()


def _further(ref: Any) -> Steps[Any]:
    """Waits for a further item of a stream. If the actor is gone, the call was executed at least in part."""
    try:
        return (yield ref)
    except RayActorError:
        raise gone_in_mid_call() from None


@dataclass(frozen=True, slots=True)
class _Result:
    value: Any


def _resumed(send: Callable[[], Any]) -> Any:
    """Resumes the steps; returns what they wait for next, or their `_Result`. Raises their error as one of ours."""
    try:
        return send()
    except StopIteration as end:
        return _Result(end.value)
    except RayError as e:
        raise unwrapped(e) from None


def drive(steps: Steps[T]) -> T:
    send: Callable[[], Any] = partial(next, steps)
    while not isinstance(waited := _resumed(send), _Result):
        try:
            outcome: Any = None
            if isinstance(waited, Pause):
                time.sleep(waited.seconds)
            elif isinstance(waited, Next):
                outcome = next(waited.refs, None)
            elif isinstance(waited, Soon):
                outcome = waited.ref() if callable(waited.ref) else ray.get(waited.ref, timeout=waited.seconds)
            else:
                outcome = waited() if callable(waited) else ray.get(waited)
        except RayError as e:
            send = partial(steps.throw, e)
        else:
            send = partial(steps.send, outcome)
    return waited.value  # type: ignore[no-any-return]


async def drive_async(steps: Steps[T]) -> T:
    send: Callable[[], Any] = partial(next, steps)
    while not isinstance(waited := _resumed(send), _Result):
        try:
            outcome: Any = None
            if isinstance(waited, Pause):
                await asyncio.sleep(waited.seconds)
            elif isinstance(waited, Next):
                outcome = await anext(waited.refs, None)
            elif isinstance(waited, Soon):
                outcome = await _in_time(waited)
            else:
                outcome = await asyncio.to_thread(waited) if callable(waited) else await waited
        except RayError as e:
            send = partial(steps.throw, e)
        else:
            send = partial(steps.send, outcome)
    return waited.value  # type: ignore[no-any-return]


async def _in_time(waited: Soon) -> Any:
    try:
        async with asyncio.timeout(waited.seconds):
            return await (asyncio.to_thread(waited.ref) if callable(waited.ref) else waited.ref)
    except TimeoutError:
        raise GetTimeoutError("The actor did not answer in time.") from None
