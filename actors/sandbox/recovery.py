"""Recovers a sandbox's directories from their checkpoints: after the loss of its node, or a sleep in the bucket.

A directory that cannot be recovered is never shown as an empty one, whatever the cause. The sandbox serves no calls,
and each call retries the recovery, until the directory is back or a person forgets it (`holdfast forget`). Failures of
the node, the bucket and the backup are treated alike, except that the error says whether a retry may help.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from actors.errors import (
    RETRYABLE,
    BackupExpiredError,
    BackupNotFoundError,
    BackupRestoreError,
    InvalidBackupConfigError,
    InvalidRequestError,
    SandboxUnavailableError,
)
from actors.faults import SENTENCES
from actors.logs import log
from actors.models import OperationKind, RestoreMode, RestoreOptions
from actors.node.archive_cache import ArchiveCache
from actors.sandbox.operations import Operations, Progress
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.unsaved import lost_with
from actors.state.node_record import Entry, RecoveryItem, RecoveryPlan
from storage.metadata import SandboxState

if TYPE_CHECKING:
    from actors.sandbox.restore import BackupRestoration

DIRECTORY_MISSING = "DIRECTORY_MISSING"
"""The reason in the error's context if a sandbox serves no calls because a directory could not be recovered."""
_NOT_BY_ITSELF = "It will not come back by itself."
_PUT_BACK = "Bring the object back, from a version or a copy of the bucket."
_NOT_BY_A_RETRY = {
    # the cause: (its sentence, what helps)
    "BACKUP_EXPIRED": ("its backup has expired", _NOT_BY_ITSELF),
    "BACKUP_NOT_FOUND": ("its backup is not in the bucket", _NOT_BY_ITSELF),
    "INVALID_BACKUP_CONFIG": ("its backup cannot be restored to that place", _NOT_BY_ITSELF),
    "CORRUPT_ARCHIVE": ("the bytes in the bucket are not those that were backed up", _PUT_BACK),
    "CORRUPT_METADATA": ("its backup's metadata cannot be read", _PUT_BACK),
    "TAMPERED_METADATA": ("its backup's metadata is not what this service has signed", _PUT_BACK),
    "UNSIGNED_METADATA": ("nobody has signed its backup", "Run `holdfast adopt {backup}`, and try again."),
    "NEWER_DOCUMENT": ("a later release has written its metadata", "Run that release, or a later one, on every node."),
}
"""Causes that lie in the bucket, not on the node: a retry alone fails again."""
_STORAGE_UNAVAILABLE = "STORAGE_UNAVAILABLE"
_COPY_ONLY = ("NAME_TOO_LONG", "NAME_REFUSED", "SIGNS_REFUSED", "NO_MOUNT_DRIVER")
"""Reasons after which the backup is restored by copy instead of overlay."""
_MAKES_NO_COPY = "PATH"
"""The reason after which a directory is restored by overlay instead of copy: inside an overlay, the fuse driver cannot
rename a directory that came from the archive."""
_PASSING = ("BAD_ARCHIVE", "DAMAGED_COPY", "TOOL_FAILED", "TOOL_KILLED", "OUT_OF_MEMORY", "NO_PROCESSES")
"""Reasons that may be gone a moment later."""
_OF_THE_COPY_HERE = ("BAD_ARCHIVE", "DAMAGED_COPY", "TOOL_FAILED")
"""Reasons after which the archive is fetched anew, since this node's copy may be damaged."""
_ANOTHER_LAYER = "LAYER_MISMATCH"
"""The reason of an overlay that can never be mounted again."""
_ASK_DOCTOR = "Try again; `holdfast doctor` on the node says what it lacks."
_TRIES = 3


class DirectoryRecovery:
    """The recovery of one sandbox. The caller holds the tree lock."""

    def __init__(
        self, sandbox: str, restored: RestoredDirectories, operations: Operations, cache: ArchiveCache
    ) -> None:
        self._sandbox = sandbox
        self._restored = restored
        self._operations = operations
        self._cache = cache
        self._causes: dict[str, str] = {}
        """The cause of each failed directory. Kept in memory too, since a full disk may prevent the record."""
        self._kept_unmounted = ""
        """The cause of the overlay that could not be mounted (`RestoredDirectories.unmounted`)."""

    def bring_back(self, restoration: BackupRestoration) -> None:
        """Restores the missing directories. Those that came back stay, whatever else fails.

        If a backup is lost or damaged, goes on to the next directory, so that all such failures are known at once. If
        the node or the bucket fails, stops: the next directory would fail too. A directory inside a missing one waits
        for the outer one, whose restore would replace it.

        Raises:
            SandboxUnavailableError: a directory is still missing.
        """
        tried: list[RecoveryItem] = []
        for wanted in self._restored.missing:
            if any(_lies_in(wanted.dir, outer.dir) for outer in tried):
                continue
            with self._operations.run(OperationKind.RECOVER, wanted.dir) as progress:
                cause = self._bring_one_back(wanted, restoration, progress)
            if cause is None:
                continue
            if cause == _STORAGE_UNAVAILABLE:
                raise SandboxUnavailableError(
                    "The sandbox could not be recovered: the bucket did not answer.",
                    hint="Try again; what was recovered already is kept.",
                    context={"outcome": "not_executed", "reason": cause},
                )
            tried.append(wanted)
            self._note(wanted, cause)
            if cause not in _NOT_BY_A_RETRY:
                break
        if tried:
            raise self.missing_error()

    def missing_error(self) -> SandboxUnavailableError:
        """The error of every call while a directory is missing. It names the first directory whose cause is known."""
        missing = self._restored.missing
        row = next((row for row in missing if self._cause(row)), missing[0])
        cause = self._cause(row)
        why, advice = _NOT_BY_A_RETRY.get(cause) or (SENTENCES.get(cause, "the node failed"), _ASK_DOCTOR)
        return SandboxUnavailableError(
            f"The directory {row.dir} could not be brought back: {why}.",
            hint=f"{advice.format(backup=row.backup_id)} To go on without: `holdfast forget {self._sandbox} {row.dir}`,"
            " or restore another there.",
            context={
                "outcome": "not_executed",
                "reason": DIRECTORY_MISSING,
                "dir": row.dir,
                "backup": row.backup_id,
                "cause": cause,
                "missing": [other.dir for other in missing],
                RETRYABLE: cause not in _NOT_BY_A_RETRY,
            },
        )

    def unmounted_error(self, entry: Entry, cause: str, *, in_bucket: str | None) -> SandboxUnavailableError:
        """The error of every call while an overlay of a sandbox with files on this node cannot be mounted.

        `in_bucket` is set if the archive is damaged on the node and could not be fetched anew: the cause of that.
        """
        self._kept_unmounted = cause
        log.error("directory_missing", sandbox=self._sandbox, dir=entry.dir, backup=entry.backup_id, cause=cause)
        sentence, advice = SENTENCES.get(cause, "the node failed"), _ASK_DOCTOR
        if in_bucket is not None:
            why, advice = _NOT_BY_A_RETRY[in_bucket]
            sentence = f"{sentence}, and {why}"
        return SandboxUnavailableError(
            f"The restored directory {entry.dir} could not be mounted: {sentence}. What was written to it is kept.",
            hint=f"{advice.format(backup=entry.backup_id)} To go on without it, and without what was written to it: "
            f"`holdfast forget {self._sandbox} {entry.dir}`.",
            context={
                "outcome": "not_executed",
                "reason": DIRECTORY_MISSING,
                "dir": entry.dir,
                "backup": entry.backup_id,
                "cause": cause,
                "missing": [entry.dir],
                RETRYABLE: cause != _ANOTHER_LAYER and in_bucket is None,
            },
        )

    def is_known_missing(self, directory: str) -> bool:
        """True if the directory could not be recovered or mounted in the last attempt, or lies in such a directory."""
        unmounted = self._restored.unmounted
        if unmounted is not None and unmounted.dir == directory:
            return True
        missing = self._restored.missing
        failed = [row.dir for row in missing if self._cause(row)]
        return any(row.dir == directory for row in missing) and any(
            directory == other or _lies_in(directory, other) for other in failed
        )

    def forget(self, directories: Sequence[str], *, forgotten_before: Collection[str]) -> list[RecoveryItem]:
        """Forgets missing directories, all or none; returns those that were not forgotten before.

        Raises:
            InvalidRequestError: one of them is not missing; nothing was changed.
            OSError: the record could not be written; nothing was changed.
        """
        wanted = {directory for directory in directories if self.is_known_missing(directory)}
        present = [
            directory for directory in directories if directory not in wanted and directory not in forgotten_before
        ]
        if present:
            raise InvalidRequestError(
                f"{', '.join(present)}: not missing, so there is nothing to give up.",
                hint="`holdfast inspect` names what is missing, under `recovery`.",
                context={"dirs": present},
            )
        unmounted = self._restored.unmounted
        forgotten = self._restored.forget_missing(
            [row for row in self._restored.missing if row.dir in wanted],
            unmounted_for=self._kept_unmounted if unmounted is not None and unmounted.dir in wanted else None,
        )
        for row in forgotten:
            log.warning("directory_given_up", sandbox=self._sandbox, dir=row.dir, backup=row.backup_id, cause=row.error)
        return forgotten

    def settled_by(self, options: RestoreOptions) -> dict[str, str | None]:
        """The missing directories that a restore would replace, each with its error; None for one that it brings back.

        Empty if the restore goes into a missing directory, whose recovery would replace it.
        """
        missing = self._restored.missing
        if any(_lies_in(options.dir, row.dir) for row in missing):
            return {}
        return {
            row.dir: None if (row.dir, row.backup_id) == (options.dir, options.id) else row.kept_away_by
            for row in missing
            if row.dir == options.dir or _lies_in(row.dir, options.dir)
        }

    def _cause(self, row: RecoveryItem) -> str:
        return self._causes.get(row.dir) or row.error or ""

    def _note(self, wanted: RecoveryItem, cause: str) -> None:
        self._causes[wanted.dir] = cause
        log.error("directory_missing", sandbox=self._sandbox, dir=wanted.dir, backup=wanted.backup_id, cause=cause)
        try:
            self._restored.note_failure(wanted, cause)
        except OSError as e:  # the disk may be full; the directory stays missing all the same
            log.warning("cause_not_recorded", sandbox=self._sandbox, error=type(e).__name__)

    def _bring_one_back(self, wanted: RecoveryItem, restoration: BackupRestoration, progress: Progress) -> str | None:
        """Restores one directory. Returns the cause if that failed, otherwise None."""
        options = RestoreOptions(id=wanted.backup_id, dir=wanted.dir, mode=RestoreMode(wanted.mode))
        try:
            with self._restored.recovering({wanted.dir: None}):
                try:
                    self._restore_patiently(restoration, options, progress)
                except BackupRestoreError as e:
                    other = _other_mode(options.mode, str(e.context.get("reason")))
                    if other is None:
                        raise
                    self._restore_patiently(restoration, options.model_copy(update={"mode": other}), progress)
        except (BackupNotFoundError, BackupExpiredError, InvalidBackupConfigError) as e:
            return e.code
        except BackupRestoreError as e:
            return str(e.context.get("reason"))
        return None

    def _restore_patiently(self, restoration: BackupRestoration, options: RestoreOptions, progress: Progress) -> None:
        """Restores, and retries after causes that may pass: a tool may have been killed for want of memory."""
        for last in [False] * (_TRIES - 1) + [True]:
            try:
                restoration.restore(options, progress)
                return
            except BackupRestoreError as e:
                reason = e.context.get("reason")
                if last or reason not in _PASSING:
                    raise
                if reason in _OF_THE_COPY_HERE:
                    self._cache.forget(options.id)


def recovery_plan(state: SandboxState, lost_node: str | None) -> RecoveryPlan:
    """The plan of a recovery that begins now: the directories that have a checkpoint, and the roots with losses."""
    directories = tuple(
        RecoveryItem(
            dir=row.dir,
            backup_id=row.backup_id,
            taken_at=row.taken_at,
            mode="copy" if row.mode == "copy" else "overlay",
        )
        for row in state.checkpoints
    )
    lost = tuple(lost_with(state)) if lost_node is not None else ()
    return RecoveryPlan(at=datetime.now(UTC), lost_node=lost_node, directories=directories, lost=lost)


def _other_mode(mode: RestoreMode, reason: str) -> RestoreMode | None:
    if mode is RestoreMode.OVERLAY and reason in _COPY_ONLY:
        return RestoreMode.COPY
    if mode is RestoreMode.COPY and reason == _MAKES_NO_COPY:
        return RestoreMode.OVERLAY
    return None


def _lies_in(directory: str, outer: str) -> bool:
    return directory.startswith(outer.rstrip("/") + "/")
