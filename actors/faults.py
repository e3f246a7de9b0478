"""Translates errors of storage and of the node into errors that callers know, by one table."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager

from actors.errors import (
    BackupCreateError,
    BackupNotFoundError,
    BackupNotListedError,
    BackupRestoreError,
    DocumentDamagedError,
    HoldfastError,
    InternalError,
    InvalidRequestError,
    NoSpaceError,
    OperationCancelledError,
    SandboxUnavailableError,
    StorageUnavailableError,
)
from actors.logs import log
from actors.node.causes import brief
from actors.node.errors import (
    ArchiveError,
    ArchiveRefusedError,
    BoxError,
    CgroupError,
    CorruptRecordError,
    DamagedCopyError,
    DriverUnavailableError,
    LayerMismatchError,
    MountError,
    NodeError,
    NoMemoryLeftError,
    NoProcessesLeftError,
    NoRoomToMountError,
    NoSpaceLeftError,
    PathError,
    ReadOnlyDiskError,
    ToolError,
    ToolKilledError,
    ToolMissingError,
    ToolTimeoutError,
    TreeError,
)
from storage.errors import (
    AccessRefusedError,
    BucketMissingError,
    CorruptMetadataError,
    DocumentError,
    IntegrityError,
    InvalidCursorError,
    LayersUnusableError,
    LifecycleUnsupportedError,
    NewerDocumentError,
    NotListedError,
    ObjectMissingError,
    PreconditionFailedError,
    StorageError,
    StoreFullError,
    StoreUnavailableError,
    TamperedMetadataError,
    TransferCancelledError,
    UnsignedMetadataError,
)

REASONS: dict[type[Exception], tuple[str, str]] = {
    # class: (reason, sentence). In the order of the two error trees, but a class stands after its subclasses.
    ObjectMissingError: ("OBJECT_MISSING", "an object is not in the bucket"),
    PreconditionFailedError: ("CONFLICT", "somebody else wrote the same object"),
    AccessRefusedError: ("ACCESS_REFUSED", "the bucket refused the keys"),
    BucketMissingError: ("BUCKET_MISSING", "the bucket does not exist"),
    StoreFullError: ("STORE_FULL", "the bucket has no room left"),
    StoreUnavailableError: ("STORAGE_UNAVAILABLE", "the bucket did not answer"),
    IntegrityError: ("CORRUPT_ARCHIVE", "the archive's bytes are not those that were recorded"),
    CorruptMetadataError: ("CORRUPT_METADATA", "a document in the bucket is damaged"),
    NewerDocumentError: ("NEWER_DOCUMENT", "a later release has written a document in the bucket"),
    TamperedMetadataError: ("TAMPERED_METADATA", "the backup's metadata is not what this service has signed"),
    UnsignedMetadataError: ("UNSIGNED_METADATA", "nobody has signed the backup's metadata"),
    DocumentError: ("CORRUPT_METADATA", "a document in the bucket cannot be used"),
    NotListedError: ("NOT_LISTED", "the backup's files cannot be listed"),
    LayersUnusableError: ("LAYERS_UNUSABLE", "no incremental backup could be made"),
    StorageError: ("STORAGE_FAILED", "the bucket failed"),
    BoxError: ("BOX_FAILED", "no box could be built on the node"),
    ToolMissingError: ("TOOL_MISSING", "a tool is not installed on the node"),
    ToolTimeoutError: ("TIMEOUT", "it took too long"),
    ToolKilledError: ("TOOL_KILLED", "a tool of the node was killed"),
    NoMemoryLeftError: ("OUT_OF_MEMORY", "the node has no memory left"),
    NoProcessesLeftError: ("NO_PROCESSES", "the node can start no more processes"),
    ToolError: ("TOOL_FAILED", "a tool of the node failed"),
    NoSpaceLeftError: ("NO_SPACE", "the node's disk is full"),
    ReadOnlyDiskError: ("READ_ONLY", "the node's disk is mounted read-only"),
    PathError: ("PATH", "the path cannot be used"),
    TreeError: ("TREE_REFUSED", "the directory cannot be archived"),
    ArchiveError: ("BAD_ARCHIVE", "the archive is not what it should be"),
    DamagedCopyError: ("DAMAGED_COPY", "the node's copy of the archive is damaged"),
    CgroupError: ("PROCESSES_STUCK", "the sandbox's processes could not be paused or ended"),
    NoRoomToMountError: ("NO_SPACE", "the node's disk is full"),
    MountError: ("MOUNT_FAILED", "the archive could not be mounted"),
    DriverUnavailableError: ("NO_MOUNT_DRIVER", "the node cannot mount archives"),
    ArchiveRefusedError: ("SIGNS_REFUSED", "the node's mount driver would show some of the files wrongly"),
    LayerMismatchError: ("LAYER_MISMATCH", "the layer was made with another archive or driver"),
    CorruptRecordError: ("CORRUPT_RECORD", "the sandbox's record on the node cannot be read"),
    NodeError: ("NODE_FAILED", "the node failed"),
    OSError: ("NODE_FAILED", "the node failed"),
}

_NUMBERED = {
    errno.ENOSPC: NoSpaceLeftError,
    errno.EDQUOT: NoSpaceLeftError,
    errno.EROFS: ReadOnlyDiskError,
    errno.ENOMEM: NoMemoryLeftError,
    errno.EAGAIN: NoProcessesLeftError,  # from fork(2) and pthread_create(3)
}

_SAID_TO_CALLERS = (TreeError, PathError)
"""Errors whose message is about the caller's own tree, so callers may see it as it is."""
_LOGGED = (StorageError, TreeError, PathError, ArchiveError, ToolError, BoxError)
_HINTS_SAID_TO_CALLERS = (StorageError, TreeError, DriverUnavailableError, ArchiveRefusedError, BoxError)


def reason_of(error: Exception) -> tuple[str, str]:
    """The reason and the sentence for an error of storage or of the node."""
    if isinstance(error, _SAID_TO_CALLERS):
        return REASONS[type(error)][0] if type(error) in REASONS else "PATH", str(error).rstrip(".")
    if isinstance(error, OSError) and error.errno in _NUMBERED:
        return REASONS[_NUMBERED[error.errno]]
    for kind, said in REASONS.items():
        if isinstance(error, kind):
            return said
    raise LookupError(f"no reason is known for {type(error).__name__}")


SENTENCES: dict[str, str] = dict(REASONS.values())
"""The sentence for each reason."""


@contextmanager
def starvation_told() -> Iterator[None]:
    """Raises Python's errors for a missing thread or memory in the block as the OSError behind them."""
    try:
        yield
    except MemoryError:
        raise OSError(errno.ENOMEM, "no memory") from None
    except RuntimeError as e:
        if "can't start new thread" not in str(e):
            raise
        raise OSError(errno.EAGAIN, "no thread") from None


@contextmanager
def failing_as(kind: type[BackupCreateError] | type[BackupRestoreError], verb: str) -> Iterator[None]:
    """Raises errors of storage and of the node in the block as `kind`. Details go to the log, not to the caller."""
    try:
        with starvation_told():
            yield
    except TransferCancelledError:
        raise OperationCancelledError("The operation was cancelled.") from None
    except (StorageError, NodeError, OSError) as e:
        reason, sentence = reason_of(e)
        log.warning("operation_failed", verb=verb, reason=reason, error=type(e).__name__, detail=_loggable(e))
        raise kind(
            f"The backup could not be {verb}: {sentence}.",
            hint=getattr(e, "hint", None) if isinstance(e, _HINTS_SAID_TO_CALLERS) else None,
            context={"reason": reason},
        ) from None


@contextmanager
def unavailable_unless(sandbox: str, done: str, *, outcome: str, hint: str = "Try again.") -> Iterator[None]:
    """Raises errors of the node and of storage in the block as SandboxUnavailableError. Details go to the log."""
    try:
        with starvation_told():
            yield
    except (NodeError, OSError, StorageError) as e:
        reason, sentence = reason_of(e)
        if isinstance(e, CorruptRecordError) and e.hint:
            hint = e.hint
        event = f"sandbox_not_{done.replace(' ', '_')}"
        log.error(event, sandbox=sandbox, reason=reason, error=type(e).__name__, detail=_loggable(e))
        raise SandboxUnavailableError(
            f"The sandbox could not be {done}: {sentence}.",
            hint=hint,
            context={"outcome": outcome, "reason": reason},
        ) from None


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Raises errors of storage in the block as errors of a read or a deletion."""
    try:
        yield
    except ObjectMissingError:
        raise BackupNotFoundError(f"There is no {what}.") from None
    except InvalidCursorError:
        raise InvalidRequestError("The cursor is not one that this service gave out.") from None
    except NotListedError as e:
        log.warning("backup_not_listed", detail=_loggable(e))
        raise BackupNotListedError(f"The backup's files cannot be listed: {e.detail}.", hint=e.hint) from None
    except LifecycleUnsupportedError as e:
        raise InvalidRequestError("The store has no lifecycle rules.", hint=e.hint) from None
    except StoreFullError as e:
        reason, sentence = reason_of(e)
        raise NoSpaceError(f"Nothing was changed: {sentence}.", hint=e.hint, context={"reason": reason}) from None
    except StoreUnavailableError:
        raise StorageUnavailableError("The bucket did not answer; nothing was changed.") from None
    except DocumentError as e:
        raise damaged(e) from None
    except StorageError as e:
        reason, sentence = reason_of(e)
        log.warning("storage_failed", reason=reason, detail=_loggable(e))
        raise storage_error(sentence, reason, e.hint) from None


def damaged(error: DocumentError, *, hint: str | None = None) -> DocumentDamagedError:
    """The error of a call that cannot be served because a document in the bucket is damaged; nothing was changed."""
    reason, sentence = reason_of(error)
    log.error("document_damaged", reason=reason, document=error.key, detail=_loggable(error))
    return DocumentDamagedError(
        f"{sentence[:1].upper()}{sentence[1:]}.",
        hint=hint or error.hint,
        context={"reason": reason, "document": error.key, "outcome": "not_executed"},
    )


def storage_error(sentence: str, reason: str, hint: str | None) -> HoldfastError:
    """The error for a bucket that answers, but not as it should."""
    return InternalError(f"The bucket cannot be used: {sentence}.", hint=hint, context={"reason": reason})


def _loggable(error: Exception) -> str:
    """The text for the log. Errors of the node may name paths, so they are shortened, or only their class is named."""
    if isinstance(error, _LOGGED):
        return str(error)
    if isinstance(error, MountError):
        return brief(error.message)
    if isinstance(error, OSError) and error.errno is not None:
        return f"{type(error).__name__}: {os.strerror(error.errno)}"
    return type(error).__name__
