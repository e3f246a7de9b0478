"""How many backups and restores may wait for one sandbox.

A sandbox does them one after the other; without a bound, a client that retries in a loop would queue work
for hours. Ray's own `max_pending_calls` counts only the calls of the process that made the actor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gateway.errors import TooManyRequestsError

WAITING_LIMIT = 64


class Admission:
    """Counts the waiting calls of each sandbox, in this process."""

    def __init__(self, *, limit: int = WAITING_LIMIT) -> None:
        self._limit = limit
        self._waiting: Counter[tuple[str, str]] = Counter()

    @contextmanager
    def place(self, tenant: str, sandbox_id: str) -> Iterator[None]:
        """Holds a place in the sandbox's queue. Raises TooManyRequestsError."""
        key = (tenant, sandbox_id)
        if self._waiting[key] >= self._limit:
            raise TooManyRequestsError(
                "Too many backups and restores wait for this sandbox.", context={"limit": self._limit}
            )
        self._waiting[key] += 1
        try:
            yield
        finally:
            self._waiting[key] -= 1
            if not self._waiting[key]:
                del self._waiting[key]
