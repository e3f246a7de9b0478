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

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from actors.config import SandboxConfig
from actors.errors import BackupExpiredError, BackupNotFoundError, BackupRestoreError
from actors.faults import failing_as
from actors.logs import log
from actors.node.archive_cache import sha256_of
from actors.node.archiver import Archiver
from actors.node.bubblewrap import Box
from actors.node.survey import Limits, Survey
from actors.node.tree import Tree
from actors.node.work_folder import working_in
from actors.node_layout import NodeLayout
from storage import keys
from storage.catalog import BackupCatalog
from storage.config import TransferConfig
from storage.digests import part_count
from storage.errors import ObjectMissingError
from storage.metadata import BackupRecord
from storage.transfer import download

_CHUNK_BYTES = 2**20


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
                raise _missing(backup_id) from None
            self.catalog.sign_in_place(signed, replacing=etag)
        log.info("backup_adopted", backup=backup_id, by=owner)

    def _record(self, tenant: str, backup_id: str, owner: str) -> BackupRecord | None:
        """The metadata to be adopted; None if it already was. Raises BackupNotFoundError, BackupExpiredError."""
        record = self.catalog.read(backup_id)
        if record.is_signed:
            if record.owner != owner:
                raise _missing(backup_id)
            return None
        if record.owner != tenant:
            raise _missing(backup_id)
        entries = self.catalog.check_nobody_elses(tenant, backup_id)
        if self.catalog.is_expired(record):
            raise BackupExpiredError(
                "The backup's time to live has elapsed.",
                context={"backup": backup_id, "expired_at": record.expires_at.isoformat()},
            )
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
        part_bytes = self.transfer.part_bytes_for(record.size_bytes)
        sha256, parts = sha256_of(archive), list(_part_digests(archive, part_bytes))
        found: Survey = self.archiver.convert(archive, work, cancelled=never).found
        return record.model_copy(
            update={
                "version": 1,
                "tenant": owner,
                "sha256": sha256,
                "part_bytes": part_bytes,
                "parts": parts,
                "files": found.files,
                "inodes": found.inodes,
                "source_bytes": found.source_bytes,
                "max_name_bytes": found.max_name_bytes,
            }
        )


def adoption(config: SandboxConfig, catalog: BackupCatalog) -> Adoption:
    """Builds the `Adoption` for the node that `config` is of."""
    layout, limits, uid = NodeLayout(config.node), config.backup, config.node.sandbox_uid
    spool = layout.adoptions
    archiver = Archiver(
        Box(uid=uid, hostname="adoption", binds=()),
        Tree(spool, tops=(), uid=uid),
        limits=Limits(limits.inodes, limits.source_bytes, limits.hole_bytes, limits.depth),
        memory_bytes=limits.memory_bytes,
    )
    return Adoption(catalog=catalog, archiver=archiver, spool=spool, transfer=config.transfer)


def _part_digests(archive: Path, part_bytes: int) -> Iterator[str]:
    """Yields the SHA-256 of each part of a file, in order. An empty file has one part."""
    size_bytes = archive.stat().st_size
    with archive.open("rb") as file:
        for _ in range(part_count(size_bytes, part_bytes)):
            digest, left = hashlib.sha256(), part_bytes
            while left and (chunk := file.read(min(_CHUNK_BYTES, left))):
                digest.update(chunk)
                left -= len(chunk)
            yield digest.hexdigest()


def _missing(backup_id: str) -> BackupNotFoundError:
    return BackupNotFoundError("There is no such backup.", context={"backup": backup_id})
