"""The ledger of a sandbox's backups: those that were begun and committed, in its state, so that no actor loses one."""

from __future__ import annotations

from dataclasses import dataclass

from actors.errors import SandboxUnavailableError
from actors.logs import log
from actors.state.changes import without_pending
from actors.state.document import Change, with_backup
from actors.state.ownership import Ownership
from storage.errors import StorageError
from storage.metadata import BackupRecord, SandboxState


@dataclass(frozen=True, slots=True)
class SandboxLedger:
    """Writes into the sandbox's state, under the actor's epoch. See `actors.sandbox.backup.Ledger`."""

    _ownership: Ownership

    def begin(self, backup_id: str, *, of_sleep: bool) -> None:
        """Before anything of it is in the bucket: the next actor would settle it."""

        def begun(state: SandboxState) -> SandboxState:
            made = [*state.sleep_backups, backup_id] if of_sleep else state.sleep_backups
            return state.model_copy(update={"pending": [*state.pending, backup_id], "sleep_backups": made})

        self._ownership.change(begun, keep=False)

    def check(self) -> None:
        """Whether this actor may still commit."""
        self._ownership.check()

    def committed(self, record: BackupRecord) -> None:
        """From here on the directory is recovered from it."""
        try:
            self._write(lambda state: with_backup(without_pending(state, record.id), record))
        except SandboxUnavailableError as e:
            log.warning("state_not_written", error=type(e).__name__)
            if not self._ownership.is_superseded:  # put down meanwhile; who has taken over has settled it, and found it
                self._ownership.leave_behind(record.id)

    def left_behind(self, backup_id: str) -> None:
        """Something of it may be left: it is settled before anything else is written."""
        self._ownership.leave_behind(backup_id)

    def abandoned(self, backup_id: str) -> None:
        """Nothing is left of it. Raises SandboxUnavailableError if another actor has taken over."""
        self._write(lambda state: without_pending(state, backup_id))

    def _write(self, change: Change) -> None:
        try:
            self._ownership.change(change)
        except StorageError as e:
            log.warning("state_not_written", error=type(e).__name__)
