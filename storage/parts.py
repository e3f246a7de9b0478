"""The parts of a file on their way to the bucket: each is hashed, then sent with its digest, again if needed."""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from storage.config import TransferConfig
from storage.digests import PartDigest, etag_is_digest
from storage.errors import IntegrityError
from storage.store import ObjectStore, SignedRequest
from storage.wire import CHUNK_BYTES, Meter, Wire

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class SentPart:
    """A part that the store has: what was sent, and the ETag that the store gave it."""

    digest: PartDigest
    etag: str


@dataclass(frozen=True, slots=True)
class SentParts:
    """The parts that an unfinished multipart upload has, by their index from 0."""

    upload_id: str
    part_bytes: int
    parts: Mapping[int, SentPart]


class Source:
    """The opened file, which many threads read. `size_bytes` is its size when it was opened."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._first = os.fstat(fd)
        self.size_bytes = self._first.st_size

    @classmethod
    @contextmanager
    def opened(cls, path: Path) -> Iterator[Source]:
        """Opens a regular file. Raises OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            source = cls(fd)
            if not stat.S_ISREG(source._first.st_mode):
                raise OSError("not a regular file")
            yield source
        finally:
            os.close(fd)

    def has_changed(self) -> bool:
        """True if the file was written to since it was opened."""
        now = os.fstat(self._fd)
        return (now.st_size, now.st_mtime_ns) != (self._first.st_size, self._first.st_mtime_ns)

    def size_now(self) -> int:
        """The file's size now."""
        return os.fstat(self._fd).st_size

    def chunks(self, start: int, size_bytes: int) -> Iterator[bytes]:
        """The bytes of a stretch. Raises IntegrityError if the file ends before it."""
        end = start + size_bytes
        while start < end:
            chunk = os.pread(self._fd, min(CHUNK_BYTES, end - start), start)
            if not chunk:
                raise IntegrityError("upload", detail="the file became shorter while it was read")
            yield chunk
            start += len(chunk)

    def digest(self, wire: Wire, start: int, size_bytes: int) -> PartDigest:
        """The MD5 and the SHA-256 of a stretch."""
        md5, sha256 = self._hashes(wire, ("md5", "sha256"), start, size_bytes)
        return PartDigest(size_bytes, md5, sha256)

    def hash(self, wire: Wire, algorithm: str, start: int, size_bytes: int) -> str:
        """One digest of a stretch, in hexadecimal."""
        return self._hashes(wire, (algorithm,), start, size_bytes)[0]

    def _hashes(self, wire: Wire, algorithms: Sequence[str], start: int, size_bytes: int) -> list[str]:
        hashers = [hashlib.new(algorithm, usedforsecurity=algorithm != "md5") for algorithm in algorithms]
        for chunk in self.chunks(start, size_bytes):
            wire.go_on("upload")
            for hasher in hashers:
                hasher.update(chunk)
        return [hasher.hexdigest() for hasher in hashers]


@dataclass(frozen=True, slots=True)
class PartSender:
    """Sends stretches of one file to one object."""

    store: ObjectStore
    key: str
    source: Source
    config: TransferConfig

    def send(
        self, wire: Wire, start: int, digest: PartDigest, meter: Meter, *, upload_id: str | None, index: int = 0
    ) -> SentPart:
        """Sends one part; without an upload id, the whole object. The store refuses bytes with another digest."""

        def sign() -> SignedRequest:
            md5, size, ttl_s = digest.content_md5, digest.size_bytes, self.config.url_ttl_s
            if upload_id is None:
                return self.store.presign_put(self.key, content_md5=md5, size_bytes=size, ttl_s=ttl_s)
            return self.store.presign_part(
                self.key, upload_id, index + 1, content_md5=md5, size_bytes=size, ttl_s=ttl_s
            )

        def body() -> Iterator[bytes]:
            for chunk in self.source.chunks(start, digest.size_bytes):
                wire.go_on("upload")
                yield chunk
                meter.add(len(chunk))

        def attempt() -> SentPart:
            with wire.exchange("upload", "PUT", sign(), body=body()) as response:
                for _ in response.iter_raw():
                    pass
                etag = response.headers.get("ETag", "").strip('"')
                if not etag or (etag != digest.md5 and _etag_is_digest(response.headers)):
                    raise wire.fail(IntegrityError, "upload", f"part {index + 1} came back with another ETag")
                return SentPart(digest, str(etag))

        return wire.retried(attempt, meter)


def abort_uploads(store: ObjectStore, key: str) -> None:
    """Drops all unfinished uploads of an object. By listing, because the answer with an upload's id may be lost."""
    for left in store.list_uploads(key):
        store.abort_upload(left.key, left.upload_id)


def _etag_is_digest(headers: httpx.Headers) -> bool:
    encryption = "x-amz-server-side-encryption"
    return etag_is_digest(
        encryption=headers.get(encryption), customer_algorithm=headers.get(f"{encryption}-customer-algorithm")
    )
