"""The operation that runs in the mailbox: its progress and its cancellation, and a list of those that have ended."""

from __future__ import annotations

import threading
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Literal

from actors.errors import HoldfastError, OperationCancelledError
from actors.models import Operation, OperationKind, OperationRecord, Phase

_KEPT = 100


class Progress:
    """The progress of one running operation, and the request to cancel it. Thread-safe."""

    def __init__(self, kind: OperationKind, directory: str | None, clock: Callable[[], datetime]) -> None:
        self.id = uuid.uuid4().hex
        self.kind = kind
        self.directory = directory
        self.started_at = clock()
        self.backup_id: str | None = None
        self.cancelled = threading.Event()
        self._lock = threading.Lock()
        self._phase = Phase.WAITING
        self._done = 0
        self._total = 0
        self._unit: Literal["files", "bytes"] = "files"
        self._final = False

    def enter(self, phase: Phase, *, total: int = 0, unit: Literal["files", "bytes"] = "files") -> None:
        """Begins a phase.

        Raises:
            OperationCancelledError: the operation was cancelled before its point of no return.
        """
        with self._lock:
            self._check()
            self._phase, self._done, self._total, self._unit = phase, 0, total, unit

    def check(self) -> None:
        """Raises OperationCancelledError if the operation was cancelled before its point of no return."""
        with self._lock:
            self._check()

    def _check(self) -> None:
        if self.cancelled.is_set() and not self._final:
            raise OperationCancelledError("The operation was cancelled.", context={"operation": self.id})

    def point_of_no_return(self, phase: Phase) -> None:
        """Begins a phase from which on the operation cannot be cancelled. Raises OperationCancelledError."""
        with self._lock:
            self._check()
            self._phase, self._done, self._total, self._unit = phase, 0, 0, "files"
            self._final = True

    def advance(self, amount: int) -> None:
        """Adds `amount` to what is done. It is negative when a piece has to be done again."""
        with self._lock:
            self._done = max(0, self._done + amount)

    def set_done(self, done: int) -> None:
        """Sets what is done."""
        with self._lock:
            self._done = max(0, done)

    def cancel(self) -> bool:
        """Asks the operation to stop. Returns False if it is past its point of no return."""
        with self._lock:
            if self._final:
                return False
            self.cancelled.set()
            return True

    def snapshot(self) -> Operation:
        """The current progress."""
        with self._lock:
            return Operation(
                id=self.id,
                kind=self.kind,
                dir=self.directory,
                phase=self._phase,
                done=self._done,
                total=self._total,
                unit=self._unit,
                started_at=self.started_at,
            )


class Operations:
    """The running operation, and the last hundred that have ended."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._clock = clock
        self._running: Progress | None = None
        self._ended: deque[OperationRecord] = deque(maxlen=_KEPT)

    @contextmanager
    def run(self, kind: OperationKind, directory: str | None = None) -> Iterator[Progress]:
        """Makes a new operation the running one within the block, and records how it ended."""
        progress = Progress(kind, directory, self._clock)
        self._running = progress
        outcome = "ok"
        try:
            yield progress
        except HoldfastError as e:
            outcome = e.code
            raise
        except BaseException:
            outcome = "INTERNAL"
            raise
        finally:
            self._ended.append(
                OperationRecord(
                    id=progress.id,
                    kind=kind,
                    dir=directory,
                    backup_id=progress.backup_id,
                    started_at=progress.started_at,
                    ended_at=self._clock(),
                    outcome=outcome,
                )
            )
            self._running = None

    @property
    def running(self) -> Operation | None:
        """The progress of the running operation, or None."""
        progress = self._running
        return progress.snapshot() if progress else None

    @property
    def ended(self) -> list[OperationRecord]:
        """The operations that have ended, oldest first."""
        return list(self._ended)

    def cancel(self) -> bool:
        """Cancels the running operation. Returns False if there is none, or if it is past its point of no return."""
        progress = self._running
        return progress.cancel() if progress else False
