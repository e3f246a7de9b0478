"""How many calls may wait for one sandbox.

A sandbox does its backups and restores one after the other, and only so many commands at once; without a bound, a
client that repeats its calls in a loop would queue work for hours, and fill the memory. Ray's own `max_pending_calls`
counts only the calls of the process that made the actor. So a caller first asks to be let in, in the control lane,
which answers at once; that also tells a sandbox that works from one that is just being restarted.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from actors.errors import TooManyCallsError

WAITING_LIMITS: Mapping[str, int] = {"mailbox": 64, "exec": 64, "files": 64}
_LET_IN_S = 3600.0
"""How long one that was let in may take to begin; a caller that died in between is forgotten then."""


class Admission:
    """Counts the calls that were let in and have not begun yet, by lane. Thread-safe."""

    def __init__(
        self, limits: Mapping[str, int] = WAITING_LIMITS, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[float]] = {lane: deque() for lane in limits}

    def let_in(self, lane: str) -> int:
        """One more call of this lane is on its way; returns how many waited already. Raises TooManyCallsError."""
        with self._lock:
            waiting, now = self._waiting[lane], self._clock()
            while waiting and now - waiting[0] > _LET_IN_S:
                waiting.popleft()
            if len(waiting) >= self._limits[lane]:
                raise TooManyCallsError(
                    "Too many calls wait for this sandbox.",
                    hint="Send fewer at once, or try again when some have ended.",
                    context={"limit": self._limits[lane], "outcome": "not_executed"},
                )
            waiting.append(now)
            return len(waiting) - 1

    def begin(self, lane: str) -> None:
        """A call of this lane does not wait any more. The youngest makes room, so that one that never comes ages."""
        with self._lock:
            if self._waiting[lane]:
                self._waiting[lane].pop()

    def waiting(self) -> dict[str, int]:
        """How many wait in each lane."""
        with self._lock:
            return {lane: len(waiting) for lane, waiting in self._waiting.items()}
