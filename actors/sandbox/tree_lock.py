"""The tree lock of a sandbox: a readers-writer lock, shared for an instant, or exclusive while nothing may change.

The lock is refused while the tree is not whole, that is, while a restored directory is not mounted: a read would miss
most of the files, and a write would disappear under the mount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fasteners import ReaderWriterLock

from actors.errors import SandboxUnavailableError


class TreeLock:
    """A readers-writer lock over a tree that has to be whole. Its exclusive holder may take it again, in any way.

    `shared` and `alone` raise SandboxUnavailableError if the tree is not whole; the next call wakes the sandbox.
    """

    def __init__(self, is_whole: Callable[[], bool]) -> None:
        self._is_whole = is_whole
        self._lock = ReaderWriterLock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Holds the lock shared within the block."""
        with self._lock.read_lock():
            self._check()
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Holds the lock exclusively within the block."""
        with self._lock.write_lock():
            self._check()
            yield

    @contextmanager
    def repairing(self) -> Iterator[None]:
        """Holds the lock exclusively within the block, even if the tree is not whole: to mount or unmount it."""
        with self._lock.write_lock():
            yield

    def _check(self) -> None:
        if not self._is_whole():
            raise SandboxUnavailableError(
                "The sandbox was just put down; try again.", context={"outcome": "not_executed"}
            )
