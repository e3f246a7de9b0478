"""Counts the calls that a sandbox's actor serves, so that the actor leaves between calls and never during one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto

from actors.errors import ActorLeavingError, SandboxMovingError

_FIRST_CALL_S = 10.0
"""Minimum time that a new actor waits for its first call."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The use of an actor: whether it is serving a call, and the time since it served the last one."""

    is_serving: bool
    idle_s: float


class _Door(Enum):
    """The calls that an actor lets in."""

    OPEN = auto()
    """All."""
    CLOSED = auto()
    """Only those that continue an earlier call: the sandbox is about to be handed over."""
    LEAVING = auto()
    """None: the sandbox was not used, and the actor leaves."""
    HANDED_OVER = auto()
    """None: the sandbox was handed over, and the actor leaves."""


class Activity:
    """Counts the calls that are being served, and closes the actor to new ones. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._serving = 0
        self._used_at = time.monotonic() + _FIRST_CALL_S
        self._door = _Door.OPEN

    @contextlib.contextmanager
    def call(self, *, goes_on: bool = False) -> Iterator[None]:
        """Counts one call as being served within the block. `goes_on` marks a call that continues an earlier one.

        Raises SandboxMovingError if the actor is closed, ActorLeavingError if it is leaving; the client then retries.
        """
        with self._lock:
            if self._door is _Door.HANDED_OVER or (self._door is _Door.CLOSED and not goes_on):
                raise SandboxMovingError
            if self._door is _Door.LEAVING:
                raise ActorLeavingError
            self._serving += 1
        try:
            yield
        finally:
            with self._lock:
                self._serving -= 1
                self._used_at = time.monotonic()
                self._lock.notify_all()

    def touch(self) -> None:
        """Restarts the idle time because a call is on its way. Raises as `call` does."""
        with self.call():
            pass

    def idle_since(self, idle_s: float) -> float | None:
        """The time since which nothing has been served, if that is at least `idle_s` ago; otherwise None."""
        with self._lock:
            idle = not self._serving and time.monotonic() - self._used_at >= idle_s
            return self._used_at if idle else None

    def leave(self, idle_since: float) -> bool:
        """Refuses every call from now on and returns True; returns False if a call was served since `idle_since`."""
        with self._lock:
            if self._serving or self._used_at > idle_since:
                return False
            self._door = _Door.LEAVING
            return True

    def stay(self) -> None:
        """Serves calls again, after `leave` or `close`."""
        with self._lock:
            self._door = _Door.OPEN

    def usage(self) -> Usage:
        """The current usage of the actor."""
        with self._lock:
            return Usage(self._serving > 0, max(0.0, time.monotonic() - self._used_at))

    def close(self) -> None:
        """Refuses new calls until `stay`, because the sandbox is about to be handed over to another node."""
        with self._lock:
            self._door = _Door.CLOSED

    def end(self) -> None:
        """Refuses every call from now on, even while others are being served: the sandbox was handed over."""
        with self._lock:
            self._door = _Door.HANDED_OVER

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Waits until no call is being served. Returns False if one still is after `timeout_s`."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._serving, timeout_s)
