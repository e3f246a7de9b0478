"""The contract between Holdfast and an object store. One test suite checks every implementation.

All methods have in common:

* It is safe to call from many threads at once, and blocks until the store has answered or the attempts are used up.
  Within `storage.time_limit.within_moments`, a store that does not answer in time is unavailable.
* `StoreUnavailableError` is retryable, and leaves the outcome unknown: the request may have taken effect.
  Implementations have already retried; the caller reads to learn the outcome. `SignatureExpiredError` is also
  retryable, and means that the request had no effect.
* Any other `AccessRefusedError`, `BucketMissingError` and `StorageError` itself are permanent: the call fails again.
* A read sees the newest completed write of the same object, and so does a listing (S3 and R2 are strongly consistent).
  A listing only serves the collector, lists shown to people, and looking for the owner of a backup without a valid
  signature.
* An object changes as a whole or not at all. A reader never sees a part of a write.

ETags are opaque, without the quotes of HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from storage.errors import ObjectMissingError

SMALL_OBJECT_BYTES = 4 * 2**20


@dataclass(frozen=True, slots=True)
class Stored:
    """The content of a small object, and the ETag of the state that was read."""

    data: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class Head:
    """The facts about an object that are known without reading it.

    `etag_is_digest` is False where the store encrypts in a way that makes the ETag no function of the content.
    """

    size_bytes: int
    etag: str
    last_modified: datetime
    etag_is_digest: bool = True


@dataclass(frozen=True, slots=True)
class Listed:
    """One object of a listing."""

    key: str
    size_bytes: int
    last_modified: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing, in ascending order of the keys' bytes. `after` is None on the last page.

    `prefixes` are the keys that a delimiter folded together: each ends with the delimiter.
    """

    objects: tuple[Listed, ...]
    prefixes: tuple[str, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class Upload:
    """A multipart upload that is neither completed nor aborted."""

    key: str
    upload_id: str
    initiated_at: datetime


@dataclass(frozen=True, slots=True)
class SignedRequest:
    """A URL that permits one request, and the headers that the signature covers, which must be sent as they are.

    The URL is a secret for as long as it is valid: it is never logged, shown, or put into an error or an argv.
    """

    url: str
    headers: Mapping[str, str]

    def __repr__(self) -> str:
        return "SignedRequest(<url withheld>)"


class ObjectStore(Protocol):
    """One bucket."""

    @property
    def bucket(self) -> str:
        """The bucket's name."""

    @property
    def keeps_early_parts_in_memory(self) -> bool:
        """True if the store keeps the parts of an upload in its memory until all earlier ones have come."""

    def get(self, key: str, *, max_bytes: int = SMALL_OBJECT_BYTES) -> Stored:
        """Reads a small object whole.

        Raises:
            ObjectMissingError: permanent.
            IntegrityError: it is larger than `max_bytes`.
        """

    def get_range(self, key: str, *, start: int, size_bytes: int) -> Stored:
        """Reads a piece of an object: exactly these bytes, of which there are one or more.

        Raises:
            ObjectMissingError: permanent.
            IntegrityError: the object is too short to have them.
        """

    def put(self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None) -> str:
        """Writes a small object and returns its ETag. Atomic; repeating an unconditional put is harmless.

        With `if_none_match` it only creates the object, with `if_match` it only replaces that state. A store for which
        `supports_conditional_writes` is false ignores both. After a lost answer, a retry may find its own write. So
        `PreconditionFailedError` means "somebody wrote it, perhaps this call": read to know.

        Raises:
            PreconditionFailedError: the condition does not hold (for `if_match` also: there is no such object).
        """

    def head(self, key: str) -> Head:
        """Reads the size, the ETag and the time of the last change of an object.

        Raises:
            ObjectMissingError: permanent.
        """

    def size_of(self, key: str) -> int:
        """The size of an object, in bytes; cheaper than `head` for a store that reads an object to tell its ETag.

        Raises:
            ObjectMissingError: permanent.
        """

    def copy(self, source: str, target: str, *, if_match: str) -> str:
        """Copies the state `if_match` of an object within the store, and returns the copy's ETag. Atomic.

        Some stores ignore `if_match`. The ETag of an object that was uploaded in parts need not
        be that of its copy. Stores take 5 GB at most: Source: Amazon S3 API reference, "CopyObject". No answer is
        proof: `head` tells what is at `target`.

        Raises:
            ObjectMissingError: there is no object at `source`; permanent.
            PreconditionFailedError: it is in another state; permanent.
        """

    def delete(self, key: str) -> None:
        """Removes an object. Idempotent: success if it does not exist."""

    def list(self, prefix: str, *, after: str | None = None, limit: int = 1000, delimiter: str | None = None) -> Page:
        """One page of at most `limit` (1 to 1000) keys and prefixes that begin with `prefix` and come after `after`.

        `after` is what the page before returned, or any key.
        """

    def find_now(self) -> datetime | None:
        """The time of the store's clock, by which it dates objects; None if it does not tell. Whole seconds."""

    def lacks_room(self, size_bytes: int) -> bool:
        """True if the store is known to have no room for so many bytes more. False if that is unknown."""

    def supports_conditional_writes(self) -> bool:
        """True if the store honours `if_none_match` and `if_match`: found by trying, once, and remembered."""

    def rules_over_layers(self) -> Sequence[str]:
        """The names of the bucket's lifecycle rules that would delete layers of incremental backups.

        Empty where the store has no rules, or does not let us read them. Remembered for an hour.
        """

    def presign_get(self, key: str, *, ttl_s: int) -> SignedRequest:
        """Permits reading one object. Signing happens here, without a request; the object need not exist.

        Range and If-Match may be added to the request.
        """

    def presign_put(self, key: str, *, content_md5: str, size_bytes: int, ttl_s: int) -> SignedRequest:
        """Permits writing one object with exactly this MD5 and size."""

    def create_upload(self, key: str) -> str:
        """Begins a multipart upload and returns its id. Not idempotent: a repetition begins another one."""

    def presign_part(
        self, key: str, upload_id: str, number: int, *, content_md5: str, size_bytes: int, ttl_s: int
    ) -> SignedRequest:
        """Permits writing one part (numbered from 1) with exactly this MD5 and size.

        A part may be written again with the same bytes. All parts but the last have one size (R2 asks for it).
        """

    def complete_upload(self, key: str, upload_id: str, etags: Sequence[str]) -> str:
        """Joins the parts with these ETags, in order, into one object and returns its ETag. Atomic.

        After a lost answer, a repetition may find that the upload is gone: `ObjectMissingError` then says
        nothing about the object. `head` does.

        Raises:
            ObjectMissingError: there is no such upload (any more).
        """

    def abort_upload(self, key: str, upload_id: str) -> None:
        """Drops a multipart upload and its parts. Idempotent: success if it does not exist."""

    def list_uploads(self, prefix: str) -> Sequence[Upload]:
        """All unfinished multipart uploads of keys that begin with `prefix`."""


def exists(store: ObjectStore, key: str) -> bool:
    """Tells whether there is an object. Raises StorageError."""
    try:
        store.head(key)
    except ObjectMissingError:
        return False
    return True


def list_all(store: ObjectStore, prefix: str) -> Iterator[Listed]:
    """Every object under a prefix, page by page."""
    after: str | None = None
    while True:
        page = store.list(prefix, after=after)
        yield from page.objects
        after = page.after
        if after is None:
            return
