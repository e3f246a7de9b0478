"""Object stores that a test can hold at one call, or take away as a whole."""

from __future__ import annotations

import threading
from typing import Any

from storage.errors import StoreUnavailableError
from storage.store import ObjectStore

_PATIENCE_S = 60.0


class HeldStore:
    """Another store whose first call of `operation` on a key with `part_of_key` waits, before its effect."""

    def __init__(self, inner: ObjectStore, operation: str, part_of_key: str) -> None:
        self._inner, self._operation, self._part = inner, operation, part_of_key
        self.reached, self.released = threading.Event(), threading.Event()

    def wait(self) -> None:
        """Until the call has come."""
        assert self.reached.wait(_PATIENCE_S), "the call never came"

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if name != self._operation:
            return method

        def call(key: str, *args: Any, **options: Any) -> Any:
            if self._part in key and not self.reached.is_set():
                self.reached.set()
                assert self.released.wait(_PATIENCE_S), "the call was never released"
            return method(key, *args, **options)

        return call


class AwayStore:
    """Another store that can be away."""

    def __init__(self, inner: ObjectStore) -> None:
        self._inner = inner
        self.is_away = False

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return value

        def call(*args: Any, **options: Any) -> Any:
            if self.is_away:
                raise StoreUnavailableError(name, bucket="away")
            return value(*args, **options)

        return call
