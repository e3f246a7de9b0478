"""The protocol of restoring a backup: read the metadata, fetch the archive, prepare, swap. All or nothing.

    step       leaves                                    undone by
    metadata   nothing
    fetch      entries in the node's archive cache       nothing: they stay, verified, in a cache of bounded size
    prepare    a mounted layer, or an unpacked tree      discarding it
               (meanwhile the bucket is asked if it still has the archives that came from the cache)
    stop       commands and transfers stopped            nothing
    unmount    old mounts gone, the record unchanged     mounting them again
    show       the new content in the sandbox's tree     unbinding, or exchanging back
    record     sandbox.json, the commit point            nothing: from here on the directory is restored
    discard    the replaced content deleted              nothing
    report     the state document up to date             nothing; if it fails, the next change does it

Commands are stopped only for the swap (for `copy`: for the unpacking too). So a backup that is missing, expired or
damaged stops no command.
"""

from __future__ import annotations

import contextlib
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from actors.errors import BackupRestoreError, InvalidBackupConfigError
from actors.faults import failing_as
from actors.logs import log
from actors.models import Phase, RestoreMode, RestoreOptions
from actors.node.archive_cache import CachedArchive
from actors.node.archiver import Archiver
from actors.node.drivers import Limit
from actors.node.errors import DriverUnavailableError, NodeError, PathError
from actors.node.layers import Layer, Layers
from actors.node.squashfs import superblock
from actors.node.tree import Tree
from actors.node.verified import Verified
from actors.sandbox.fetch import ArchiveFetch, InBucket
from actors.sandbox.operations import Progress
from actors.sandbox.restorable import restorable
from actors.sandbox.restored_directories import RestoredDirectories
from actors.sandbox.steps import RestoreStep, step
from actors.state.node_record import Entry
from storage.catalog import BackupCatalog
from storage.metadata import BackupRecord


@dataclass(frozen=True, slots=True)
class BackupRestoration:
    """Restores backups into one sandbox."""

    tenant: str
    sandbox: str
    catalog: BackupCatalog
    archiver: Archiver
    fetch: ArchiveFetch
    verified: Verified
    tree: Tree
    layers: Layers
    restored: RestoredDirectories
    spool: Path
    stopped: Callable[[], AbstractContextManager[None]]
    """Stops every command and transfer of the sandbox, and lets none begin within the block."""
    restores_unsigned: bool = False
    """True if unsigned backups may be restored."""

    def restore(self, options: RestoreOptions, progress: Progress) -> Entry:
        """Restores one backup, and returns the entry of the record that says so.

        Raises:
            InvalidBackupConfigError: the directory leads out of the sandbox, or the backup was made for another
                sandbox's sleep.
            BackupNotFoundError, BackupExpiredError: nothing was changed.
            BackupRestoreError, OperationCancelledError: the directory is as it was.
        """
        progress.backup_id = options.id
        work = self.spool / f"{options.id}-{uuid.uuid4().hex}"
        archives: list[CachedArchive] = []
        try:
            with failing_as(BackupRestoreError, "restored"):
                mode = self._mode(options)
                work.mkdir(parents=True, mode=0o711)
                with step(RestoreStep.METADATA):
                    record = restorable(
                        self.catalog,
                        self.tenant,
                        options.id,
                        into=self.sandbox,
                        restores_unsigned=self.restores_unsigned,
                    )
                if mode is RestoreMode.OVERLAY and record.is_incremental:
                    mode = self._mode_of_stack(options)
                with step(RestoreStep.FETCH):
                    archives, in_bucket = self.fetch.fetch(record, work, progress)
                    for archive in archives:
                        superblock(archive.path)
                put = self._overlay if mode is RestoreMode.OVERLAY else self._copy
                entry = put(options, record, archives, in_bucket, progress)
        finally:
            for archive in archives:
                with contextlib.suppress(NodeError, OSError):
                    self.verified.unlink(archive.path, archive.sha256)
            shutil.rmtree(work, ignore_errors=True)
            self.restored.drop_unused_archives()
        log.info("backup_restored", backup=options.id, dir=options.dir, mode=mode.value)
        return entry

    def _mode(self, options: RestoreOptions) -> RestoreMode:
        """The mode of the options; but a copy if overlay is only the default, and the node cannot mount one."""
        if options.mode is RestoreMode.COPY or self.layers.can_mount:
            return options.mode
        if options.asks_for_overlay:
            raise DriverUnavailableError(
                "This node restores backups as copies only.",
                hint='Leave "mode" out or set it to "copy", or let the operator run `holdfast doctor` on the node.',
            )
        return RestoreMode.COPY

    def _mode_of_stack(self, options: RestoreOptions) -> RestoreMode:
        """The mode for an incremental backup on a node that can mount overlays."""
        driver = self.layers.driver
        if driver.stacks_archives:
            return RestoreMode.OVERLAY
        if options.asks_for_overlay:
            raise DriverUnavailableError(
                f"The {driver} driver mounts no incremental backups.",
                hint='Leave "mode" out or set it to "copy", or make a full backup.',
            )
        return RestoreMode.COPY

    def _overlay(
        self,
        options: RestoreOptions,
        record: BackupRecord,
        archives: Sequence[CachedArchive],
        in_bucket: InBucket,
        progress: Progress,
    ) -> Entry:
        self._check_names(record, archives, progress)
        progress.enter(Phase.MOUNTING)
        with step(RestoreStep.PREPARE):
            base, *above = [
                CachedArchive(self.restored.keep_archive(archive.path, archive.sha256), archive.sha256)
                for archive in archives
            ]
            layer = self.layers.create(base.path, base.sha256, above)
        try:
            in_bucket.check()
            progress.point_of_no_return(Phase.MOUNTING)
            with self._stopped():
                self.restored.put_back()
                made, place = self._target(options.dir)
                try:
                    entry = self._entry(place, record, layer)
                    self.restored.replace_by_layer(entry, layer)
                    return entry
                except BaseException:
                    self.tree.remove_directories(made)
                    raise
        except BaseException:
            try:
                self.layers.discard(layer)
            except NodeError as e:  # the layer is removed when the sandbox wakes next; the first error is what counts
                log.warning("layer_left_behind", layer=layer.id, error=type(e).__name__)
            raise

    def _check_names(self, record: BackupRecord, archives: Sequence[CachedArchive], progress: Progress) -> None:
        driver, longest = self.layers.driver, self.layers.driver.max_name_bytes
        hint = 'Restore it with mode "copy", or on a node with kernel mounts.'
        if (record.max_name_bytes or 0) > longest:
            raise BackupRestoreError(
                f"The backup holds names of {record.max_name_bytes} bytes; the {driver} driver stands {longest}.",
                hint=hint,
                context={"reason": "NAME_TOO_LONG"},
            )
        if Limit.NAMES in driver.limits:
            found = [
                self.archiver.find_name(
                    archive.path, lambda name: not driver.stands(name), cancelled=progress.cancelled
                )
                for archive in archives
            ]
            if any(name is not None for name in found):
                raise BackupRestoreError(
                    f"The backup holds names that the {driver} driver cannot show: over {longest} bytes,"
                    " or beginning with .wh.",
                    hint=hint,
                    context={"reason": "NAME_REFUSED"},
                )

    @contextmanager
    def _stopped(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            with step(RestoreStep.STOP):
                stack.enter_context(self.stopped())
            yield

    def _copy(
        self,
        options: RestoreOptions,
        record: BackupRecord,
        archives: Sequence[CachedArchive],
        in_bucket: InBucket,
        progress: Progress,
    ) -> Entry:
        progress.enter(Phase.EXTRACTING)
        in_bucket.check()  # before anything is stopped
        with self._stopped():
            self.restored.put_back()
            made, place = self._target(options.dir)
            try:
                with self.restored.staging(place) as stage:
                    with step(RestoreStep.PREPARE):
                        self._extract(archives, stage, progress)
                    progress.point_of_no_return(Phase.EXTRACTING)
                    entry = self._entry(place, record)
                    self.restored.replace_by_copy(entry, stage)
                    return entry
            except BaseException:
                self.tree.remove_directories(made)
                raise

    def _extract(self, archives: Sequence[CachedArchive], stage: Path, progress: Progress) -> None:
        work = self.spool / uuid.uuid4().hex
        work.mkdir(parents=True, mode=0o711)
        try:
            paths = [archive.path for archive in archives]
            self.archiver.extract_stack(paths, stage.parent, stage.name, work, cancelled=progress.cancelled)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _entry(self, place: str, record: BackupRecord, layer: Layer | None = None) -> Entry:
        """The entry of a directory that is restored now: an overlay with `layer`, otherwise a copy."""
        return Entry(
            dir=place,
            backup_id=record.id,
            mode="copy" if layer is None else "overlay",
            restored_at=datetime.now(UTC),
            taken_at=record.created_at,
            driver=None if layer is None else self.layers.driver,
            layer=None if layer is None else layer.id,
            archive_sha256=None if layer is None else layer.sha256,
            above=None if layer is None else tuple(above.sha256 for above in layer.above) or None,
        )

    def _target(self, directory: str) -> tuple[list[str], str]:
        """Makes the directory if it is missing; returns the directories that were made, and its real path."""
        made: list[str] = []
        try:
            made = self.tree.make_directory(directory)
            with self.tree.directory(directory) as fd:
                return made, self.tree.nameable(fd)
        except PathError as e:
            self.tree.remove_directories(made)
            raise InvalidBackupConfigError(
                f"The backup cannot be restored there: {e.message}", context={"dir": directory}
            ) from None
