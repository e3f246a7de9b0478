"""The contents of backups, as the service's actor reads them from the bucket: no sandbox wakes for it."""

from __future__ import annotations

from collections.abc import Sequence

from actors.bucket import configured
from actors.config import SandboxConfig
from actors.errors import InvalidBackupConfigError
from actors.faults import reading
from actors.models import (
    BackupFilePage,
    BackupFilesOptions,
    ChangesPage,
    DirectoryBackup,
    PageOptions,
    validated,
)
from actors.state.contents import changes_page, file_page
from storage.catalog import BackupCatalog
from storage.contents import open_contents, record_of
from storage.metadata import BackupRecord


class BackupContents:
    """Lists and compares the files of backups. Each call reads pieces of what is in the bucket, and keeps nothing."""

    def __init__(self, config: SandboxConfig, catalog: BackupCatalog | None) -> None:
        self._config = config
        self._catalog = catalog

    def files(self, tenant: str, backup_id: str, wanted: BackupFilesOptions) -> BackupFilePage:
        """One page of a backup's files. Raises as `ServiceCalls.backup_files`."""
        catalog = configured(self._catalog, self._config)
        (record,) = self._records(catalog, tenant, [backup_id])
        with reading("such backup"):
            return file_page(open_contents(catalog.store, record), wanted)

    def changes(self, tenant: str, before: str, after: str, wanted: PageOptions) -> ChangesPage:
        """One page of the changes from one backup to another. Raises as `ServiceCalls.backup_changes`."""
        catalog = configured(self._catalog, self._config)
        records = self._records(catalog, tenant, [before, after])
        with reading("such backup"):
            old, new = (open_contents(catalog.store, record).contents for record in records)
            return changes_page(old, new, wanted, partial=any(record.partial for record in records))

    def _records(self, catalog: BackupCatalog, tenant: str, backup_ids: Sequence[str]) -> list[BackupRecord]:
        ids = [
            validated(DirectoryBackup, {"id": each, "dir": "/workspace"}, InvalidBackupConfigError).id
            for each in backup_ids
        ]
        with reading("such backup"):
            return [record_of(catalog, tenant, each) for each in ids]
