"""Processes that a test runs one request to the store at a time, in any order, and ends or disturbs between any two."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Literal

from storage.errors import StoreUnavailableError
from storage.store import ObjectStore

Fate = Literal["done", "refused", "unheard", "late", "killed before", "killed after"]
"""What becomes of a request: it is done; it has no effect, and fails; it has one, and fails; it fails, and has its
effect later; the process dies before it, or right after it."""

_PATIENCE_S = 30.0
_REQUESTS = ("get", "put", "head", "size_of", "copy", "delete", "list", "list_uploads", "abort_upload")


class Killed(BaseException):
    """The process is dead: it does nothing any more, not even clean up."""


class Process:
    """A function that runs in a thread of its own, and waits before each request until the test lets it go on."""

    def __init__(self, name: str, store: ObjectStore, work: Callable[[ObjectStore], object]) -> None:
        self.name = name
        self.failure: BaseException | None = None
        self.result: object = None
        self.is_over = False
        self.late: list[Callable[[], object]] = []
        """Requests that got no answer, and may have their effect yet."""
        self.at: str = ""
        """The request that it waits to make."""
        self._work = work
        self._dead = False
        self._fate: Fate = "done"
        self._going, self._waiting = threading.Semaphore(0), threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run, args=(_Gate(store, self),), daemon=True)
        self.thread.start()
        self._await()

    def step(self, fate: Fate = "done") -> None:
        """Lets it make its next request, and waits until it is about to make another one, or is over."""
        assert not self.is_over
        self._fate = fate
        self._going.release()
        self._await()

    def _await(self) -> None:
        assert self._waiting.acquire(timeout=_PATIENCE_S), f"{self.name} makes no request, and does not end"

    def _run(self, gate: _Gate) -> None:
        try:
            self.result = self._work(gate)
        except Killed:
            pass
        except BaseException as e:
            self.failure = e
        self.is_over = True
        self._waiting.release()

    def request(self, name: str, call: Callable[[], object], key: str) -> object:
        """One request of the process: waits, then has the fate that the test has chosen."""
        if self._dead:
            raise Killed
        self.at = f"{name} {key}"
        self._waiting.release()
        self._going.acquire()
        fate = self._fate
        if fate in ("killed before", "killed after"):
            self._dead = True
        result = call() if fate in ("done", "unheard", "killed after") else None
        if fate == "late":
            self.late.append(call)
        if self._dead:
            raise Killed
        if fate != "done":
            raise StoreUnavailableError(name, bucket="stepped", key=key)
        return result


class _Gate:
    """The store as the process sees it."""

    def __init__(self, store: ObjectStore, process: Process) -> None:
        self._store, self._process = store, process

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        if name not in _REQUESTS:
            return method
        return lambda *args, **options: self._process.request(name, lambda: method(*args, **options), args[0])
