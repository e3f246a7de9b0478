"""The pauses between a server's end and its next start: exponential backoff that forgets after a steady run."""

from __future__ import annotations

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
STEADY_S = 60.0
"""A run of this length shows that the server works, so its end has a new cause."""


class Backoff:
    """Doubles the pause from one early end to the next, up to `LONGEST_PAUSE_S`."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def after(self, ran_s: float) -> float:
        """The pause, in seconds, after a run that lasted `ran_s`."""
        if ran_s >= STEADY_S:
            self._next_s = FIRST_PAUSE_S
        pause_s, self._next_s = self._next_s, min(2 * self._next_s, LONGEST_PAUSE_S)
        return pause_s
