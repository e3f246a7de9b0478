"""The work that brings the bucket up to date in the background: claims the epoch, and writes what was missed."""

from __future__ import annotations

from collections.abc import Callable

from actors.background import Background
from actors.errors import SupersededError
from actors.logs import log

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 1.0, 60.0


class CatchingUp:
    """Writes while the bucket lacks something, with longer and longer pauses, until it has everything."""

    def __init__(self, sandbox: str, lacks: Callable[[], bool], write: Callable[[], None]) -> None:
        """`lacks` tells whether the bucket lacks something; `write` claims the epoch and writes it."""
        self._sandbox = sandbox
        self._lacks = lacks
        self._write = write
        self._background = Background("state", self.step)
        self._pause_s = _FIRST_PAUSE_S

    def begin(self, *, after_s: float = 0.0) -> None:
        """Begins after this time, unless it is at work already. Returns at once."""
        self._background.ask(after_s=after_s)

    def step(self) -> float | None:
        """Writes once. Returns the pause before the next try; None if the bucket lacks nothing more."""
        if not self._lacks():
            return None
        try:
            self._write()
        except SupersededError:  # another actor has it, or it was closed meanwhile
            log.warning("epoch_not_taken", sandbox=self._sandbox, error="superseded")
            return None
        except Exception as e:  # the bucket is down, or answers nonsense
            log.warning("bucket_not_up_to_date", sandbox=self._sandbox, error=type(e).__name__)
            pause_s, self._pause_s = self._pause_s, min(2 * self._pause_s, _LONGEST_PAUSE_S)
            return pause_s
        self._pause_s = _FIRST_PAUSE_S
        return None
