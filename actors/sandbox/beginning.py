"""The beginning of a backup in the sandbox's list of backups."""

from __future__ import annotations

from typing import Protocol

from actors.sandbox.steps import CreateStep, step
from storage.metadata import BackupRecord


class Ledger(Protocol):
    """The sandbox's list of pending and committed backups, written under the actor's epoch."""

    def begin(self, backup_id: str, *, of_sleep: bool) -> None:
        """Adds a pending backup, before any part of it is in the bucket. Settles what earlier calls could not remove.

        Raises StorageError, SandboxUnavailableError.
        """

    def check(self) -> None:
        """Checks that this actor may still commit. Raises SandboxUnavailableError if not; StorageError."""

    def committed(self, record: BackupRecord) -> None:
        """Notes that the backup exists. Raises nothing: a note that cannot be written now goes with the next one."""

    def left_behind(self, backup_id: str) -> None:
        """Notes that parts of the backup may be left in the bucket, and have to be removed later."""

    def abandoned(self, backup_id: str) -> None:
        """Notes that nothing of the backup is left. Raises SandboxUnavailableError if another actor has taken over."""


class Begun:
    """The beginning of a backup in the ledger: once, before the first of its parts goes to the bucket.

    That is while the archive is written, if parts are sent ahead, or when it is complete.
    """

    def __init__(self, ledger: Ledger, backup_id: str, *, of_sleep: bool) -> None:
        self._ledger = ledger
        self._backup_id = backup_id
        self._of_sleep = of_sleep
        self.is_noted = False

    def ensure(self) -> None:
        """Begins the backup if it has not begun. The caller ensures that no other thread does the same."""
        if not self.is_noted:
            with step(CreateStep.BEGIN):
                self._ledger.begin(self._backup_id, of_sleep=self._of_sleep)
            self.is_noted = True
