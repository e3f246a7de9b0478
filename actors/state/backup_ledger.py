"""The ledger of a sandbox's backups: notes in its state which ones were begun and committed, so that none is lost."""

from __future__ import annotations

from dataclasses import dataclass

from actors.errors import SupersededError
from actors.logs import log
from actors.state.changes import without_pending
from actors.state.document import Change, with_backup
from actors.state.ownership import Ownership
from storage.errors import StorageError
from storage.metadata import BackupRecord, SandboxState


@dataclass(frozen=True, slots=True)
class SandboxLedger:
    """Writes to the sandbox's state under the actor's epoch. Implements `actors.sandbox.backup.Ledger`."""

    _ownership: Ownership

    def begin(self, backup_id: str, *, of_sleep: bool) -> None:
        """Notes a backup as pending, before any of it is in the bucket. The next actor settles what is pending."""

        def begun(state: SandboxState) -> SandboxState:
            made = [*state.sleep_backups, backup_id] if of_sleep else state.sleep_backups
            return state.model_copy(update={"pending": [*state.pending, backup_id], "sleep_backups": made})

        self._ownership.change(begun, keep=False)

    def check(self) -> None:
        """Checks that this actor may still commit. Raises SupersededError, StorageError."""
        self._ownership.check()

    def committed(self, record: BackupRecord) -> None:
        """Notes a committed backup as the checkpoint of its directory."""
        try:
            self._write(lambda state: with_backup(without_pending(state, record.id), record))
        except SupersededError as e:
            log.warning("state_not_written", error=type(e).__name__)
            if not self._ownership.is_superseded:  # closed meanwhile; an actor that replaced us has settled it
                self._ownership.leave_behind(record.id)

    def left_behind(self, backup_id: str) -> None:
        """Notes a backup that may have left something: it is settled before anything else is written."""
        self._ownership.leave_behind(backup_id)

    def abandoned(self, backup_id: str) -> None:
        """Notes that nothing is left of a backup. Raises SupersededError if another actor has taken over."""
        self._write(lambda state: without_pending(state, backup_id))

    def _write(self, change: Change) -> None:
        try:
            self._ownership.change(change)
        except StorageError as e:
            log.warning("state_not_written", error=type(e).__name__)
