"""Ends a process at an instant that a test has chosen, or runs an action there."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from actors.sandbox import steps
from actors.sandbox.steps import Step
from storage.store import ObjectStore

STEP_LOG = logging.getLogger(steps.__name__)


def die() -> None:
    """Kills this process with SIGKILL, so that nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Observer(logging.Handler):
    """Calls `seen` with each step that this process takes, and "before" or "after"."""

    def __init__(self, seen: Callable[[Step, str], None]) -> None:
        super().__init__(logging.DEBUG)
        self._seen = seen

    def emit(self, record: logging.LogRecord) -> None:
        moment, step = record.args  # type: ignore[misc]
        self._seen(step, moment)  # type: ignore[arg-type]


def observe_steps(seen: Callable[[Step, str], None]) -> None:
    """Calls `seen` with "before" and "after" at each later step of this process, as `actors.sandbox.steps` logs it."""
    STEP_LOG.addHandler(_Observer(seen))
    STEP_LOG.setLevel(logging.DEBUG)


def act_at(name: str, when: str, act: Callable[[], None] = die) -> None:
    """Runs `act` once, "before" or "after" this process takes a step of `actors.sandbox.steps`."""
    done: list[bool] = []

    def seen(step: Step, moment: str) -> None:
        if (step.value, moment) == (name, when) and not done:
            done.append(True)
            act()

    observe_steps(seen)


def _called(call: Callable[[], Any], act: Callable[[], None], when: str | None) -> Any:
    """Makes a call; runs `act` before it, or after it took effect, if `when` says so."""
    if when == "before":
        act()
    result = call()
    if when == "after":
        act()
    return result


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
            return _called(partial(method, *args, **options), self._act, self._when if hit else None)

        return call


_REQUESTS = frozenset(
    {
        "get", "get_range", "put", "head", "size_of", "copy", "delete", "list", "presign_get", "presign_put",
        "presign_part", "create_upload", "complete_upload", "abort_upload", "list_uploads",
    }
)  # fmt: skip


class Counted:
    """Wraps a store, and counts its requests from `begin` on. Runs `act` at one, before it or after it took effect.

    `names` are the requests so far. A presigned URL counts as a request when it is made.
    """

    def __init__(self, store: ObjectStore, act: Callable[[], None] = die) -> None:
        self.names: list[str] = []
        self._store, self._act = store, act
        self._nth = 0
        self._when: str = "before"
        self._is_counting = False
        self._lock = threading.Lock()

    def begin(self, nth: int = 0, when: Literal["before", "after"] = "before") -> None:
        """Counts anew; `act` is run at the nth request, or never if that is 0."""
        with self._lock:
            self.names, self._nth, self._when, self._is_counting = [], nth, when, True

    def end(self) -> bool:
        """Ends the counting. Returns False if there were fewer requests than `nth`."""
        self._is_counting = False
        return len(self.names) >= self._nth

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in _REQUESTS:
            return method

        def call(*args: Any, **options: Any) -> Any:
            with self._lock:
                hit = False
                if self._is_counting:
                    self.names.append(f"{name} {args[0]}")
                    hit = len(self.names) == self._nth
            return _called(partial(method, *args, **options), self._act, self._when if hit else None)

        return call
