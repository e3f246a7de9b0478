"""Flattening: makes a full backup of what an incremental one holds, on a node.

    step       leaves
    fetch      the layers in a work folder, which is removed at the end; after a crash by the node sweeper
    flatten    one archive of them, likewise
    upload     backups/<new id>/data.sqsh; removed if anything fails, and by `gc` if the process dies
    commit     the commit point: metadata of a full backup with a new id, and its index entry

The incremental backup stays as it is, so a failure at any step changes nothing, and whoever has restored it loses
nothing. The new one has its directory, name, date and time to live, and needs no layer: Cloudflare's SDK and older
releases can restore it.
"""

from __future__ import annotations

import threading
import uuid
from dataclasses import dataclass
from pathlib import Path

from actors.config import SandboxConfig
from actors.errors import BackupCreateError
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
from storage.errors import ObjectMissingError, StorageError
from storage.metadata import BackupRecord
from storage.transfer import UploadedArchive, download, upload


@dataclass(frozen=True, slots=True)
class Flattening:
    """The flattening of backups on one node, one at a time. No other code uses `spool`."""

    catalog: BackupCatalog
    archiver: Archiver
    spool: Path
    transfer: TransferConfig
    uid: int

    def flatten(self, tenant: str, backup_id: str) -> str:
        """Makes a full backup of an incremental one, and returns its id. A full one is returned as it is.

        Raises:
            BackupNotFoundError, BackupExpiredError: nothing was made.
            BackupCreateError: it was tampered with, or something failed; nothing is left of it.
        """
        with failing_as(BackupCreateError, "flattened"):
            try:
                record = self._record(tenant, backup_id)
                if not record.is_incremental:
                    return record.id
                with working_in(self.spool) as work:
                    made_id = self._made(record, work)
            except ObjectMissingError:
                raise no_such_backup(backup_id) from None
        log.info("backup_flattened", backup=backup_id, made=made_id)
        return made_id

    def _record(self, tenant: str, backup_id: str) -> BackupRecord:
        record = self.catalog.read_signed(backup_id)
        if record.owner != tenant:
            raise no_such_backup(backup_id)
        check_unexpired(self.catalog, record)
        return record

    def _made(self, record: BackupRecord, work: Path) -> str:
        archives = [self._fetched(record, number, work) for number in range(record.depth)]
        made = self.archiver.flatten(archives, work, cancelled=threading.Event())
        made_id = str(uuid.uuid4())
        try:
            sent = upload(
                self.catalog.store,
                keys.archive(made_id),
                made.path,
                config=self.transfer,
                progress=lambda size_bytes: None,
                cancelled=threading.Event(),
            )
            self.catalog.commit(self._full(record, made_id, sent, made.found))
        except StorageError:
            self.catalog.abandon(made_id)  # nobody knows the id yet, so nobody misses it
            raise
        return made_id

    def _fetched(self, record: BackupRecord, number: int, work: Path) -> Path:
        layer = record.stack[number]
        path = work / f"layer{number}.sqsh"
        download(
            self.catalog.store,
            keys.layer(record.owner, layer.sha256),
            path,
            expected=layer.digest,
            config=self.transfer,
            progress=lambda size_bytes: None,
            cancelled=threading.Event(),
        )
        return path

    def _full(self, record: BackupRecord, made_id: str, sent: UploadedArchive, found: Survey) -> BackupRecord:
        return record.model_copy(
            update={
                "id": made_id,
                "version": 1,
                "layers": None,
                "parent": None,
                "of_sleep": None,
                "listing": None,
                "signature": None,
                "uid": self.uid,
                "size_bytes": sent.size_bytes,
                "sha256": sent.sha256,
                "part_bytes": sent.part_bytes,
                "parts": [part.sha256 for part in sent.parts],
                "etag": sent.etag,
                "files": found.files,
                "inodes": found.inodes,
                "source_bytes": found.source_bytes,
                "max_name_bytes": found.max_name_bytes,
                "compression": "zstd",
            }
        )


def flattening(config: SandboxConfig, catalog: BackupCatalog) -> Flattening:
    """Builds the `Flattening` for the node that `config` is of."""
    spool = NodeLayout(config.node).flattenings
    archiver = node_archiver(config, spool, "flattening")
    return Flattening(
        catalog=catalog, archiver=archiver, spool=spool, transfer=config.transfer, uid=config.node.sandbox_uid
    )
