"""Limits on the size of archives from strangers, checked before they are unpacked and watched meanwhile.

A few kilobytes can unpack to more than a disk holds. The listing of an archive says how large its files are; only the
disk shows how much of that is holes.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from actors.node.errors import NoSpaceLeftError, TreeError
from actors.node.survey import Limits

_LOOK_S = 0.1
_ENTRY = re.compile(rb"[-dlpscb][-rwxsStT]{9} +\d+/\d+ +(\d+)")
"""A line of `unsquashfs -lln`: type and mode, owner and group, size in bytes (or the two numbers of a device).
Source: unsquashfs 4.5.1, print_filename."""


class UnpackedSize:
    """Adds up a listing by `squashfs.sizes`, piece by piece, and signals once it exceeds the limits.

    A name with a newline can make the sum too large, but hides no entry: each entry begins a line of its own.
    """

    def __init__(self, limits: Limits, beyond: threading.Event) -> None:
        """`beyond` is set as soon as a limit is exceeded."""
        self._limits = limits
        self._beyond = beyond
        self._rest = b""
        self.inodes = 0
        self.source_bytes = 0

    def read(self, output: bytes) -> None:
        """Takes the next piece of the listing."""
        *lines, self._rest = (self._rest + output).split(b"\n")
        for line in lines:
            entry = _ENTRY.match(line)
            if entry is not None:
                self.inodes += 1
                self.source_bytes += int(entry[1]) if line.startswith(b"-") else 0
        if self._excess() is not None:
            self._beyond.set()

    def check(self) -> None:
        """Raises TreeError if a limit was exceeded."""
        excess = self._excess()
        if excess is not None:
            raise TreeError(excess)

    def _excess(self) -> str | None:
        if self.inodes > self._limits.inodes:
            return f"The archive holds more than {self._limits.inodes} files."
        if self.source_bytes > self._limits.source_bytes:
            return f"The archive unpacks to more than {self._limits.source_bytes} bytes."
        return None


@contextmanager
def half_of_the_disk(folder: Path, cancelled: threading.Event) -> Iterator[threading.Event]:
    """Yields an event that is set once half of the free space of `folder`'s disk is used, or by `cancelled`.

    The other half is for the archive that is made of the unpacked tree, and for everybody else.

    Raises:
        NoSpaceLeftError: at the end of the block, if that much was used.
    """
    stop, done, is_full = threading.Event(), threading.Event(), threading.Event()
    least = _free_bytes(folder) // 2

    def watch() -> None:
        while not done.wait(_LOOK_S):
            if _free_bytes(folder) < least:
                is_full.set()
            if is_full.is_set() or cancelled.is_set():
                stop.set()
                return

    watching = threading.Thread(target=watch, name="disk-watch", daemon=True)
    watching.start()
    try:
        yield stop
    finally:
        done.set()
        watching.join()
    if is_full.is_set():
        raise NoSpaceLeftError("The unpacked archive takes more than half of what was free on the disk.")


def _free_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
