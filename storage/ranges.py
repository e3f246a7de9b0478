"""Reads of pieces of one object of the bucket, through a window of it in memory."""

from __future__ import annotations

from contextlib import nullcontext

from storage.errors import IntegrityError
from storage.store import ObjectStore
from storage.time_limit import within_moments

WINDOW_BYTES = 2**20


class RangedObject:
    """One object, read in pieces of at most some MiB. It has to stay the same: another ETag is an error.

    Not thread-safe. A small object is fetched whole, by one request.
    """

    def __init__(
        self, store: ObjectStore, key: str, size_bytes: int, *, window_bytes: int = WINDOW_BYTES, hasty: bool = False
    ) -> None:
        """`hasty` means that each read has to end within moments (`storage.time_limit`)."""
        self.bucket = store.bucket
        self.key = key
        self.size_bytes = size_bytes
        self.window_bytes = window_bytes
        self._store = store
        self._hasty = hasty
        self._start = 0
        self._window = b""
        self._etag: str | None = None

    @property
    def is_whole(self) -> bool:
        """True if the first read fetches the whole object."""
        return self.size_bytes <= self.window_bytes

    def read(self, start: int, size_bytes: int, *, exactly: bool = False) -> bytes:
        """Returns exactly these bytes; `exactly` means that those behind them will not be read soon.

        Raises:
            ObjectMissingError: permanent.
            IntegrityError: the object is shorter, or was replaced meanwhile.
        """
        end = start + size_bytes
        if start < 0 or end > self.size_bytes:
            raise self._wrong("it ends before this range")
        if not self._start <= start <= end <= self._start + len(self._window):
            if self.is_whole:
                self._fetch(0, self.size_bytes)
            else:
                self._fetch(start, end if exactly else min(self.size_bytes, max(end, start + self.window_bytes)))
        return self._window[start - self._start : end - self._start]

    def _fetch(self, start: int, end: int) -> None:
        with within_moments() if self._hasty else nullcontext():
            found = self._store.get_range(self.key, start=start, size_bytes=end - start)
        if self._etag is not None and found.etag != self._etag:
            raise self._wrong("it was replaced while it was read")
        self._etag = found.etag
        self._start, self._window = start, found.data

    def _wrong(self, detail: str) -> IntegrityError:
        return IntegrityError("read", bucket=self.bucket, key=self.key, detail=detail)
