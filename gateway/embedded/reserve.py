"""Room on the data folder's disk that is reserved for the next start of the service.

A start writes some files anew, and all of Ray's if the folder for temporary files is on the same disk. Sandboxes can
fill that disk to its last block, and nobody can delete their files while the service does not start. So one file
occupies some blocks, and others occupy inodes. A start first releases them, while no sandbox runs that could use them
up, and occupies them again once it is done.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

RESERVE_BYTES = 16 * 1024**2
"""Size of the reserve. Ray's files are 2 MiB at the end of a start (measured); trials of mount drivers take more."""
_INODES = 256
"""Number of reserved inodes. Ray makes some 150 files and sockets (measured)."""
_SHARE = 4
"""Divisor: the reserve takes at most a quarter of the free room."""
_MARGIN_BYTES = 1024 * 1024
"""Room that a start leaves: Ray writes the first lines of some logs only later."""
_LOOK_S = 30.0


class Reserve:
    """The reserve in one folder. Its methods do not raise: without a reserve the service starts if there is room."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._room = folder / "room"
        self._had = (0, 0)
        """The reserve before the start, in bytes and files."""

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Releases the room for the block. Afterwards reserves again what is left of it."""
        self._had = self._held()
        self._release()
        try:
            yield
        finally:
            self.keep(as_before=True)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Completes the reserve as soon as there is room for it, until the end of the block."""
        over = threading.Event()

        def look() -> None:
            while not over.wait(_LOOK_S):
                self.keep()

        threading.Thread(target=look, name="reserve", daemon=True).start()
        try:
            yield
        finally:
            over.set()

    def keep(self, *, as_before: bool = False) -> None:
        """Reserves a share of the free room; with `as_before`, as much as before the start, even if that is all."""
        had_bytes, had_files = self._had if as_before else (0, 0)
        with contextlib.suppress(OSError):
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._keep_bytes(had_bytes)  # first: it may need the disk's last inode
            self._keep_files(had_files)

    def _keep_files(self, had: int) -> None:
        disk = os.statvfs(self._folder)
        _, held = self._held()
        free = disk.f_favail if disk.f_files else _INODES * _SHARE  # 0: it has no limit
        wanted = max(min(_INODES, (free + held) // _SHARE), min(had, free + held))
        for number in range(held, wanted):
            with contextlib.suppress(FileExistsError):
                os.close(os.open(self._folder / str(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def _keep_bytes(self, had: int) -> None:
        disk = os.statvfs(self._folder)
        held, _ = self._held()
        free = disk.f_bavail * disk.f_frsize
        wanted = max(min(RESERVE_BYTES, (free + held) // _SHARE), min(had, free + held - _MARGIN_BYTES))
        if wanted > held:
            with self._room.open("ab") as room:
                os.posix_fallocate(room.fileno(), 0, wanted)

    def _held(self) -> tuple[int, int]:
        """The number of bytes and of files that the reserve holds now."""
        with contextlib.suppress(OSError):
            names = {entry.name for entry in self._folder.iterdir()}
            held_bytes = self._room.stat().st_blocks * 512 if self._room.name in names else 0
            return held_bytes, len(names - {self._room.name})
        return 0, 0

    def _release(self) -> None:
        with contextlib.suppress(OSError):
            for file in list(self._folder.iterdir()):
                file.unlink()
