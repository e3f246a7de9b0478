"""The read-write lock of a sandbox's tree: many share it for an instant, or one holds it while nothing may change.

Nobody gets it while the tree is not whole, that is, while a restored directory is not mounted: a read would miss most
of the files, and a write would disappear under the mount.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fasteners import ReaderWriterLock

from actors.errors import SandboxUnavailableError


class TreeLock:
    """A readers-writer lock over a tree that has to be whole. The one who is alone may enter again, either way."""

    def __init__(self, is_whole: Callable[[], bool]) -> None:
        self._is_whole = is_whole
        self._lock = ReaderWriterLock()

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Together with others. Raises SandboxUnavailableError; the next call takes the sandbox up anew."""
        with self._lock.read_lock():
            self._check()
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nobody else is in. Raises SandboxUnavailableError; the next call takes the sandbox up anew."""
        with self._lock.write_lock():
            self._check()
            yield

    @contextmanager
    def repairing(self) -> Iterator[None]:
        """Alone, whether the tree is whole or not: for those who make it whole, or put it down."""
        with self._lock.write_lock():
            yield

    def _check(self) -> None:
        if not self._is_whole():
            raise SandboxUnavailableError(
                "The sandbox was just put down; try again.", context={"outcome": "not_executed"}
            )
