"""The free space of a store, where that can be known: it tells a full store from a failing one.

rclone answers a write that finds the disk full with a 500, or drops the upload that the write belongs to and then
denies that the upload existed. The disk itself tells the cause.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage.errors import ObjectMissingError, StorageError, StoreFullError, StoreUnavailableError
from storage.store import ObjectStore

_MARGIN_BYTES = 1024 * 1024
_MARGIN_FILES = 16
"""A file system keeps some blocks for itself, and a write needs some for names and indexes, and inodes for folders."""


def lacks_room(folder: Path, size_bytes: int, *, files: int = 0) -> bool:
    """True if the disk of a folder has no room for so many more bytes and files; False if it cannot be asked."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return False
    counts_files = disk.f_files > 0
    return disk.f_bavail * disk.f_frsize < size_bytes + _MARGIN_BYTES or (
        counts_files and disk.f_favail < files + _MARGIN_FILES
    )


@contextmanager
def full_told(store: ObjectStore, operation: str, key: str, size_bytes: int) -> Iterator[None]:
    """Raises a failure of a write in the block as StoreFullError if the store has no room for what was written.

    This covers only failures that a full store can cause, not a refusal for another reason.
    """
    try:
        yield
    except StorageError as e:
        may_hide_it = isinstance(e, (StoreUnavailableError, ObjectMissingError)) or type(e) is StorageError
        if not may_hide_it or isinstance(e, StoreFullError) or not store.lacks_room(size_bytes):
            raise
        raise StoreFullError(operation, bucket=store.bucket, key=key, detail=e.detail) from None
