"""The restored directories of a sandbox: their record on the node, their mounts, and their replacement.

The record is the commit point of a restore. The mounts follow from it: after a crash at any instant, they are made anew
from the record, with the same uppers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import datetime
from pathlib import Path

from actors.logs import log
from actors.node.archive_cache import CachedArchive
from actors.node.errors import DamagedCopyError, MountError
from actors.node.exchange import exchange
from actors.node.kept import KeptArchives
from actors.node.layers import Layer
from actors.node.tree import Tree
from actors.sandbox.overlays import Overlays
from actors.sandbox.restored_record import RestoredRecord
from actors.sandbox.staging import Staging
from actors.sandbox.steps import RestoreStep, step
from actors.state.node_record import Entry, Record, RecoveryItem, RecoveryPlan


class RestoredDirectories:
    """The restored directories of one sandbox. Not thread-safe: the caller holds the tree lock."""

    def __init__(
        self,
        folder: Path,
        tree: Tree,
        record: RestoredRecord,
        overlays: Overlays,
        kept: KeptArchives,
    ) -> None:
        """`folder` is the sandbox's. `kept` holds the archives that the layers are mounted from."""
        self._folder = folder
        self._tree = tree
        self._record = record
        self._overlays = overlays
        self._kept = kept
        self._staging = Staging(folder / "stage", tree)
        self._is_mounted = False
        self._recovering: Mapping[str, str | None] = {}
        """The missing directories that the next commit settles, each with its error if it is forgotten."""
        self.unmounted: Entry | None = None
        """The overlay that could not be mounted in the last `mount_all`."""

    @property
    def record(self) -> Record:
        """The record, as it was read or written last."""
        return self._record.value

    def read(self) -> None:
        """Reads the record, which another process of this node may have written meanwhile; `mount_all` must follow."""
        self._record.read()

    @property
    def is_whole(self) -> bool:
        """True if every restored directory is there and mounted in its place, and no recovery is unfinished."""
        return self._is_mounted and not self.missing

    @property
    def is_shown(self) -> bool:
        """True if every recorded directory is mounted in its place, even if others have to be recovered still."""
        return self._is_mounted

    @property
    def is_open(self) -> bool:
        """True if the layer of every recorded overlay is mounted, in the sandbox's tree or not."""
        return all(self._overlays.is_open(entry) for entry in self.entries if entry.is_mounted)

    @property
    def has_archives(self) -> bool:
        """True if an archive is mounted, or was checked for a mount."""
        return self._kept.is_in_use

    def is_disturbed(self) -> bool:
        """Tells whether an archive under a mount has changed (`KeptArchives.is_disturbed`)."""
        return self._kept.is_disturbed()

    @property
    def missing(self) -> list[RecoveryItem]:
        """The directories that still have to be recovered."""
        return self._record.missing

    @property
    def exists(self) -> bool:
        """True if this node has a record of the sandbox, readable or not."""
        return self._record.exists

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The restored directories, outer ones before those inside them."""
        return self._record.entries

    def real_path(self, directory: str) -> str:
        """The path under which a directory is recorded: symbolic links are resolved, unless they lead nowhere now."""
        return self._tree.find_canonical(directory) or directory

    def mount_all(self, *, but_in: str | None = None) -> None:
        """Mounts everything that the record names, and removes what earlier processes have left.

        Args:
            but_in: a directory that a restore replaces next; overlays there or inside it stay unmounted.

        Raises:
            NodeError: a recorded layer cannot be mounted, or the record cannot be read; nothing is lost.
                DamagedCopyError: one of the archives is damaged; `damaged` names its directory.
        """
        self.unmounted = None
        self._record.check_readable()
        self.unmount_all()
        self._overlays.sweep(self._folder)
        self._tree.prepare()  # after the sweep: a mount whose daemon is dead can cover a top folder
        for entry in self.entries:
            if but_in is not None and entry.lies_in(but_in):
                continue
            if entry.layer is not None and entry.digests:
                self.unmounted = entry
                archives = [CachedArchive(self._kept.check(sha256), sha256) for sha256 in entry.digests]
                self._overlays.open(entry.layer, archives)
        self.unmounted = None
        self._note_conversions()
        self._overlays.show(self._open)
        self.discard_leftovers()
        self._staging.remove()
        self.drop_unused_archives()
        self._record.complete()
        self._is_mounted = True

    def discard_leftovers(self) -> None:
        """Removes the layers of no recorded directory. Raises NodeError, OSError."""
        self._overlays.discard_all_but({entry.layer for entry in self.entries})

    def _note_conversions(self) -> None:
        """Records the new driver of layers that were converted from fuse-overlayfs to this node's driver."""
        if self._open:
            self._record.note_driver(self._overlays.driver, {entry.layer for entry in self._open if entry.layer})

    @property
    def _open(self) -> list[Entry]:
        return [entry for entry in self.entries if self._overlays.is_open(entry)]

    def put_back(self) -> None:
        """Mounts overlays in their places again after a command has moved them, by renaming a directory above them.

        An overlay whose place something else has taken stays out; the next call tries again.

        Raises:
            MountBusyError: a mount is in use; the sandbox's next call mounts everything anew.
        """
        if not self._overlays.show_missing(self._open):
            with self._remounting():
                self._overlays.show_anew(self._open)

    def release_lowers(self) -> None:
        """Unmounts the archives that killed processes have left mounted by the kernel, unless they are in use."""
        self._overlays.release_lowers()

    def forget(self) -> None:
        """Begins with an empty record, after the sandbox's files were removed."""
        self._record.forget()
        self._overlays.forget()

    def begin_recovery(self, created_at: datetime, recovery: RecoveryPlan) -> None:
        """Records a recovery before it begins. Older files of the sandbox must have been removed from this node.

        Raises OSError.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._record.begin_recovery(created_at, recovery)

    @contextmanager
    def recovering(self, settled: Mapping[str, str | None]) -> Iterator[None]:
        """The commit of the restore within the block also settles the directories in `settled`.

        A directory with an error is forgotten, and replaced by the restore. One without an error is back.
        """
        self._recovering = settled
        try:
            yield
        finally:
            self._recovering = {}

    def layer_at(self, directory: str) -> tuple[Entry, Layer] | None:
        """The overlay that was restored to a directory, with its mounted layer; None if there is none."""
        place = self.real_path(directory)
        for entry in self.entries:
            layer = self._overlays.find_open(entry)
            if entry.dir == place and layer is not None:
                return entry, layer
        return None

    def note_failure(self, wanted: RecoveryItem, error: str) -> None:
        """Records the error that kept a directory from being recovered; it stays missing. Raises OSError."""
        self._record.note_failure(wanted, error)

    def note_unmounted(self, entry: Entry) -> None:
        """Notes again that an overlay is not mounted, unless `mount_all` has found another one since."""
        self.unmounted = self.unmounted or entry

    def forget_missing(
        self, missing: Sequence[RecoveryItem], *, unmounted_for: str | None = None
    ) -> list[RecoveryItem]:
        """Forgets missing directories; with an error also the overlay that cannot be mounted. All or none.

        Everything that was written to the overlay is forgotten with it; the next `mount_all` removes its layer.
        Returns the forgotten directories, each with its error. Raises OSError.
        """
        if unmounted_for is None:
            return self._record.forget_missing(missing)
        forgotten = self._record.forget_missing(missing, unmounted=self.unmounted, error=unmounted_for)
        self.unmounted = None
        return forgotten

    def keep_archive(self, archive: Path, sha256: str) -> Path:
        """Links an archive into the sandbox's folder, for its layers. The link stays if the node's cache evicts it."""
        return self._kept.keep(archive, sha256)

    def damaged(self) -> list[Entry]:
        """The restored directories whose archive is damaged or gone on this node.

        Reads each archive that was not verified since the node booted. Raises CorruptRecordError.
        """
        self._record.check_readable()
        found = []
        for entry in self.entries:
            if entry.is_mounted:
                try:
                    for sha256 in entry.digests:
                        self._kept.check(sha256)
                except DamagedCopyError as e:
                    log.error("archive_damaged", dir=entry.dir, backup=entry.backup_id, detail=e.message)
                    found.append(entry)
        return found

    def drop_unused_archives(self) -> None:
        """Removes the links to archives that no recorded layer needs."""
        self._kept.drop_all_but({sha256 for entry in self.entries for sha256 in entry.digests})

    def unmount_all(self) -> None:
        """Unmounts everything and keeps every upper. Raises MountError if a mount is in use."""
        self._is_mounted = False
        self._overlays.close_all()
        self._tree.release()
        self._kept.forget_mounts()

    def replace_by_layer(self, entry: Entry, layer: Layer) -> None:
        """Mounts a new layer at `entry.dir`, in place of everything that was restored there or below. All or nothing.

        Raises:
            NodeError: the directory has its old content; the caller discards the layer.
        """
        with self._without_overlays_in(entry.dir) as replaced, self._overlays.shown(entry, layer):
            self._commit(entry, replaced)
        with step(RestoreStep.DISCARD):
            self._overlays.discard(replaced)

    def replace_by_copy(self, entry: Entry, stage: Path) -> None:
        """Exchanges the directory at `entry.dir` with the plain directory `stage` beside it. All or nothing.

        Afterwards `stage` holds the old content.

        Raises:
            PathError: this driver cannot replace a directory inside a restored overlay.
            NodeError: the directory has its old content.
        """
        with self._without_overlays_in(entry.dir) as replaced:
            place = self._tree.place(entry.dir)
            with step(RestoreStep.SHOW):
                exchange(stage, place)
            try:
                self._commit(entry, replaced)
            except BaseException:
                exchange(stage, place)
                raise
        with step(RestoreStep.DISCARD):
            self._overlays.discard(replaced)

    def staging(self, place: str) -> AbstractContextManager[Path]:
        """A fresh path beside the directory `place`. Its content is removed after the block, or by `mount_all`."""
        return self._staging.beside(place)

    def revive(self, layer: Layer, stop_users: Callable[[], None]) -> None:
        """Mounts a layer again after its daemon died, with the same upper. Raises NodeError.

        Refuses while another layer is missing too: only `mount_all` makes the tree whole then.
        """
        entry = next((entry for entry in self._open if entry.layer == layer.id), None)
        if entry is None:  # unmounted or replaced in the meantime
            return
        if not self._is_mounted:
            raise MountError("Another layer is missing.")
        with self._remounting():
            for archive in layer.archives:
                self._kept.check(archive.sha256)
            stop_users()
            self._overlays.revive(entry, layer, self.entries)

    def _commit(self, entry: Entry, replaced: Sequence[Entry]) -> None:
        with step(RestoreStep.RECORD):
            self._record.commit(entry, replaced, self._recovering)

    @contextmanager
    def _without_overlays_in(self, directory: str) -> Iterator[list[Entry]]:
        """Hides the overlays at and below `directory`; shows them again if the block fails."""
        covered = self._overlays.shown_in(directory, self.entries)
        hidden: list[Entry] = []
        try:
            with step(RestoreStep.UNMOUNT):
                for entry in reversed(covered):
                    self._overlays.hide(entry)
                    hidden.append(entry)
            yield covered
        except BaseException:
            with self._remounting():
                for entry in reversed(hidden):
                    self._overlays.show_one(entry)
            raise

    @contextmanager
    def _remounting(self) -> Iterator[None]:
        """Counts the directories as unmounted within the block, and after it if it fails."""
        self._is_mounted = False
        yield
        self._is_mounted = True
