"""Object stores that a test can block at one call, or make unavailable."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

from storage.errors import StoreUnavailableError
from storage.store import ObjectStore
from tests.support.killing import Interrupted

_PATIENCE_S = 60.0


class HeldStore(Interrupted):
    """Wraps a store, and blocks the nth call of `operation` on a key with `part_of_key`, before its effect."""

    def __init__(self, inner: ObjectStore, operation: str, part_of_key: str, nth: int = 1) -> None:
        super().__init__(inner, operation, "before", nth, of=part_of_key, act=self._hold)
        self.reached, self.released = threading.Event(), threading.Event()

    def wait(self) -> None:
        """Waits until the call has arrived."""
        assert self.reached.wait(_PATIENCE_S), "the call never came"

    def _hold(self) -> None:
        self.reached.set()
        assert self.released.wait(_PATIENCE_S), "the call was never released"


class AwayStore:
    """Wraps a store, and makes it unavailable while `is_away`."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.is_away = False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            if self.is_away:
                raise StoreUnavailableError(name, bucket="away", key=str(args[0]) if args else None)
            return value(*args, **options)

        return call


class LateStore(Interrupted):
    """Wraps a store; the nth put of a key with `part_of_key` gets no answer, and takes effect only by `arrive`."""

    def __init__(self, inner: ObjectStore, part_of_key: str, nth: int) -> None:
        super().__init__(inner, "put", "before", nth, of=part_of_key, act=self._lose)
        self._put: Callable[[], object] | None = None

    def __getattr__(self, name: str) -> Any:
        method = super().__getattr__(name)
        if name != "put":
            return method

        def put(*args: Any, **options: Any) -> Any:
            try:
                return method(*args, **options)
            except StoreUnavailableError:
                self._put = partial(self._store.put, *args, **options)
                raise

        return put

    def _lose(self) -> None:
        raise StoreUnavailableError("put", bucket="late")

    def arrive(self) -> None:
        """Has the lost request take effect now."""
        assert self._put is not None, "no request was lost"
        self._put()
