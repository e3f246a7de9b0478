"""The mailbox's operations on a sandbox that stays: backup, restore, and the forgetting of missing directories."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from actors.errors import SandboxUnavailableError
from actors.faults import unavailable_unless
from actors.models import (
    BackupOptions,
    DirectoryBackup,
    ForgetOptions,
    ForgetResult,
    OperationKind,
    RestoreBackupResult,
    RestoreMode,
    RestoreOptions,
)
from actors.node.errors import NodeError
from actors.sandbox.operations import Operations
from actors.sandbox.protocols import Protocols
from actors.sandbox.recovery import DIRECTORY_MISSING
from actors.sandbox.residency import Residency
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.sandbox_recovery import SandboxRecovery
from actors.sandbox.steps import RestoreStep, step
from actors.state.changes import after_restore
from actors.state.node_record import Entry
from actors.state.ownership import Ownership


@dataclass(frozen=True, slots=True, kw_only=True)
class Mailbox:
    """The operations of one sandbox's mailbox. They come one at a time."""

    sandbox: str
    operations: Operations
    protocols: Protocols
    residency: Residency
    restored: RestoredDirectories
    ownership: Ownership
    recovery: SandboxRecovery
    look: Callable[[], None]
    """Notes which files are in no backup."""
    on_backup: Callable[[], None]
    """Called after a backup if the sandbox has a retention policy."""

    def create_backup(self, options: BackupOptions, *, idempotency_key: str | None = None) -> DirectoryBackup:
        """See `SandboxCalls.create_backup`."""
        creation = self.protocols.creation()
        self.residency.wake()
        with self.operations.run(OperationKind.BACKUP, options.dir) as progress:
            handle = creation.create(options, progress, idempotency_key=idempotency_key)
        self.look()
        state = self.ownership.state
        if state is not None and state.retention is not None:
            self.on_backup()
        return handle

    def restore_backup(self, options: RestoreOptions) -> RestoreBackupResult:
        """See `SandboxCalls.restore_backup`."""
        self.protocols.check_configured()
        try:
            self.residency.wake_to_change()
        except SandboxUnavailableError as e:
            if e.context.get("reason") != DIRECTORY_MISSING:
                raise
            result = self._restore_instead(options)
            if result is None:
                raise
            return result
        return self._restore(options)

    def forget(self, options: ForgetOptions) -> ForgetResult:
        """See `SandboxCalls.forget`."""
        self._find_out_what_is_missing(options.dirs)
        with self.residency.held(), unavailable_unless(self.sandbox, "changed", outcome="unknown"):
            forgotten = self.recovery.forget(options.dirs)
            self.residency.note_awake()
        return ForgetResult(forgotten=forgotten)

    def _restore(self, options: RestoreOptions, *, is_held: bool = False) -> RestoreBackupResult:
        """Restores one backup. `is_held` is as for `Protocols.restoration`."""
        with self.operations.run(OperationKind.RESTORE, options.dir) as progress:
            entry = self.protocols.restoration(is_held=is_held).restore(options, progress)
        self.residency.watch_archives()
        with step(RestoreStep.REPORT):
            self.ownership.report(lambda state: after_restore(state, self.restored.record, entry))
        self.look()
        mode = RestoreMode(entry.mode)
        return RestoreBackupResult(dir=options.dir, id=options.id, mode=None if mode is options.mode else mode)

    def _restore_instead(self, options: RestoreOptions) -> RestoreBackupResult | None:
        """Restores in place of missing directories, and forgets them in the same step.

        Returns None, and does nothing, if the restore would replace no missing directory.
        """
        with self.residency.held():
            unmounted = self.restored.unmounted
            if unmounted is not None:
                return self._restore_over(unmounted, options)
            settled = self.recovery.settled_by(options)
            if not settled:
                return None
            with self.restored.recovering(settled):
                result = self._restore(options, is_held=True)
            self.recovery.report_forgotten(settled)
            self.residency.note_replaced()
        return result

    def _restore_over(self, unmounted: Entry, options: RestoreOptions) -> RestoreBackupResult | None:
        """Restores in place of an overlay that cannot be mounted, or above it. If this fails, the overlay is unchanged.

        Returns None, and does nothing, if the overlay does not lie in the directory. The caller holds the tree lock:
        meanwhile `is_whole` is true although the overlay is not mounted.
        """
        paths = (options.dir, self.restored.real_path(options.dir))
        outer = next((path for path in paths if unmounted.lies_in(path)), None)
        if outer is None:
            return None
        try:
            with unavailable_unless(self.sandbox, "taken up", outcome="not_executed"):
                self.restored.mount_all(but_in=outer)
            result = self._restore(options, is_held=True)
        except BaseException:
            with contextlib.suppress(NodeError, OSError):
                self.restored.unmount_all()
            self.restored.note_unmounted(unmounted)
            raise
        with contextlib.suppress(NodeError, OSError):
            if not self.restored.is_open:  # a symbolic link led the restore elsewhere
                self.restored.unmount_all()
                return result
            self.restored.discard_leftovers()
        self.recovery.go_on(begun=False)
        self.residency.note_replaced()
        return result

    def _find_out_what_is_missing(self, directories: Sequence[str]) -> None:
        """Tries to wake the sandbox, unless an earlier attempt found all of these directories missing."""
        is_held = self.restored.is_shown or self.restored.unmounted is not None
        if is_held and all(self.recovery.is_known_missing(each) for each in directories):
            return
        try:
            self.residency.wake()
        except SandboxUnavailableError as e:
            if e.context.get("reason") != DIRECTORY_MISSING:
                raise
