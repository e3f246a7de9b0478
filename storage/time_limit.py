"""The time limit of a caller that cannot wait long for the bucket.

It bounds the requests that the caller's thread makes, and its wait for the requests of others.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

from storage.errors import StoreUnavailableError

MOMENTS_S = 3.0
"""Upper bound for the answer of a healthy bucket."""
_ends_at: ContextVar[float | None] = ContextVar("holdfast_bucket_time_limit", default=None)


@contextmanager
def within_moments() -> Iterator[None]:
    """Limits the block's requests to `MOMENTS_S` in all, and each answer to as long once it was asked for.

    A request that gets no answer in time raises StoreUnavailableError, like any other without an answer.
    """
    token = _ends_at.set(time.monotonic() + MOMENTS_S)
    try:
        yield
    finally:
        _ends_at.reset(token)


def left_s() -> float | None:
    """The time left in the block of `within_moments`, at least 0; None outside of one."""
    ends_at = _ends_at.get()
    return None if ends_at is None else max(0.0, ends_at - time.monotonic())


class Lock(Protocol):
    """A lock of `threading`."""

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool: ...

    def release(self) -> None: ...


@contextmanager
def held(lock: Lock, operation: str, *, bucket: str) -> Iterator[None]:
    """Holds a lock under which others make requests. Raises StoreUnavailableError if they take too long."""
    left = left_s()
    if not lock.acquire(timeout=-1 if left is None else left):
        raise StoreUnavailableError(operation, bucket=bucket, detail="no answer to an earlier request")
    try:
        yield
    finally:
        lock.release()
