"""The adoption of an unsigned backup, such as one of Cloudflare's SDK: fetch, check, sign.

    step       leaves
    fetch      the archive in a work folder, which is removed at the end; after a crash by the node sweeper
    check      nothing: it unpacks the archive without privilege and packs it again, as every restore will do
    sign       the commit point: metadata with our signature, the archive's digest and its new tenant

The backup's id, directory, name, time to live and date stay. So does the archive, byte for byte: Cloudflare's SDK can
still restore it, and a failure at any step changes nothing. A node mounts an archive unchanged only if its files have
our owner. So each node converts this one as it first fetches it, and keeps the result in its cache.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from pathlib import Path

from actors.config import SandboxConfig
from actors.errors import BackupRestoreError
from actors.faults import failing_as
from actors.logs import log
from actors.node.archiver import Archiver
from actors.node.survey import Survey
from actors.node.work_folder import working_in
from actors.node_layout import NodeLayout
from actors.sandbox.restorable import check_unexpired, no_such_backup
from actors.service.node_archiver import node_archiver
from storage import keys
from storage.catalog import BackupCatalog
from storage.config import TransferConfig
from storage.errors import ObjectMissingError
from storage.layers import layer_at
from storage.metadata import BackupRecord
from storage.transfer import download


@dataclass(frozen=True, slots=True)
class Adoption:
    """The adoption of backups on one node, one at a time. No other code uses `spool`."""

    catalog: BackupCatalog
    archiver: Archiver
    spool: Path
    transfer: TransferConfig

    def adopt(self, tenant: str, backup_id: str, owner: str) -> None:
        """Makes an unsigned backup one of `owner`'s. Does nothing if it is signed as `owner`'s already.

        Args:
            tenant: the caller's. Unsigned backups are the default tenant's, so it alone can give them away.

        Raises:
            BackupNotFoundError, BackupExpiredError: nothing was changed.
            BackupRestoreError: it was tampered with, cannot be unpacked, or something failed; nothing was changed.
        """
        with failing_as(BackupRestoreError, "adopted"):
            try:
                etag = self.catalog.store.head(keys.metadata(backup_id)).etag
                record = self._record(tenant, backup_id, owner)
                if record is None:
                    return
                with working_in(self.spool) as work:
                    signed = self._checked(record, owner, work)
            except ObjectMissingError:
                raise no_such_backup(backup_id) from None
            self.catalog.sign_in_place(signed, replacing=etag)
        log.info("backup_adopted", backup=backup_id, by=owner)

    def _record(self, tenant: str, backup_id: str, owner: str) -> BackupRecord | None:
        """The metadata to be adopted; None if it already was. Raises BackupNotFoundError, BackupExpiredError."""
        record = self.catalog.read(backup_id)
        if record.is_signed:
            if record.owner != owner:
                raise no_such_backup(backup_id)
            return None
        if record.owner != tenant:
            raise no_such_backup(backup_id)
        entries = self.catalog.check_nobody_elses(tenant, backup_id)
        check_unexpired(self.catalog, record)
        if owner == tenant and len(entries) == 1:  # it was signed once, for the sandbox that still lists it
            return record.model_copy(update={"sandbox": entries[0].sandbox})
        return record

    def _checked(self, record: BackupRecord, owner: str, work: Path) -> BackupRecord:
        """Checks the backup's archive by unpacking and repacking it; returns the metadata to be signed."""
        archive, never = work / "fetched.sqsh", threading.Event()
        download(
            self.catalog.store,
            keys.archive(record.id),
            archive,
            expected=record.digest,
            config=self.transfer,
            progress=lambda size_bytes: None,
            cancelled=never,
        )
        digests = layer_at(archive, self.transfer)
        found: Survey = self.archiver.convert(archive, work, cancelled=never).found
        return record.model_copy(
            update={
                "version": 1,
                "tenant": owner,
                "sha256": digests.sha256,
                "part_bytes": digests.part_bytes,
                "parts": digests.parts,
                "files": found.files,
                "inodes": found.inodes,
                "source_bytes": found.source_bytes,
                "max_name_bytes": found.max_name_bytes,
            }
        )


def adoption(config: SandboxConfig, catalog: BackupCatalog) -> Adoption:
    """Builds the `Adoption` for the node that `config` is of."""
    spool = NodeLayout(config.node).adoptions
    archiver = node_archiver(config, spool, "adoption")
    return Adoption(catalog=catalog, archiver=archiver, spool=spool, transfer=config.transfer)
