"""The sandbox lock: a file lock on the node, which the actor's process holds while the sandbox is awake.

The lock ends with its process. A restarted actor may begin before the old process has ended (2 ms apart in a
measurement), so it waits for this lock. The sweeper takes it too, and skips a sandbox whose lock is held: it must not
remove what an actor is about to mount.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from fasteners import InterProcessLock

from actors.node.errors import MountBusyError

_WAIT_S = 10.0
_POLL_S = 0.02


class SandboxLock:
    """The sandbox lock of one sandbox on this node. It excludes other processes, not other threads of this one."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock: InterProcessLock | None = None

    def claim(self, *, wait_s: float = _WAIT_S) -> None:
        """Takes the lock, unless this process has it already.

        Raises:
            MountBusyError: another process still held it after `wait_s`.
        """
        while self._lock is None:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = InterProcessLock(self._file)
            if not lock.acquire(timeout=wait_s, delay=_POLL_S, max_delay=_POLL_S):
                lock.lockfile.close()  # fasteners leaves it open after a failed attempt
                raise MountBusyError("Another process of this node still has the sandbox.")
            if self._is_current(lock):
                self._lock = lock
            else:  # the file was removed while we waited
                lock.release()

    def release(self, *, for_good: bool = False) -> None:
        """Releases the lock. `for_good` removes its file too, when nothing of the sandbox is left on this node."""
        if self._lock is None:
            return
        if for_good:
            self._file.unlink(missing_ok=True)
        self._lock.release()
        self._lock = None

    def _is_current(self, lock: InterProcessLock) -> bool:
        with contextlib.suppress(FileNotFoundError):
            return os.path.samestat(os.fstat(lock.lockfile.fileno()), self._file.stat())
        return False
