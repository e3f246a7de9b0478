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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from actors.errors import TooManyCallsError

THREADS: Mapping[str, int] = {"mailbox": 1, "exec": 32, "files": 8, "reads": 16}
"""How many calls each lane serves at once. Reads wait for their readers, so nothing else may have to wait for them."""
WAITING_LIMIT = 64
_ON_ITS_WAY_S = 30.0
"""How long a call that was let in may take to come. If a thread idles after that, its caller has given up."""
_IDLE_S = 1.0
"""How long a thread has to be free to be idle: then nothing waits for it."""
_LET_IN_S = 3600.0
"""How long a caller that gave up is counted while no thread idles."""


class Admission:
    """Counts the calls that were let in and have not begun yet, by lane. Thread-safe."""

    def __init__(
        self,
        threads: Mapping[str, int] = THREADS,
        *,
        limit: int = WAITING_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._threads = threads
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[float]] = {lane: deque() for lane in threads}
        self._serving = dict.fromkeys(threads, 0)
        self._full_at = dict.fromkeys(threads, -_LET_IN_S)
        """When a lane last had no thread free."""
        self._idle_at = dict.fromkeys(threads, -_LET_IN_S)
        """When a lane last was seen to have one that idles."""

    def let_in(self, lane: str) -> int:
        """One more call of this lane is on its way; returns how many waited already. Raises TooManyCallsError."""
        with self._lock:
            self._look(lane)
            waiting, now = self._waiting[lane], self._clock()
            while waiting and (now - waiting[0] > _LET_IN_S or self._idle_at[lane] - waiting[0] > _ON_ITS_WAY_S):
                waiting.popleft()
            if len(waiting) >= self._limit:
                raise TooManyCallsError(
                    "Too many calls wait for this sandbox.",
                    hint="Send fewer at once, or try again when some have ended.",
                    context={"limit": self._limit, "outcome": "not_executed"},
                )
            waiting.append(now)
            return len(waiting) - 1

    def _look(self, lane: str) -> None:
        now = self._clock()
        if self._serving[lane] >= self._threads[lane]:
            self._full_at[lane] = now
        elif now - self._full_at[lane] > _IDLE_S:
            self._idle_at[lane] = now

    def withdraw(self, lane: str) -> None:
        """A call of this lane does not wait any more. The youngest makes room, so that one that never comes ages."""
        with self._lock:
            if self._waiting[lane]:
                self._waiting[lane].pop()

    @contextmanager
    def serving(self, lane: str, *, was_let_in: bool = True) -> Iterator[None]:
        """A call of this lane is served within the block, and does not wait any more if it had to be let in."""
        if was_let_in:
            self.withdraw(lane)
        with self._lock:
            self._look(lane)
            self._serving[lane] += 1
        try:
            yield
        finally:
            with self._lock:
                self._look(lane)
                self._serving[lane] -= 1

    def waiting(self) -> dict[str, int]:
        """How many wait in each lane."""
        with self._lock:
            return {lane: len(waiting) for lane, waiting in self._waiting.items()}
