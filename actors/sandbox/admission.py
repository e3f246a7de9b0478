"""Admission control: bounds the calls that wait for one sandbox.

A sandbox runs its backups and restores one after the other, and a limited number of commands at once. Without a bound,
a client that repeats its calls in a loop could queue work for hours and fill the memory. Ray's own `max_pending_calls`
counts only the calls of the process that made the actor. So a caller first asks for admission. The control lane
answers at once, even while the other lanes are busy. No answer means that the actor is being restarted.
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

THREADS: Mapping[str, int] = {"mailbox": 1, "exec": 32, "input": 32, "files": 8, "reads": 16}
"""Number of calls that each lane serves at once. Reads have a lane of their own because they wait for their readers.

Each running command has at most one call in `input`, which waits for the command to read.
"""
WAITING_LIMIT = 64
"""Maximum number of calls that wait in each lane."""
_ON_ITS_WAY_S = 30.0
"""Time limit for an admitted call to arrive. If its lane is idle after that, the caller is lost."""
_IDLE_S = 1.0
"""Time for which a lane must have had a free thread to be idle: then no call waits in it."""
_LET_IN_S = 3600.0
"""Time after which the ticket of a lost caller expires if its lane is never idle."""


@dataclass(slots=True)
class _Lane:
    threads: int
    waiting: deque[float] = field(default_factory=deque)
    """The tickets: for each admitted call that has not begun, the time of its admission. Oldest first."""
    serving: int = 0
    full_at: float = -math.inf
    """The last time at which the lane had no free thread."""
    idle_at: float = -math.inf
    """The last time at which the lane was seen idle."""

    def look(self, now: float) -> None:
        """Notes whether the lane is full or idle now."""
        if self.serving >= self.threads:
            self.full_at = now
        elif now - self.full_at > _IDLE_S:
            self.idle_at = now

    def forget_lost(self, now: float) -> None:
        """Drops the tickets of lost callers."""
        while self.waiting and (now - self.waiting[0] > _LET_IN_S or self.idle_at - self.waiting[0] > _ON_ITS_WAY_S):
            self.waiting.popleft()

    def withdraw(self) -> None:
        """Drops the newest ticket; a lost caller's oldest one then expires."""
        if self.waiting:
            self.waiting.pop()


class Admission:
    """Counts, for each lane, the admitted calls that have not begun yet. Thread-safe."""

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
        """Admits one call to a lane; returns the number of calls that waited already. Raises TooManyCallsError."""
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
        """Takes back one admission to a lane."""
        with self._lock:
            self._lanes[lane].withdraw()

    @contextmanager
    def serving(self, lane: str, *, was_admitted: bool = True) -> Iterator[None]:
        """Serves one call of a lane within the block; drops its ticket if it was admitted (`was_admitted`)."""
        found = self._lanes[lane]
        with self._lock:
            if was_admitted:
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
        """Number of calls that wait in each lane."""
        with self._lock:
            return {name: len(lane.waiting) for name, lane in self._lanes.items()}
