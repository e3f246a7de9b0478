"""The archive of a backup on its way from the sandbox's directory to the bucket: whole, or a layer of what was changed.

Where no layer can be made, or it cannot be laid on those below, the whole directory is archived.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from actors.errors import InvalidBackupConfigError
from actors.models import BackupOptions, Compression, Phase
from actors.node.archiver import Archiver
from actors.node.changes import Since
from actors.node.errors import NoLayerError, PathError
from actors.node.packing import ArchiveRequest, PackedArchive
from actors.node.plain_changes import Recording
from actors.node.survey import Survey
from actors.node.verified import stamp_of
from actors.sandbox.beginning import Begun
from actors.sandbox.increments import Increment
from actors.sandbox.operations import Progress
from actors.sandbox.stored import Stored
from storage import keys
from storage.config import TransferConfig
from storage.errors import LayersUnusableError, StorageError
from storage.layers import add_file
from storage.listing import ListingWriter
from storage.store import ObjectStore
from storage.transfer import GrowingUpload, SentParts, UploadedArchive, upload


@dataclass(frozen=True, slots=True)
class Archiving:
    """Archives one directory for one backup, and stores the archive."""

    backup_id: str
    options: BackupOptions
    work: Path
    progress: Progress
    increment: Increment | None
    recording: Recording | None
    """Records the fingerprints of plain files, for the backup after this one."""
    archiver: Archiver
    bucket: ObjectStore
    transfer: TransferConfig
    pause_s: float
    paused: Callable[[], AbstractContextManager[None]]
    """Pauses everything that could change the tree."""

    def sent_ahead(self, begun: Begun) -> GrowingUpload:
        """The upload of a whole archive's parts while it is written. The backup begins with the first of them."""
        return GrowingUpload(
            self.bucket,
            keys.archive(self.backup_id),
            config=self.transfer,
            begin=begun.ensure,
            cancelled=self.progress.cancelled,
        )

    def archive(self, listing: ListingWriter, ahead: GrowingUpload) -> PackedArchive:
        """Archives the directory: only what was changed in it, if an increment was begun and that can be done.

        Every entry is listed in `listing`, if all are looked at; a whole archive is followed by `ahead`.

        Raises:
            InvalidBackupConfigError: the directory cannot be backed up.
            OperationCancelledError, NodeError, OSError.
        """
        made = self._changes(listing)
        return made or self._made(lambda resume: self._create(listing=listing, ahead=ahead))

    def _made(self, make: Callable[[Callable[[], None]], PackedArchive]) -> PackedArchive:
        """Calls `make` while everything is paused, with a function that ends the pause before `make` has returned."""
        self.progress.enter(Phase.SCANNING)
        try:
            with ExitStack() as pause:
                pause.enter_context(self.paused())
                made = make(pause.close)
        except PathError as e:
            raise InvalidBackupConfigError(
                f"The directory cannot be backed up: {e.message}", context={"dir": self.options.dir}
            ) from None
        self.progress.check()
        return made

    def _changes(self, listing: ListingWriter) -> PackedArchive | None:
        """The layer of what was changed; None if there is no increment, or it had to be given up."""
        increment = self.increment
        if increment is None:
            return None
        try:
            made = self._made(lambda resume: self._create(since=increment.since, listing=listing, on_staged=resume))
            increment.held()
            return made
        except NoLayerError as e:
            increment.give_up(self.options.dir, e.message)
        except StorageError as e:
            increment.give_up(self.options.dir, str(e))
        listing.begin_anew()
        return None

    def _create(
        self,
        *,
        since: Since | None = None,
        listing: ListingWriter | None = None,
        ahead: GrowingUpload | None = None,
        on_staged: Callable[[], None] = lambda: None,
    ) -> PackedArchive:
        files = 0

        def surveyed(found: Survey) -> None:
            nonlocal files
            files = found.files
            self.progress.enter(Phase.COMPRESSING, total=files)

        return self.archiver.create(
            ArchiveRequest(
                directory=self.options.dir,
                spool=self.work,
                compression=self.options.compression.format,
                level=default_level(self.options.compression),
                timeout_s=self.pause_s,
                cancelled=self.progress.cancelled,
                excludes=self.options.excludes,
                gitignore=self.options.gitignore,
                since=since,
                recording=self.recording,
                listed=None if listing is None else listing.add,
                on_survey=surveyed,
                on_staged=on_staged,
                on_percent=lambda percent: self.progress.set_done(files * percent // 100),
                on_writing=(lambda path: None) if ahead is None else ahead.follow,
            )
        )

    def store(self, made: PackedArchive, sent: SentParts | None) -> Stored:
        """Stores the archive in the bucket. If it is a layer that cannot be laid on the others, makes a whole one.

        The latter is not listed, and commands may have run since the layer was listed. `sent` are the parts of the
        archive that are in the bucket already.
        """
        stamp = stamp_of(made.path)
        if self.increment is None or not made.is_layer:
            return Stored(made, stamp, self._upload(made, sent))
        self.progress.enter(Phase.UPLOADING, total=made.path.stat().st_size, unit="bytes")
        try:
            layer = add_file(
                self.increment.layers,
                self.bucket,
                made.path,
                config=self.transfer,
                progress=self.progress.advance,
                cancelled=self.progress.cancelled,
            )
            return Stored(made, stamp, layer, self.increment)
        except LayersUnusableError as e:
            self.increment.give_up(self.options.dir, str(e))
        made.path.unlink()
        made = self._made(lambda resume: self._create())
        return Stored(made, stamp_of(made.path), self._upload(made, None))

    def _upload(self, made: PackedArchive, sent: SentParts | None) -> UploadedArchive:
        self.progress.enter(Phase.UPLOADING, total=made.path.stat().st_size, unit="bytes")
        return upload(
            self.bucket,
            keys.archive(self.backup_id),
            made.path,
            config=self.transfer,
            progress=self.progress.advance,
            cancelled=self.progress.cancelled,
            sent=sent,
        )


def default_level(compression: Compression) -> int | None:
    """The compression level for the tool: by default 1 for zstd, whose own default of 15 takes twenty times as long."""
    if compression.level is None and compression.format == "zstd":
        return 1
    return compression.level
