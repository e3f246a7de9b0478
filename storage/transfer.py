"""Moves archives between a node and the bucket: `upload`, also of a file that still grows, and `download`, and
the digests that they record.

Bytes go through presigned URLs only, each for one request and signed anew for each try; a thread holds at most
256 KiB of them. A part that fails is tried again by itself, with exponential back-off and full jitter, for 5xx, 429
(Retry-After is kept), timeouts, resets and expired signatures, and once for damaged bytes. A failed upload or
download removes what it has left behind.
"""

from __future__ import annotations

from storage.digests import ArchiveDigest, PartDigest, UploadedArchive
from storage.download import download
from storage.growing import GrowingUpload
from storage.parts import SentParts
from storage.upload import upload
from storage.wire import Progress

__all__ = [
    "ArchiveDigest",
    "GrowingUpload",
    "PartDigest",
    "Progress",
    "SentParts",
    "UploadedArchive",
    "download",
    "upload",
]
