"""An object store with injected failures, before or after the effect of a call."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from storage.errors import StoreUnavailableError
from storage.store import ObjectStore


@dataclass(slots=True)
class FaultyStore:
    """Wraps a store, and fails once per `fail("put", "meta", after=True)`, before or after the effect of the call."""

    inner: ObjectStore
    faults: list[tuple[str, str, bool]] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)

    def fail(self, operation: str, part_of_key: str, *, after: bool) -> None:
        self.faults.append((operation, part_of_key, after))

    def __getattr__(self, name: str) -> Any:
        method = getattr(self.inner, name)
        if name not in ("get", "get_range", "put", "head", "size_of", "copy", "delete", "list"):
            return method

        def call(key: str, *args: Any, **kwargs: Any) -> Any:
            self.calls.append(f"{name} {key}")
            fault = next((f for f in self.faults if f[0] == name and f[1] in key), None)
            if fault is not None:
                self.faults.remove(fault)
                if fault[2]:
                    method(key, *args, **kwargs)
                raise StoreUnavailableError(name, bucket="b", key=key)
            return method(key, *args, **kwargs)

        return call
