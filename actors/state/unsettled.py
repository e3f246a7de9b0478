"""The backups of a sandbox that are not settled: it is not known yet whether they were committed."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from actors.logs import log
from actors.state.changes import checkpoint_in, without_pending
from actors.state.document import Change, with_backup, with_checkpoint
from actors.state.node_record import Record
from storage.catalog import BackupCatalog
from storage.errors import DocumentError
from storage.metadata import BackupRecord, SandboxState


class UnsettledBackups:
    """The ids of backups that earlier actors began, or that failed in this one. The caller has the state's turn."""

    def __init__(self, catalog: BackupCatalog, tenant: str, sandbox: str, record: Callable[[], Record]) -> None:
        """`record` returns the node's record of the sandbox."""
        self._catalog = catalog
        self._tenant = tenant
        self._sandbox = sandbox
        self._record = record
        self._ids: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._ids)

    def inherit(self, backup_ids: Iterable[str]) -> None:
        """Replaces the ids by those that an earlier actor's state has as pending."""
        self._ids = list(backup_ids)

    def add(self, backup_id: str) -> None:
        """Adds a backup that could not be removed from the bucket."""
        self._ids.append(backup_id)

    def settle(self) -> Change:
        """Finds out what became of each backup, ends those that were not committed, and forgets the ids.

        Returns the change of the state that follows. Raises StorageError: call again.
        """
        settled = {backup_id: self._settled(backup_id) for backup_id in self._ids}
        self._ids = []

        def change(state: SandboxState) -> SandboxState:
            for backup_id, backup in settled.items():
                state = without_pending(state, backup_id)
                if backup is not None:
                    state = self._after(state, backup)
            return state

        return change

    def _settled(self, backup_id: str) -> BackupRecord | None:
        try:
            backup = self._catalog.settle(backup_id)
        except DocumentError as e:  # nobody can restore it
            log.warning("backup_not_settled", sandbox=self._sandbox, backup=backup_id, detail=str(e))
            return None
        if backup is not None and (backup.owner, backup.sandbox) != (self._tenant, self._sandbox):
            log.error("pending_backup_is_anothers", sandbox=self._sandbox, backup=backup_id)
            return None
        return backup

    def _after(self, state: SandboxState, backup: BackupRecord) -> SandboxState:
        state = with_backup(state, backup)
        for entry in self._record().entries:
            if entry.restored_at > backup.created_at:  # restored after this backup was made
                state = with_checkpoint(state, checkpoint_in(entry))
        return state
