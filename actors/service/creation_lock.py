"""The creation lock (single flight): one call creates a sandbox's actor, and no other call waits in the service.

A full cluster or a slow node can take half a minute. If all calls to such a sandbox waited in the service, no thread
would be left for the others. So they are turned away, and their callers retry. Callers turned away during a failed
attempt get its error.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actors.errors import ActorBeingMadeError, SandboxUnavailableError, TurnedAwayError

_REMEMBERED_S = 1.0
"""Time for which a failure is remembered: longer than the pauses between a caller's retries."""


@dataclass(slots=True)
class _Failure:
    error: SandboxUnavailableError
    until: float
    left: int
    """Number of callers that still get this error: those that were turned away."""

    def tell(self, now: float) -> None:
        """Raises the error, once for each of those callers."""
        self.left -= 1
        if self.left >= 0 and now <= self.until:
            raise type(self.error)(self.error.message, hint=self.error.hint, context=self.error.context)


class CreationLock:
    """A lock for each name. A call that does not get it is turned away at once. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        """The number of callers turned away, for each lock that is held."""
        self._failed: dict[str, _Failure] = {}

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """Holds the lock within the block.

        Raises:
            ActorBeingMadeError: another call holds it, and the caller should retry soon.
            SandboxUnavailableError: a call that held it before has failed, with this error.
        """
        with self._lock:
            if name in self._taken:
                self._taken[name] += 1
                raise ActorBeingMadeError
            if name in self._failed:
                self._failed[name].tell(self._clock())
            self._taken[name] = 0
        error: SandboxUnavailableError | None = None
        try:
            yield
        except TurnedAwayError:  # concerns this call only
            raise
        except SandboxUnavailableError as e:
            error = e
            raise
        finally:
            with self._lock:
                turned_away, now = self._taken.pop(name), self._clock()
                self._failed = {other: failed for other, failed in self._failed.items() if now <= failed.until}
                if error is not None and turned_away:
                    self._failed[name] = _Failure(error, now + _REMEMBERED_S, turned_away)
