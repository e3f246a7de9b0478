"""Object stores that a test can hold at one call, or take away as a whole."""

from __future__ import annotations

import threading
from typing import Any

from storage.errors import StoreUnavailableError
from storage.store import ObjectStore
from tests.support.killing import Interrupted

_PATIENCE_S = 60.0


class HeldStore(Interrupted):
    """Another store whose nth call of `operation` on a key with `part_of_key` waits, before its effect."""

    def __init__(self, inner: ObjectStore, operation: str, part_of_key: str, nth: int = 1) -> None:
        super().__init__(inner, operation, "before", nth, of=part_of_key, act=self._hold)
        self.reached, self.released = threading.Event(), threading.Event()

    def wait(self) -> None:
        """Until the call has come."""
        assert self.reached.wait(_PATIENCE_S), "the call never came"

    def _hold(self) -> None:
        self.reached.set()
        assert self.released.wait(_PATIENCE_S), "the call was never released"


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
                raise StoreUnavailableError(name, bucket="away", key=str(args[0]) if args else None)
            return value(*args, **options)

        return call
