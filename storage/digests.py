"""The digests that are recorded of an archive's bytes, and the ETag that S3 derives from them.

squashfs has no checksums of its own, and an ETag is a checksum on some stores only. So the SHA-256 of every
part and of the whole goes into the metadata. An archive is mounted as it is only if its bytes match them.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PartDigest:
    """One part of an archive, as it was sent. `md5` and `sha256` are in hexadecimal."""

    size_bytes: int
    md5: str
    sha256: str

    @property
    def content_md5(self) -> str:
        """The value of the Content-MD5 header. Source: RFC 1864."""
        return base64.b64encode(bytes.fromhex(self.md5)).decode()


@dataclass(frozen=True, slots=True)
class ArchiveDigest:
    """The known facts about an archive before it is downloaded.

    `parts` are the SHA-256 of consecutive stretches of `part_bytes` (the last may be shorter). Archives of other
    writers have a size only; a field of None is not checked.
    """

    size_bytes: int
    etag: str | None = None
    sha256: str | None = None
    part_bytes: int | None = None
    parts: tuple[str, ...] = ()

    @property
    def has_parts(self) -> bool:
        """True if each part can be checked by itself: there are as many digests as the size requires."""
        return self.part_bytes is not None and len(self.parts) == part_count(self.size_bytes, self.part_bytes)


@dataclass(frozen=True, slots=True)
class UploadedArchive:
    """The known facts about an archive after it was uploaded and the store has confirmed it."""

    size_bytes: int
    sha256: str
    parts: tuple[PartDigest, ...]
    part_bytes: int
    etag: str


def part_count(size_bytes: int, part_bytes: int) -> int:
    """Number of parts of an archive; an empty archive has one."""
    return max(1, -(-size_bytes // part_bytes))


def multipart_etag(parts: Iterable[PartDigest]) -> str:
    """The ETag that S3, R2 and moto give a multipart object: the MD5 of the parts' MD5s, and their number."""
    md5s = [bytes.fromhex(part.md5) for part in parts]
    return f"{hashlib.md5(b''.join(md5s), usedforsecurity=False).hexdigest()}-{len(md5s)}"


def etag_is_digest(*, encryption: str | None, customer_algorithm: str | None) -> bool:
    """False if a key of KMS or of the customer encrypts the object: its ETag is then no function of the content.

    The arguments are the answer's headers `x-amz-server-side-encryption` and `…-customer-algorithm`.
    Source: Amazon S3 API reference, "Object".
    """
    return customer_algorithm is None and not (encryption or "").startswith("aws:kms")


def is_of_etag(data: bytes, etag: str) -> bool:
    """False if `etag` is empty, or has the form of an MD5 and is not that of `data`. Other forms tell nothing."""
    if not re.fullmatch("[0-9a-f]{32}", etag):
        return etag != ""
    return hashlib.md5(data, usedforsecurity=False).hexdigest() == etag
