"""Ends a process at an instant that a test has chosen, or runs an action there."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from typing import Any

from actors.sandbox import steps
from storage.store import ObjectStore


def die() -> None:
    """Kills this process with SIGKILL, so that nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


def act_at(name: str, when: str, act: Callable[[], None] = die) -> None:
    """Runs `act` once, "before" or "after" this process takes a step of `actors.sandbox.steps`."""
    done: list[bool] = []

    def watch(step: steps.Step, moment: str) -> None:
        if (step.value, moment) == (name, when) and not done:
            done.append(True)
            act()

    steps.watch(watch)


class Interrupted:
    """Wraps a store, and runs `act` at the nth call of one method, "before" or "after" the call takes effect.

    Counts only calls whose first argument, the key, contains `of`.
    """

    def __init__(
        self,
        store: ObjectStore,
        method: str,
        when: str,
        nth: int = 1,
        *,
        of: str = "",
        act: Callable[[], None] = die,
    ) -> None:
        self._store, self._method, self._when, self._nth, self._of, self._act = store, method, when, nth, of, act
        self._calls = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name != self._method:
            return method

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                self._calls += self._of in args[0]
                hit = self._of in args[0] and self._calls == self._nth
            if hit and self._when == "before":
                self._act()
            result = method(*args, **options)
            if hit and self._when == "after":
                self._act()
            return result

        return call
