"""Whether a sandbox's actor serves anybody, so that it leaves between calls and never under one."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from actors.errors import LEAVING, SandboxUnavailableError

_FIRST_CALL_S = 10.0
"""How long a new actor waits at least for the call it was made for."""


class Activity:
    """Counts the calls that are being served. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._serving = 0
        self._used_at = time.monotonic() + _FIRST_CALL_S
        self._leaving = False

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call is served within the block. Raises SandboxUnavailableError, for the caller's side to try again."""
        with self._lock:
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
            self._leaving = False
