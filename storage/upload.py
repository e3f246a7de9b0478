"""Uploads an archive to the bucket: in one piece if it is small, in parallel parts otherwise, or not at all.

The bytes go through presigned URLs only. Every part carries a signed Content-MD5, and its ETag is compared. A HEAD of
the object decides the outcome, so a lost or wrong answer to the completion changes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx

from storage.config import TransferConfig
from storage.digests import PartDigest, UploadedArchive, multipart_etag, part_count
from storage.errors import IntegrityError, ObjectMissingError, StorageError, TransferCancelledError
from storage.room import full_told
from storage.store import Head, ObjectStore, SignedRequest
from storage.wire import CHUNK_BYTES, Meter, Progress, Wire

logger = logging.getLogger(__name__)

# rclone drops a whole multipart upload when one part arrives damaged: NoSuchUpload from then on.
_ROUNDS = 2


def upload(
    store: ObjectStore,
    key: str,
    path: Path,
    *,
    config: TransferConfig,
    progress: Progress,
    cancelled: threading.Event,
    shared: bool = False,
) -> UploadedArchive:
    """Uploads the file at `path` to `key`, which must be a new one: on failure the object is deleted.

    Args:
        shared: others may store the same content under the same key, so a failure leaves the object alone.
        progress: called from many threads with the number of bytes moved; negative if a part has to be sent again.
        cancelled: when set, the transfer ends within a fraction of a second.

    Raises:
        TransferCancelledError: as after every error here, nothing is left in the bucket, or the collector removes it.
        IntegrityError: the store does not hold what was sent, or the file changed while it was read.
        StoreUnavailableError: retryable, after all attempts; a StoreFullError where there is no room for it.
        StorageError: any other; permanent.
        OSError: the file cannot be read.
    """
    with _Source.opened(path) as source:
        job = _Upload(store, key, source, config, progress, cancelled)
        try:
            with full_told(store, "upload", key, source.size_bytes):
                return job.run()
        except BaseException:
            if not shared:
                job.discard()
            raise


class _Source:
    """The opened file: many threads read it, and changes to it meanwhile are noticed."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._first = os.fstat(fd)
        self.size_bytes = self._first.st_size

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[_Source]:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            yield cls(fd)
        finally:
            os.close(fd)

    def has_changed(self) -> bool:
        now = os.fstat(self._fd)
        return (now.st_size, now.st_mtime_ns) != (self._first.st_size, self._first.st_mtime_ns)

    def chunks(self, start: int, size_bytes: int) -> Iterator[bytes]:
        end = start + size_bytes
        while start < end:
            chunk = os.pread(self._fd, min(CHUNK_BYTES, end - start), start)
            if not chunk:
                raise IntegrityError("upload", detail="the file became shorter while it was read")
            yield chunk
            start += len(chunk)


class _Upload:
    def __init__(
        self,
        store: ObjectStore,
        key: str,
        source: _Source,
        config: TransferConfig,
        progress: Progress,
        cancelled: threading.Event,
    ) -> None:
        self._store = store
        self._key = key
        self._source = source
        self._config = config
        self._progress = progress
        self._cancelled = cancelled
        self._part_bytes = config.part_bytes_for(source.size_bytes)
        count = part_count(source.size_bytes, self._part_bytes)
        self._digests: list[PartDigest | None] = [None] * count
        self._whole: tuple[str, str] | None = None

    def run(self) -> UploadedArchive:
        head = self._in_one_piece() if len(self._digests) == 1 else self._in_parts()
        if self._source.has_changed():
            raise self._damaged("upload", "the file changed while it was uploaded")
        if self._cancelled.is_set():
            raise TransferCancelledError("upload", bucket=self._store.bucket, key=self._key)
        parts = self._known_digests()
        sha256 = self._whole[0] if self._whole else parts[0].sha256
        return UploadedArchive(self._source.size_bytes, sha256, parts, self._part_bytes, head.etag)

    def discard(self) -> None:
        """Removes whatever the upload may have left. Best effort: the collector removes what is left here."""
        try:
            # By listing, because an upload exists even if the answer with its id was lost.
            for left in self._store.list_uploads(self._key):
                self._store.abort_upload(left.key, left.upload_id)
            self._store.delete(self._key)
        except StorageError as e:
            logger.warning("a failed upload may have left something behind: %s", e)

    def _in_one_piece(self) -> Head:
        with Wire(self._store.bucket, self._key, self._config, self._cancelled) as wire:
            wire.run("upload", [partial(self._send, wire, 0, None, Meter(self._progress))], threads=1)
        head = self._store.head(self._key)
        if not self._is_ours(head):
            raise self._damaged("head", "the stored object has another size or ETag")
        return head

    def _in_parts(self) -> Head:
        for _ in range(_ROUNDS - 1):
            try:
                return self._round()
            except ObjectMissingError:
                logger.info("the store has dropped a multipart upload in bucket %s; beginning anew", self._store.bucket)
        return self._round()

    def _round(self) -> Head:
        """Does one multipart upload from beginning to end. Raises ObjectMissingError if the store has dropped it."""
        upload_id = self._store.create_upload(self._key)
        meters = [Meter(self._progress) for _ in self._digests]
        try:
            with Wire(self._store.bucket, self._key, self._config, self._cancelled) as wire:
                parts: list[Callable[[], str | None]] = [
                    partial(self._send, wire, number, upload_id, meter) for number, meter in enumerate(meters)
                ]
                # The whole is hashed beside the parts, as the second task in the queue, so that sending begins at once.
                parts.insert(1, partial(self._hash_whole, wire))
                etags = wire.run("upload", parts, threads=self._config.concurrency + 1)
            return self._complete(upload_id, [etag for etag in etags if etag is not None])
        except BaseException:
            for meter in meters:
                meter.undo()
            self._abort(upload_id)
            raise

    def _abort(self, upload_id: str) -> None:
        try:
            self._store.abort_upload(self._key, upload_id)
        except StorageError as e:
            logger.warning("a multipart upload could not be aborted: %s", e)

    def _complete(self, upload_id: str, etags: list[str]) -> Head:
        failure: StorageError | None = None
        try:
            self._store.complete_upload(self._key, upload_id, etags)
        except StorageError as e:
            failure = e
        # The object decides, not the answer, which may be lost, or be an error after the effect.
        try:
            head = self._store.head(self._key)
        except ObjectMissingError as e:
            raise failure or e from None
        if self._is_ours(head):
            return head
        raise failure or self._damaged("complete_upload", "the stored object has another size or ETag")

    def _send(self, wire: Wire, index: int, upload_id: str | None, meter: Meter) -> str:
        """Sends one part (or, without an upload id, the whole) and returns its ETag."""
        start = index * self._part_bytes
        digest = self._digest(wire, start, index)

        def sign() -> SignedRequest:
            md5, size, ttl_s = digest.content_md5, digest.size_bytes, self._config.url_ttl_s
            if upload_id is None:
                return self._store.presign_put(self._key, content_md5=md5, size_bytes=size, ttl_s=ttl_s)
            return self._store.presign_part(
                self._key, upload_id, index + 1, content_md5=md5, size_bytes=size, ttl_s=ttl_s
            )

        def body() -> Iterator[bytes]:
            for chunk in self._source.chunks(start, digest.size_bytes):
                wire.go_on("upload")
                yield chunk
                meter.add(len(chunk))

        def attempt() -> str:
            with wire.exchange("upload", "PUT", sign(), body=body()) as response:
                for _ in response.iter_raw():
                    pass
                etag = response.headers.get("ETag", "").strip('"')
                if not etag or (etag != digest.md5 and _etag_is_digest(response)):
                    raise self._damaged("upload", f"part {index + 1} came back with another ETag")
                return str(etag)

        return wire.retried(attempt, meter)

    def _digest(self, wire: Wire, start: int, index: int) -> PartDigest:
        known = self._digests[index]
        if known is None:
            size = min(self._part_bytes, self._source.size_bytes - start)
            md5, sha256 = self._hashes(wire, start, size)
            known = self._digests[index] = PartDigest(size, md5, sha256)
        return known

    def _hash_whole(self, wire: Wire) -> None:
        if self._whole is None:
            md5, sha256 = self._hashes(wire, 0, self._source.size_bytes)
            self._whole = (sha256, md5)

    def _hashes(self, wire: Wire, start: int, size_bytes: int) -> tuple[str, str]:
        md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
        for chunk in self._source.chunks(start, size_bytes):
            wire.go_on("upload")
            md5.update(chunk)
            sha256.update(chunk)
        return md5.hexdigest(), sha256.hexdigest()

    def _is_ours(self, head: Head) -> bool:
        if head.size_bytes != self._source.size_bytes:
            return False
        if not head.etag_is_digest:
            return True
        parts = self._known_digests()
        if self._whole is None:
            return head.etag == parts[0].md5
        # rclone answers the completion with md5(md5s)-N, and from then on gives the MD5 of the whole as ETag.
        return head.etag in (multipart_etag(parts), self._whole[1])

    def _known_digests(self) -> tuple[PartDigest, ...]:
        return tuple(digest for digest in self._digests if digest is not None)

    def _damaged(self, operation: str, detail: str) -> IntegrityError:
        return IntegrityError(operation, bucket=self._store.bucket, key=self._key, detail=detail)


def _etag_is_digest(response: httpx.Response) -> bool:
    """False if a key of KMS or of the customer encrypts the object: its ETag is then no MD5.

    Source: Amazon S3 API reference, "Object".
    """
    headers = response.headers
    kms = headers.get("x-amz-server-side-encryption", "").startswith("aws:kms")
    return not kms and "x-amz-server-side-encryption-customer-algorithm" not in headers
