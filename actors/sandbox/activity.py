"""The calls that an actor serves, counted. It leaves between calls, and never during one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from actors.errors import DRAINING, LEAVING, SandboxUnavailableError

_FIRST_CALL_S = 10.0
"""How long a new actor waits at least for the call it was made for."""


@dataclass(frozen=True, slots=True)
class Usage:
    """The use of an actor: whether it serves a call, and how long ago it served the last one."""

    is_serving: bool
    idle_s: float


def refused_by_drain() -> SandboxUnavailableError:
    """For a call to a sandbox that is being handed over: the caller's side waits, and sends it to the other node."""
    return SandboxUnavailableError(
        "The sandbox's node is being drained, and the sandbox moves to another one.",
        hint="Try again.",
        context={"outcome": "not_executed", "reason": DRAINING, LEAVING: True},
    )


class Activity:
    """Counts the calls that are being served. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Condition()
        self._serving = 0
        self._used_at = time.monotonic() + _FIRST_CALL_S
        self._leaving = False
        self._is_closed = False
        """Whether only those calls are served that go on with what earlier ones have begun."""

    @contextlib.contextmanager
    def call(self, *, goes_on: bool = False) -> Iterator[None]:
        """One call is served within the block; `goes_on` says that it is a further part of an earlier one.

        Raises SandboxUnavailableError, for the caller's side to try again.
        """
        with self._lock:
            if self._is_closed and not (goes_on and not self._leaving):
                raise refused_by_drain()
            if self._leaving:
                raise SandboxUnavailableError(
                    "The sandbox's actor is leaving.", context={"outcome": "not_executed", LEAVING: True}
                )
            self._serving += 1
        try:
            yield
        finally:
            with self._lock:
                self._serving -= 1
                self._used_at = time.monotonic()
                self._lock.notify_all()

    def touch(self) -> None:
        """A call is on its way. Raises SandboxUnavailableError, as a call would."""
        with self.call():
            pass

    def idle_since(self, idle_s: float) -> float | None:
        """Since when nothing has been served, if that is `idle_s` ago; otherwise None."""
        with self._lock:
            idle = not self._serving and time.monotonic() - self._used_at >= idle_s
            return self._used_at if idle else None

    def leave(self, idle_since: float) -> bool:
        """From now on serves nothing, if nothing was served since `idle_since`; otherwise gives False."""
        with self._lock:
            self._leaving = not self._serving and self._used_at <= idle_since
            return self._leaving

    def stay(self) -> None:
        """Serves again."""
        with self._lock:
            self._leaving = self._is_closed = False

    def usage(self) -> Usage:
        """Whether a call is being served, and for how long none was."""
        with self._lock:
            return Usage(self._serving > 0, max(0.0, time.monotonic() - self._used_at))

    def close(self) -> None:
        """From now on begins nothing new, until `stay`: the sandbox is about to be handed over to another node."""
        with self._lock:
            self._is_closed = True

    def end(self) -> None:
        """From now on serves nothing at all, whatever is being served."""
        with self._lock:
            self._leaving = True

    def wait_until_idle(self, timeout_s: float) -> bool:
        """Whether nothing is being served any more, by the end of `timeout_s` at the latest."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._serving, timeout_s)
