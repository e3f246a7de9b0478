"""Sends the parts of an archive while a tool still writes it, so that little is left to send when the tool ends.

mksquashfs appends, and writes the head of the archive, in part 1, last. So part 1 waits for `storage.upload`, which
also compares every part that was sent with the finished file: the tool may cut the file back and write on from there,
and does so where it finds out late that a large file is a copy of another one.

Whatever fails here, fails nothing: then all parts are sent when the tool has ended.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from pathlib import Path
from types import TracebackType
from typing import Self

from storage.config import MAX_PARTS, TransferConfig
from storage.errors import StorageError, TransferCancelledError
from storage.parts import PartSender, SentPart, SentParts, Source, abort_uploads
from storage.store import ObjectStore
from storage.wire import Meter, Wire

logger = logging.getLogger(__name__)

_POLL_S = 0.02
_DISTANCE_PARTS = 1
"""A part is sent when the file has grown so many parts beyond it. What is cut back soon is then seldom sent."""
_SILENCE_S = 5.0
"""The time without a sent byte after which `__exit__` no longer waits for the parts that are on their way."""


class GrowingUpload:
    """The follower of one file that grows. Use it as a context manager around the tool that writes the file.

    After the block, `sent` holds what was sent, for `storage.upload`. After a block that failed, the caller removes
    what may be left in the bucket, if `begin` was called.
    """

    def __init__(
        self,
        store: ObjectStore,
        key: str,
        *,
        config: TransferConfig,
        begin: Callable[[], object],
        cancelled: threading.Event,
    ) -> None:
        """`begin` is called once, from another thread, before anything is in the bucket; its failure ends the sending.

        `cancelled` ends the sending when it is set.
        """
        self._store = store
        self._key = key
        self._config = config
        self._begin = begin
        self._cancelled = cancelled
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._wire: Wire | None = None
        self._next_index = 1
        self._parts: dict[int, SentPart] = {}
        self._moved_at = time.monotonic()
        self.sent: SentParts | None = None

    def __enter__(self) -> Self:
        return self

    def follow(self, path: Path) -> None:
        """Begins to follow the file at `path`, which need not exist yet.

        Does nothing if the store would keep early parts in its memory.
        """
        if self._thread is None and not self._store.keeps_early_parts_in_memory:
            self._thread = threading.Thread(
                target=copy_context().run, args=(self._run, path), name="transfer-ahead", daemon=True
            )
            self._thread.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._ended.set()
        if self._thread is None:
            return
        while self._thread.is_alive():
            if kind is not None or time.monotonic() - self._moved_at > _SILENCE_S:
                self._interrupt()
            self._thread.join(_POLL_S)

    def _interrupt(self) -> None:
        wire = self._wire
        if wire is not None:
            wire.interrupt()

    def _run(self, path: Path) -> None:
        try:
            if self._wait_for_file(path):
                with Source.opened(path) as source:
                    if self._wait_for_size(source, self._bytes_before(self._next_index)):
                        self._send_parts(source)
        except Exception as e:  # the top frame of a thread
            logger.warning("no parts are sent ahead: %s", e if isinstance(e, StorageError) else type(e).__name__)

    def _wait_for_file(self, path: Path) -> bool:
        while not path.exists():
            if self._ended.wait(_POLL_S):
                return False
        return True

    def _bytes_before(self, index: int) -> int:
        """The size of the file from which on a part is sent."""
        return (index + 1 + _DISTANCE_PARTS) * self._config.part_bytes

    def _wait_for_size(self, source: Source, size_bytes: int) -> bool:
        """Waits until the file has this size. Returns False if the tool has ended."""
        while source.size_now() < size_bytes:
            if self._ended.wait(_POLL_S) or self._cancelled.is_set():
                return False
        return not self._ended.is_set()

    def _send_parts(self, source: Source) -> None:
        self._begin()
        try:
            upload_id = self._store.create_upload(self._key)
            with Wire(self._store.bucket, self._key, self._config, self._cancelled) as wire:
                self._wire = wire
                work = [lambda: self._work(wire, source, upload_id)] * self._config.concurrency
                try:
                    wire.run("upload", work, threads=self._config.concurrency)
                except TransferCancelledError:
                    if not self._ended.is_set():
                        raise
            self.sent = SentParts(upload_id, self._config.part_bytes, dict(self._parts))
        except BaseException:
            abort_uploads(self._store, self._key)
            raise

    def _work(self, wire: Wire, source: Source, upload_id: str) -> None:
        """Sends one part after the other, beside other threads, until the tool has ended."""
        sender, part_bytes = PartSender(self._store, self._key, source, self._config), self._config.part_bytes
        while (index := self._taken()) is not None and self._wait_for_size(source, self._bytes_before(index)):
            start = index * part_bytes
            digest = source.digest(wire, start, part_bytes)
            part = sender.send(wire, start, digest, Meter(self._moved), upload_id=upload_id, index=index)
            with self._lock:
                self._parts[index] = part

    def _taken(self) -> int | None:
        with self._lock:
            index = self._next_index
            if index + 1 + _DISTANCE_PARTS > MAX_PARTS:
                return None
            self._next_index += 1
            return index

    def _moved(self, count: int) -> None:
        self._moved_at = time.monotonic()
