"""Admission control: bounds the calls that wait for one sandbox.

A sandbox does its backups and restores one after the other, and only so many commands at once; without a bound, a
client that repeats its calls in a loop would queue work for hours, and fill the memory. Ray's own `max_pending_calls`
counts only the calls of the process that made the actor. So a caller first asks to be let in, in the control lane,
which answers at once; that also tells a sandbox that works from one that is just being restarted.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

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


@dataclass(slots=True)
class _Lane:
    threads: int
    waiting: deque[float] = field(default_factory=deque)
    """When each call was let in that has not begun."""
    serving: int = 0
    full_at: float = -math.inf
    """When it last had no thread free."""
    idle_at: float = -math.inf
    """When it last was seen to have one that idles."""

    def look(self, now: float) -> None:
        """Takes note of whether a thread is free."""
        if self.serving >= self.threads:
            self.full_at = now
        elif now - self.full_at > _IDLE_S:
            self.idle_at = now

    def forget_lost(self, now: float) -> None:
        """Forgets the calls that do not come any more."""
        while self.waiting and (now - self.waiting[0] > _LET_IN_S or self.idle_at - self.waiting[0] > _ON_ITS_WAY_S):
            self.waiting.popleft()

    def withdraw(self) -> None:
        """The youngest makes room, so that one that never comes ages."""
        if self.waiting:
            self.waiting.pop()


class Admission:
    """Counts the calls that were let in and have not begun yet, by lane. Thread-safe."""

    def __init__(
        self,
        threads: Mapping[str, int] = THREADS,
        *,
        limit: int = WAITING_LIMIT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._lanes = {name: _Lane(count) for name, count in threads.items()}

    def admit(self, lane: str) -> int:
        """One more call of this lane is on its way; returns how many waited already. Raises TooManyCallsError."""
        with self._lock:
            found, now = self._lanes[lane], self._clock()
            found.look(now)
            found.forget_lost(now)
            if len(found.waiting) >= self._limit:
                raise TooManyCallsError(
                    "Too many calls wait for this sandbox.",
                    hint="Send fewer at once, or try again when some have ended.",
                    context={"limit": self._limit, "outcome": "not_executed"},
                )
            found.waiting.append(now)
            return len(found.waiting) - 1

    def withdraw(self, lane: str) -> None:
        """A call of this lane does not wait any more."""
        with self._lock:
            self._lanes[lane].withdraw()

    @contextmanager
    def serving(self, lane: str, *, was_let_in: bool = True) -> Iterator[None]:
        """A call of this lane is served within the block, and does not wait any more if it had to be let in."""
        found = self._lanes[lane]
        with self._lock:
            if was_let_in:
                found.withdraw()
            found.look(self._clock())
            found.serving += 1
        try:
            yield
        finally:
            with self._lock:
                found.look(self._clock())
                found.serving -= 1

    def waiting(self) -> dict[str, int]:
        """How many wait in each lane."""
        with self._lock:
            return {name: len(lane.waiting) for name, lane in self._lanes.items()}
