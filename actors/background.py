"""A background thread that works when it is asked to, and ends when nothing is left to do."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


class Background:
    """Work that nobody waits for, done in a thread of its own. Its calls never overlap. Thread-safe.

    An exception of the work ends the thread, with a traceback; the work is done again when it is next asked for.
    """

    def __init__(self, name: str, work: Callable[[], float | None]) -> None:
        """`name` is the thread's. `work` returns the time after which it has to be done again, in seconds, or None."""
        self._name = name
        self._work = work
        self._changed = threading.Condition()
        self._due: float | None = None
        self._is_running = False

    def ask(self, *, after_s: float = 0.0) -> None:
        """Has the work done after this time, or earlier if that was asked for. Returns at once."""
        due = time.monotonic() + after_s
        with self._changed:
            if self._due is None or due < self._due:
                self._due = due
                self._changed.notify_all()
            if not self._is_running:
                threading.Thread(target=self._run, name=self._name, daemon=True).start()
                self._is_running = True

    def _run(self) -> None:
        while self._is_due():
            try:
                again_s = self._work()
            except BaseException:
                with self._changed:
                    self._is_running = False  # the next `ask` starts another thread
                raise
            if again_s is not None:
                self.ask(after_s=again_s)

    def _is_due(self) -> bool:
        """Waits until the work is due. Returns False, and ends the thread, if it is not asked for."""
        with self._changed:
            while self._due is not None:
                wait_s = self._due - time.monotonic()
                if wait_s <= 0:
                    self._due = None
                    return True
                self._changed.wait(wait_s)
            self._is_running = False
            return False
