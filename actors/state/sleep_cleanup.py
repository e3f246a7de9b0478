"""The deletion of backups that were made for a sleep in the bucket: the sandbox's own, which go with it."""

from __future__ import annotations

from collections.abc import Sequence

from actors.errors import SupersededError
from actors.logs import log
from actors.state.changes import without_sleep_backups
from actors.state.document import DurableState
from storage.catalog import BackupCatalog
from storage.errors import DocumentError, StorageError
from storage.metadata import SandboxState
from storage.time_limit import within_moments


class SleepCleanup:
    """Deletes backups for the sleeps of one sandbox, once nothing needs them."""

    def __init__(self, catalog: BackupCatalog, tenant: str, sandbox: str) -> None:
        self._catalog = catalog
        self._tenant = tenant
        self._sandbox = sandbox

    def clear(self, durable: DurableState) -> None:
        """Deletes those that the sandbox is not recovered from any more. Waits `MOMENTS_S` at most for the bucket."""
        unneeded = _unneeded(durable.state) if durable.state is not None else []
        if not unneeded:
            return
        try:
            with within_moments():
                durable.change(lambda state: state)  # now the bucket's checkpoints name none, and nobody replaced us
                self._delete(unneeded)
                durable.change(lambda state: without_sleep_backups(state, unneeded))
        except (StorageError, SupersededError) as e:  # the state still lists them: deleted next time
            log.warning("old_sleep_not_deleted", sandbox=self._sandbox, detail=str(e))

    def delete_all(self, state: SandboxState | None) -> None:
        """Deletes all that the state lists; none if it is damaged: the files may be in them alone.

        Raises StorageError.
        """
        if state is None:
            log.warning("sleep_backups_kept", sandbox=self._sandbox)
        else:
            self._delete(state.sleep_backups)

    def _delete(self, backup_ids: Sequence[str]) -> None:
        for backup_id in backup_ids:
            try:
                self._catalog.delete_of_sleep(self._tenant, self._sandbox, backup_id)
            except DocumentError as e:  # it stays, for a person; `holdfast gc` names it
                log.warning("sleep_not_deleted", sandbox=self._sandbox, detail=str(e))


def _unneeded(state: SandboxState) -> list[str]:
    lacking = {row.backup_id for row in state.recovery.directories if row.error} if state.recovery else set[str]()
    needed = {row.backup_id for row in state.checkpoints} | set(state.pending) | lacking
    return [backup_id for backup_id in state.sleep_backups if backup_id not in needed]
