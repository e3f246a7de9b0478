"""Every error that leaves `actors`, and therefore every error a caller can meet.

    HoldfastError
    ├── InvalidRequestError             the request itself is wrong; nothing was changed
    │   └── InvalidBackupConfigError    the same, for a backup or a restore (also: missing settings)
    ├── UnauthorizedError               no API key, or not one of this service
    ├── RequestTooLargeError            a body beyond the limit
    ├── BackupNotFoundError             no such backup for this tenant
    ├── BackupExpiredError              the backup's time to live is over
    ├── BackupCreateError               the archive could not be made or stored; nothing is left of it
    ├── BackupRestoreError              the restore failed; the directory is as it was
    ├── BackupNotListedError            the backup's files cannot be listed
    ├── OperationCancelledError         somebody cancelled the operation; nothing was changed
    ├── SandboxNotFoundError            a read of a sandbox that was never used
    ├── SandboxExistsError              a fork into a sandbox that is in use already; nothing was changed
    ├── FileNotFoundInSandboxError      no such file
    ├── CommandNotFoundError            no such command that takes input
    ├── InputTakenError                 somebody else sends the command's input, or has sent it
    ├── PathForbiddenError              a path outside the writable roots, or one that a command may not enter
    ├── NotARegularFileError            a directory, socket or device where a file is needed
    ├── NoSpaceError                    the node's disk, or the bucket, is full
    ├── ExecError                       a command was ended from outside: by one of these
    │   ├── ExecTimeoutError            it ran longer than its limit
    │   ├── ExecOutputLimitError        it wrote more than its limit
    │   ├── ExecStoppedError            a restore, a cancel or the sandbox's end stopped it
    │   └── MountLostError              what its directory was mounted from died, or was damaged
    ├── TooManyCallsError               as many calls wait for the sandbox as may; nothing was changed
    ├── StorageUnavailableError         the bucket did not answer; the context says whether anything was changed
    ├── DocumentDamagedError            a document in the bucket cannot be used; nothing was changed
    ├── SandboxUnavailableError         the sandbox cannot serve the call now: the outcome may be unknown
    │   ├── TurnedAwayError             the call was not executed, and the client sends it again: for one of these
    │   │   ├── ActorBeingMadeError     another call is making the sandbox's actor
    │   │   ├── ActorLeavingError       the sandbox's actor is leaving
    │   │   ├── SandboxMovingError      the sandbox moves off a node that is being drained
    │   │   └── SupersededError         another actor has taken the sandbox over
    │   ├── FilesElsewhereError         the sandbox's files are on another node
    │   └── SandboxInUseError           a hand-over that was not forced has met a call
    ├── ServiceUnavailableError         no Holdfast service answers in this cluster
    └── InternalError                   a defect of Holdfast's own

A command that exits non-zero is a result, not an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

Context = Mapping[str, Any]

INPUT_CUT_OFF = "INPUT_CUT_OFF"
"""The reason in the context of the error of a command that was stopped because the rest of its input will not come."""
DRAINING = "DRAINING"
"""The reason in the context of an error that a node causes which is being drained."""
RETRYABLE = "retryable"
"""In the context of an error whose circumstance says, and not its class alone, whether a retry may help."""
_AGAIN = "Try again."


class HoldfastError(Exception):
    """The root. Carries what a caller needs across Ray and HTTP, and survives pickling.

    Attributes:
        code: stable, machine-readable name of the circumstance.
        retryable: the same call may succeed later, and repeating it is safe.
        message: one sentence for a person; holds no secret, URL or node path.
        hint: what to do next, if that is known.
        context: small JSON values that a program may want (the sandbox, the backup, the limit).
    """

    code: ClassVar[str] = "INTERNAL"
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, *, hint: str | None = None, context: Context | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.context: dict[str, Any] = dict(context or {})

    @property
    def may_be_retried(self) -> bool:
        """True if the same call may succeed later: the class says so, and nothing in the context denies it."""
        return self.retryable and self.context.get(RETRYABLE, True) is True

    def __reduce__(self) -> tuple[Any, ...]:
        return (_rebuild, (type(self), self.message, self.hint, self.context))


def _rebuild(cls: type[HoldfastError], message: str, hint: str | None, context: dict[str, Any]) -> HoldfastError:
    return cls(message, hint=hint, context=context)


class InvalidRequestError(HoldfastError):
    """The request is malformed or refers to something that cannot be; nothing was changed."""

    code = "INVALID_REQUEST"


class InvalidBackupConfigError(InvalidRequestError):
    """A backup or restore was asked for with bad options, or the bucket's settings are missing."""

    code = "INVALID_BACKUP_CONFIG"


class UnauthorizedError(HoldfastError):
    """The request carries no API key, or one that this service did not issue."""

    code = "UNAUTHORIZED"


class RequestTooLargeError(HoldfastError):
    """The body of the request is larger than the service accepts."""

    code = "REQUEST_TOO_LARGE"


class BackupNotFoundError(HoldfastError):
    """The backup's metadata or archive is not in the bucket, or belongs to another tenant."""

    code = "BACKUP_NOT_FOUND"


class BackupExpiredError(HoldfastError):
    """The backup's time to live has elapsed, or will within the next 60 seconds."""

    code = "BACKUP_EXPIRED"


class BackupCreateError(HoldfastError):
    """The archive could not be made, verified or stored; no part of it was kept. `context.reason` says why."""

    code = "BACKUP_CREATE_FAILED"


class BackupRestoreError(HoldfastError):
    """The backup could not be restored; the directory is as it was before. `context.reason` says why."""

    code = "BACKUP_RESTORE_FAILED"


class BackupNotListedError(HoldfastError):
    """The backup's files cannot be listed: it has no listing, and an archive of it cannot be read in place."""

    code = "BACKUP_NOT_LISTED"


class OperationCancelledError(HoldfastError):
    """The operation was cancelled before it took effect."""

    code = "OPERATION_CANCELLED"


class SandboxNotFoundError(HoldfastError):
    """Nothing is known of a sandbox of this name; reading does not create one."""

    code = "SANDBOX_NOT_FOUND"


class SandboxExistsError(HoldfastError):
    """A sandbox that a fork was to make exists already, and not from this backup; nothing was changed."""

    code = "SANDBOX_EXISTS"


class FileNotFoundInSandboxError(HoldfastError):
    """The path does not exist in the sandbox."""

    code = "FILE_NOT_FOUND"


class CommandNotFoundError(HoldfastError):
    """No command of this id takes input in the sandbox: it was not started for that, or its actor has died."""

    code = "COMMAND_NOT_FOUND"


class InputTakenError(HoldfastError):
    """The input of the command was sent already, or is being sent by another call; nothing was changed."""

    code = "INPUT_TAKEN"


class PathForbiddenError(HoldfastError):
    """The path is not at or under one of the writable roots, or the command's user may not enter its directory."""

    code = "PATH_FORBIDDEN"


class NotARegularFileError(HoldfastError):
    """The path names no regular file where one is needed, or a restored directory that would have to be removed."""

    code = "NOT_A_REGULAR_FILE"


class NoSpaceError(HoldfastError):
    """The node's disk, or the bucket, is full; what was being written has been removed."""

    code = "NO_SPACE"


class ExecError(HoldfastError):
    """A command was ended from outside; each kind says by what. No call gives this code by itself."""

    code = "EXEC_FAILED"


class ExecTimeoutError(ExecError):
    """The command ran longer than its time limit and was killed."""

    code = "EXEC_TIMEOUT"


class ExecOutputLimitError(ExecError):
    """The command wrote more than the output limit and was killed."""

    code = "EXEC_OUTPUT_LIMIT"


class ExecStoppedError(ExecError):
    """The command or the transfer was stopped from outside: by a restore, a cancel or the sandbox's end.

    A command is stopped, too, if its input is cut off.
    """

    code = "EXEC_STOPPED"


class MountLostError(ExecError):
    """A daemon died under a restored directory, or its archive was damaged; it is mounted anew, with its writes."""

    code = "MOUNT_LOST"
    retryable = True


class TooManyCallsError(HoldfastError):
    """As many calls wait for one sandbox, or are served for it or its tenant, as may; nothing was changed."""

    code = "TOO_MANY_REQUESTS"
    retryable = True


class StorageUnavailableError(HoldfastError):
    """The bucket did not answer, or refused to; nothing was changed, unless `context.outcome` is "unknown"."""

    code = "STORAGE_UNAVAILABLE"
    retryable = True


class DocumentDamagedError(HoldfastError):
    """A document in the bucket is damaged, was tampered with, or is of a later release; `context.reason` says which."""

    code = "DOCUMENT_DAMAGED"


class SandboxUnavailableError(HoldfastError):
    """The sandbox cannot serve the call now; `context.outcome` is "unknown" or "not_executed".

    Its actor went away, its node fails or is being drained, or a directory is missing: `context.reason` says which.
    """

    code = "SANDBOX_UNAVAILABLE"
    retryable = True


class TurnedAwayError(SandboxUnavailableError):
    """The call was turned away before it was executed; the client's side sends it again. Each kind says why."""

    sentence: ClassVar[str] = "The sandbox takes no calls at this moment."
    reason: ClassVar[str | None] = None

    def __init__(
        self, message: str | None = None, *, hint: str | None = _AGAIN, context: Context | None = None
    ) -> None:
        if context is None:
            context = {"outcome": "not_executed", **({"reason": self.reason} if self.reason else {})}
        super().__init__(message or self.sentence, hint=hint, context=context)


class ActorBeingMadeError(TurnedAwayError):
    """Another call is making the sandbox's actor."""

    sentence = "The sandbox's actor is being made."


class ActorLeavingError(TurnedAwayError):
    """The sandbox's actor is about to leave, and serves nothing any more."""

    sentence = "The sandbox's actor is leaving."


class SandboxMovingError(TurnedAwayError):
    """The sandbox is being handed over, because its node is being drained. The client waits for it elsewhere."""

    sentence = "The sandbox's node is being drained, and the sandbox moves to another one."
    reason = DRAINING


class SupersededError(TurnedAwayError):
    """Another actor has taken the sandbox over; this one must write nothing any more, and ends."""

    sentence = "Another actor has taken the sandbox over."
    reason = "SUPERSEDED"


class FilesElsewhereError(SandboxUnavailableError):
    """The sandbox's files are on another node, so an actor on this one cannot serve it; nothing was executed."""


class SandboxInUseError(SandboxUnavailableError):
    """A hand-over that was not forced has met a call; the sandbox stays where it is."""


class ServiceUnavailableError(HoldfastError):
    """No Holdfast service runs in the Ray cluster that this process is connected to."""

    code = "SERVICE_UNAVAILABLE"
    retryable = True


class InternalError(HoldfastError):
    """A defect of Holdfast's own. Please report the `request_id`; the details are in the service's log."""

    code = "INTERNAL"
