"""Every error that leaves `storage`.

    StorageError                        anything the store answered that has no name of its own
    ├── ObjectMissingError              no such object (or multipart upload, or backup of this tenant)
    ├── PreconditionFailedError         If-Match or If-None-Match did not hold; somebody else was first
    ├── AccessRefusedError              the keys are wrong, or may not do this
    │   └── SignatureExpiredError       the signed URL was too old when it arrived; a fresh one may work
    ├── BucketMissingError              the bucket itself does not exist
    ├── StoreUnavailableError           5xx, throttling, timeouts, resets: outcome unknown, may be repeated
    │   ├── StoreFullError              it has no room, or the quota is used up; may be repeated once there is room
    │   └── TornReadError               it answered with a content that is not the one its headers tell of
    ├── IntegrityError                  the bytes are not those that were recorded
    ├── DocumentError                   a document is in the bucket, and cannot be used
    │   ├── CorruptMetadataError        it is damaged
    │   ├── NewerDocumentError          a later release has written it
    │   ├── TamperedMetadataError       none of our keys has signed its content
    │   └── UnsignedMetadataError       nobody has signed it
    ├── LayersUnusableError             no incremental backup can be made on this one now; make a full one
    ├── TransferCancelledError          somebody cancelled the transfer; nothing of it is left
    ├── NotListedError                  a backup has no listing, and an archive of it cannot be listed
    ├── InvalidCursorError              a page was asked for with a cursor this package did not issue
    └── LifecycleUnsupportedError       the store has no lifecycle rules

Messages name the operation, the bucket and the object. They never hold a URL, an access key or a signature.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar


class StorageError(Exception):
    """The root. Its fields carry what a caller needs, since a `__cause__` does not cross process boundaries.

    Attributes:
        retryable: the same call may succeed later, and repeating it is safe.
        operation: the operation, in the words of `ObjectStore`.
        bucket: the bucket's name, where one is known.
        key: the object's key (or the prefix that was listed), where there is one.
        detail: the other side's answer, in a few words.
        hint: advice to the operator.
    """

    retryable: ClassVar[bool] = False
    summary: ClassVar[str] = "The store refused the request"
    default_hint: ClassVar[str | None] = None

    def __init__(
        self,
        operation: str,
        *,
        bucket: str | None = None,
        key: str | None = None,
        detail: str | None = None,
        hint: str | None = None,
    ) -> None:
        self.operation = operation
        self.bucket = bucket
        self.key = key
        self.detail = detail
        self.hint = hint or self.default_hint
        super().__init__(self._sentence())

    def _sentence(self) -> str:
        where = [f"operation {self.operation}"]
        where += [f"{name} {value!r}" for name, value in (("bucket", self.bucket), ("object", self.key)) if value]
        return f"{self.summary} ({', '.join(where)}){f': {self.detail}' if self.detail else '.'}"

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.operation, self.bucket, self.key, self.detail, self.hint))


E = TypeVar("E", bound=StorageError)


def _rebuild(
    cls: type[E], operation: str, bucket: str | None, key: str | None, detail: str | None, hint: str | None
) -> E:
    return cls(operation, bucket=bucket, key=key, detail=detail, hint=hint)


class ObjectMissingError(StorageError):
    """The object, multipart upload or backup does not exist, or belongs to another tenant."""

    summary = "No such object"


class PreconditionFailedError(StorageError):
    """A conditional request found another state of the object than the caller expected."""

    summary = "The object is not in the expected state"


class AccessRefusedError(StorageError):
    """The store does not know the access key, or does not let it do this."""

    summary = "The store refused access"
    default_hint = "Check the access key, the secret, and that they may read, write, list and delete in this bucket."


class SignatureExpiredError(AccessRefusedError):
    """A signed request arrived after its time; it had no effect and may be signed anew."""

    retryable = True
    summary = "The signature had expired"
    default_hint = "If this lasts, compare this node's clock with the store's."


class BucketMissingError(StorageError):
    """The bucket does not exist at this endpoint."""

    summary = "No such bucket"
    default_hint = "Create the bucket, or correct its name or the endpoint in the settings."


class StoreUnavailableError(StorageError):
    """The store failed, throttled or did not answer; whether the request took effect is unknown.

    Attributes:
        retry_after_s: the pause that the store asks for, in seconds; pickling drops it.
    """

    retry_after_s: float | None = None

    retryable = True
    summary = "The store did not answer"
    default_hint = "Try again later; if this lasts, check the endpoint and the network."


class StoreFullError(StoreUnavailableError):
    """The store has no room for what was to be written, or the bucket's quota is used up."""

    summary = "The store is full"
    default_hint = "Make room: delete backups (`holdfast delete`, `holdfast gc`), or enlarge the disk or the quota."


class TornReadError(StoreUnavailableError):
    """The body of an answer is not the content that its headers tell of: it was replaced while it was read."""

    summary = "The store's answer is torn"


class IntegrityError(StorageError):
    """The bytes stored or received are not those that were recorded."""

    summary = "The bytes are not those that were recorded"


class DocumentError(StorageError):
    """A document is in the bucket, but its content cannot be used."""

    summary = "The document cannot be used"


class CorruptMetadataError(DocumentError):
    """A metadata or state document is damaged, or is another backup's or sandbox's."""

    summary = "The document cannot be read"
    default_hint = "`holdfast gc` names every damaged document; docs/design/ownership.md says what to do about each."


class NewerDocumentError(DocumentError):
    """A later release has written the document; this release neither replaces nor deletes it."""

    summary = "A later release has written the document"
    default_hint = "Run that release, or a later one, on every node."


class TamperedMetadataError(DocumentError):
    """The signature of a backup's metadata is wrong, or was removed: somebody other than the service has changed it."""

    summary = "The metadata is not what the service has signed"
    default_hint = (
        "Find out who can write to the bucket. Where the signing key was changed, give the earlier one in"
        " HOLDFAST_OLD_SIGNING_KEYS."
    )


class UnsignedMetadataError(DocumentError):
    """A backup's metadata carries no signature: another program, such as Cloudflare's SDK, has written it."""

    summary = "Nobody has signed the metadata"
    default_hint = "Run `holdfast adopt` with the backup's id, or set HOLDFAST_RESTORE_UNSIGNED=true."


class LayersUnusableError(StorageError):
    """No incremental backup can be made on a backup now, or it is doubtful whether one can; make a full one."""

    summary = "No incremental backup can be made"


class TransferCancelledError(StorageError):
    """The transfer was cancelled before it was complete; nothing of it was kept."""

    summary = "The transfer was cancelled"


class NotListedError(StorageError):
    """A backup has no listing of its files, and its archive's own tables cannot be read in place of one."""

    summary = "The backup's files cannot be listed"
    default_hint = "Restore the backup to see what is in it."


class InvalidCursorError(StorageError):
    """The cursor of a page request is not one that an earlier page returned."""

    summary = "The cursor is not valid"
    default_hint = "Start again without a cursor."


class LifecycleUnsupportedError(StorageError):
    """The store offers no lifecycle rules."""

    summary = "This store has no lifecycle rules"
    default_hint = "Run the collection of expired and orphaned objects regularly instead."
