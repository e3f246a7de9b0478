"""Turns at making a sandbox's actor: one call at a time, and nobody waits for it in the service.

A cluster that is full, or a node that is slow, can take a call half a minute. If all the calls to one such sandbox
waited in the service, there would be no thread left for the others. So they are sent back, and their callers' side asks
again; and what the one has met is what those have met who were sent back meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from actors.errors import LEAVING, SandboxUnavailableError

_REMEMBERED_S = 1.0
"""How long a failure is told to others: longer than the pauses of those who ask again."""


@dataclass(slots=True)
class _Failure:
    error: SandboxUnavailableError
    until: float
    left: int
    """How often it is still to be told: as often as others were sent back."""

    def tell(self, now: float) -> None:
        """Raises it, so many times."""
        self.left -= 1
        if self.left >= 0 and now <= self.until:
            raise SandboxUnavailableError(self.error.message, hint=self.error.hint, context=self.error.context)


class CreationLock:
    """Turns by name. Thread-safe."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._taken: dict[str, int] = {}
        """The turns, and how often others were sent back during each."""
        self._failed: dict[str, _Failure] = {}

    @contextmanager
    def turn(self, name: str) -> Iterator[None]:
        """Within the block, it is the turn of this call.

        Raises:
            SandboxUnavailableError: it is another's, and the caller's side is to ask again in a moment; or what that
                one has met.
        """
        with self._lock:
            if name in self._taken:
                self._taken[name] += 1
                raise SandboxUnavailableError(
                    "The sandbox's actor is being made.",
                    hint="Try again.",
                    context={"outcome": "not_executed", LEAVING: True},
                )
            if name in self._failed:
                self._failed[name].tell(self._clock())
            self._taken[name] = 0
        error: SandboxUnavailableError | None = None
        try:
            yield
        except SandboxUnavailableError as e:
            if not e.context.get(LEAVING):
                error = e
            raise
        finally:
            with self._lock:
                sent_back, now = self._taken.pop(name), self._clock()
                self._failed = {other: failed for other, failed in self._failed.items() if now <= failed.until}
                if error is not None and sent_back:
                    self._failed[name] = _Failure(error, now + _REMEMBERED_S, sent_back)
