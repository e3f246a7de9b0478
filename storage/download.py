"""Downloads an archive from the bucket into a file: in parallel ranges of one version, each checked as it arrives."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from functools import partial
from pathlib import Path

import httpx

from storage.config import TransferConfig
from storage.digests import ArchiveDigest, part_count
from storage.errors import IntegrityError, PreconditionFailedError
from storage.store import Head, ObjectStore
from storage.wire import CHUNK_BYTES, Meter, Progress, Wire


def download(
    store: ObjectStore,
    key: str,
    path: Path,
    *,
    expected: ArchiveDigest,
    config: TransferConfig,
    progress: Progress,
    cancelled: threading.Event,
) -> None:
    """Downloads `key` to a file at `path`, the caller's temporary name: on failure the file is removed.

    On return the file is complete, checked as far as `expected` allows, and synced to disk; its name is not synced.

    Args:
        expected: the size is checked and, where known, the SHA-256 of every part, else that of the whole,
            else the ETag.
        progress: called from many threads with the number of bytes moved; negative if a part has to be read again.
        cancelled: when set, the transfer ends within a fraction of a second.

    Raises:
        ObjectMissingError: permanent.
        IntegrityError: the object is not the one that was recorded, or was replaced meanwhile; permanent.
        TransferCancelledError: as after every error here, the file is gone.
        StoreUnavailableError: retryable, after all attempts.
        OSError: the file cannot be written; ENOSPC is raised before the first byte is fetched.
    """
    head = store.head(key)
    job = _Download(store, key, expected, config, head)
    job.check_head()
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        try:
            if expected.size_bytes:
                os.posix_fallocate(fd, 0, expected.size_bytes)
                job.run(fd, progress, cancelled)
            os.fsync(fd)
        finally:
            os.close(fd)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        raise


class _Download:
    def __init__(
        self, store: ObjectStore, key: str, expected: ArchiveDigest, config: TransferConfig, head: Head
    ) -> None:
        self._store = store
        self._key = key
        self._expected = expected
        self._config = config
        self._head = head
        recorded = expected.part_bytes if expected.has_parts else None
        self._part_bytes = recorded or config.part_bytes_for(expected.size_bytes)

    def check_head(self) -> None:
        if self._head.size_bytes != self._expected.size_bytes:
            raise self._damaged(f"{self._head.size_bytes} bytes instead of {self._expected.size_bytes}")
        # An ETag belongs to the bucket to which the archive was uploaded: a copy elsewhere, in other parts, has another
        # ETag with the same content. Where there is a SHA-256, that decides.
        hashed = self._expected.sha256 is not None or self._expected.has_parts
        if not hashed and self._expected.etag is not None and self._expected.etag != self._head.etag:
            raise self._damaged("another ETag")

    def run(self, fd: int, progress: Progress, cancelled: threading.Event) -> None:
        count = part_count(self._expected.size_bytes, self._part_bytes)
        with Wire(self._store.bucket, self._key, self._config, cancelled) as wire:
            parts = [partial(self._part, wire, fd, index, Meter(progress)) for index in range(count)]
            wire.run("download", parts, threads=self._config.concurrency)
            if self._expected.sha256 is not None and not self._expected.has_parts:
                self._check_whole(wire, fd, self._expected.sha256)

    def _part(self, wire: Wire, fd: int, index: int, meter: Meter) -> None:
        start = index * self._part_bytes
        end = min(start + self._part_bytes, self._expected.size_bytes)
        sha256 = self._expected.parts[index] if self._expected.has_parts else None
        headers = {"Range": f"bytes={start}-{end - 1}", "If-Match": f'"{self._head.etag}"'}

        def attempt() -> None:
            signed = self._store.presign_get(self._key, ttl_s=self._config.url_ttl_s)
            hasher = hashlib.sha256()
            position = start
            with wire.exchange("download", "GET", signed, headers=headers) as response:
                self._check_answer(response, start, end)
                for chunk in response.iter_raw():
                    wire.go_on("download")
                    if position + len(chunk) > end:
                        raise self._damaged(f"part {index + 1} is longer than it was announced")
                    _write(fd, chunk, position)
                    hasher.update(chunk)
                    position += len(chunk)
                    meter.add(len(chunk))
            if position != end:
                raise self._damaged(f"part {index + 1} is shorter than it was announced")
            if sha256 is not None and hasher.hexdigest() != sha256:
                raise self._damaged(f"part {index + 1} has another SHA-256")

        try:
            wire.retried(attempt, meter)
        except PreconditionFailedError:
            raise self._damaged("it was replaced during the download") from None

    def _check_answer(self, response: httpx.Response, start: int, end: int) -> None:
        """Checks that the answer is this range of this version.

        S3 answers 206; rclone answers 200 with the range's Content-Range and body. So Content-Range decides:
        an answer that ignores the Range header has none, and one with another range names that range.
        rclone ignores If-Match too; the ETag that comes with each range shows whether the object is still the same.
        """
        if response.headers.get("Content-Range") != f"bytes {start}-{end - 1}/{self._expected.size_bytes}":
            raise self._damaged(f"HTTP {response.status_code} with another range than was asked for")
        if response.headers.get("ETag", self._head.etag).strip('"') != self._head.etag:
            raise self._damaged("it was replaced during the download")

    def _check_whole(self, wire: Wire, fd: int, sha256: str) -> None:
        hasher = hashlib.sha256()
        for start in range(0, self._expected.size_bytes, CHUNK_BYTES):
            wire.go_on("download")
            hasher.update(os.pread(fd, CHUNK_BYTES, start))
        if hasher.hexdigest() != sha256:
            raise self._damaged("another SHA-256")

    def _damaged(self, detail: str) -> IntegrityError:
        return IntegrityError("download", bucket=self._store.bucket, key=self._key, detail=detail)


def _write(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written
