"""The restored directories of a sandbox: their record on the node, their mounts, and their replacement.

The record is the commit point of a restore. The mounts follow from it: after a crash at any instant, they are made anew
from the record, with the same uppers.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from actors.logs import log
from actors.node import mountinfo
from actors.node.binds import bind, unbind
from actors.node.errors import (
    CorruptRecordError,
    DamagedCopyError,
    MountBusyError,
    MountError,
    NodeError,
    PathError,
)
from actors.node.kept import KeptArchives
from actors.node.layers import Layer, Layers
from actors.node.mounting import sweep
from actors.node.removal import remove_tree
from actors.node.tree import TEMPORARY, Tree, temporary_name
from actors.sandbox.steps import RestoreStep, step
from actors.state.node_record import Entry, Record, RecoveryItem, RecoveryPlan, now, twin_file

_UNMOUNT_S = 10.0
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2
_libc = ctypes.CDLL(None, use_errno=True)


class RestoredDirectories:
    """The restored directories of one sandbox. Not thread-safe: the caller holds the tree lock."""

    def __init__(self, file: Path, tree: Tree, layers: Layers, kept: KeptArchives) -> None:
        """`kept` holds the archives that the layers are mounted from."""
        self._file = file
        self._twin = twin_file(file)
        self._kept = kept
        self._tree = tree
        self._layers = layers
        self._stage_note = file.parent / "stage"
        self._open: dict[str, Layer] = {}
        self._devices: dict[str, str] = {}
        self._is_mounted = False
        self._recovering: Mapping[str, str | None] = {}
        """The missing directories that the next commit settles, each with its error if it is forgotten."""
        self._damage: CorruptRecordError | None = None
        self.unmounted: Entry | None = None
        """The overlay that could not be mounted in the last `mount_all`."""
        self._is_on_record = False
        """True if both copies of the record on the disk are good."""
        self.record = Record(created_at=now())
        self.read()

    def read(self) -> None:
        """Reads the record, which another process of this node may have written meanwhile; `mount_all` must follow."""
        try:
            found, self._is_on_record = self._twin.read()
            self.record, self._damage = found or Record(created_at=now()), None
            self._is_on_record = self._is_on_record and found is not None
        except CorruptRecordError as e:  # the sandbox can still be destroyed
            self.record, self._damage = Record(created_at=now()), e

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
        return all(entry.layer in self._open for entry in self.record.entries if entry.is_mounted)

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
        return self.record.recovery.missing if self.record.recovery else []

    @property
    def exists(self) -> bool:
        """True if this node has a record of the sandbox, readable or not."""
        return self._twin.exists

    @property
    def entries(self) -> tuple[Entry, ...]:
        """The restored directories, outer ones before those inside them."""
        return tuple(sorted(self.record.entries, key=lambda entry: entry.dir))

    def mount_all(self, *, but_in: str | None = None) -> None:
        """Mounts everything that the record names, and removes what earlier processes have left.

        Args:
            but_in: a directory that a restore replaces next; overlays there or inside it stay unmounted.

        Raises:
            NodeError: a recorded layer cannot be mounted, or the record cannot be read; nothing is lost.
                DamagedCopyError: one of the archives is damaged; `damaged` names its directory.
        """
        self.unmounted = None
        self._check_readable()
        self.unmount_all()
        stuck = sweep(self._file.parent, deadline_s=_UNMOUNT_S)
        if stuck:
            raise MountError(f"{len(stuck)} mounts of an earlier process are still in use.")
        self._tree.prepare()  # after the sweep: a mount whose daemon is dead can cover a top folder
        for entry in self.entries:
            if but_in is not None and entry.lies_in(but_in):
                continue
            if entry.layer is not None and entry.archive_sha256 is not None:
                self.unmounted = entry
                archive = self._kept.check(entry.archive_sha256)
                self._open[entry.layer] = self._layers.open(entry.layer, archive, entry.archive_sha256)
        self.unmounted = None
        self._note_conversions()
        self._show(self._mounted)
        self.discard_leftovers()
        self._remove_stage()
        self.drop_unused_archives()
        if not self._is_on_record:
            self._save(self.record)
        self._is_mounted = True

    def discard_leftovers(self) -> None:
        """Removes the layers of no recorded directory. Raises NodeError, OSError."""
        recorded = {entry.layer for entry in self.record.entries}
        leftovers = [layer_id for layer_id in self._layers.ids() if layer_id not in recorded]
        for layer_id in leftovers:
            self._layers.discard_leftover(layer_id)
        if leftovers:
            self.release_lowers()

    def _note_conversions(self) -> None:
        """Records the new driver of layers that were converted from fuse-overlayfs to this node's driver."""
        entries = tuple(
            entry.model_copy(update={"driver": self._layers.driver}) if entry.layer in self._open else entry
            for entry in self.record.entries
        )
        if entries != self.record.entries:
            self._save(self.record.model_copy(update={"entries": entries}))

    @property
    def _mounted(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.layer in self._open]

    def put_back(self) -> None:
        """Mounts overlays in their places again after a command has moved them, by renaming a directory above them.

        An overlay whose place something else has taken stays out; the next call tries again.

        Raises:
            MountBusyError: a mount is in use; the sandbox's next call mounts everything anew.
        """
        found = [(entry, self._points(entry)) for entry in self._mounted]
        if all(points == [self._real_place(entry.dir)] for entry, points in found if points):
            self._show([entry for entry, points in found if not points])
            return
        self._is_mounted = False
        if sweep(self._tree.root, deadline_s=_UNMOUNT_S):
            raise MountBusyError("A restored directory is still in use.")
        self._show(self._mounted)
        self._is_mounted = True

    def release_lowers(self) -> None:
        """Unmounts the archives that killed processes have left mounted by the kernel, unless they are in use."""
        try:
            self._layers.release_unused_lowers()
        except (NodeError, OSError) as e:  # the next call removes them
            log.warning("lowers_left_mounted", error=type(e).__name__)

    def forget(self) -> None:
        """Begins with an empty record, after the sandbox's files were removed."""
        self.record, self._damage, self._is_on_record = Record(created_at=now()), None, False
        self._devices.clear()

    def begin_recovery(self, created_at: datetime, recovery: RecoveryPlan) -> None:
        """Records a recovery before it begins. Older files of the sandbox must have been removed from this node.

        Raises OSError.
        """
        self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._save(Record(created_at=created_at, recovery=recovery))

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

    def note_failure(self, wanted: RecoveryItem, error: str) -> None:
        """Records the error that kept a directory from being recovered; it stays missing. Raises OSError."""
        assert self.record.recovery is not None
        recovery = self.record.recovery.failed(wanted.dir, error)
        if recovery != self.record.recovery:
            self._save(self.record.model_copy(update={"recovery": recovery}))

    def give_up(self, directories: Sequence[RecoveryItem]) -> None:
        """Forgets missing directories; the record keeps the error of each. Raises OSError."""
        recovery = self.record.recovery
        for wanted in directories:
            assert recovery is not None
            recovery = recovery.settled(wanted.dir, error=wanted.kept_away_by)
        if directories:
            self._save(self.record.model_copy(update={"recovery": recovery}))

    def give_up_unmounted(self, error: str) -> RecoveryItem:
        """Forgets the overlay that cannot be mounted, with everything that was written to it. Raises OSError.

        The next `mount_all` removes its layer.
        """
        entry = self.unmounted
        assert entry is not None
        row = RecoveryItem(
            dir=entry.dir,
            backup_id=entry.backup_id,
            taken_at=entry.taken_at or entry.restored_at,
            mode=entry.mode,
            settled=True,
            error=error,
        )
        plan = self.record.recovery or RecoveryPlan(at=now())
        others = tuple(other for other in plan.directories if other.dir != row.dir)
        plan = plan.model_copy(update={"directories": (*others, row)})
        entries = tuple(other for other in self.record.entries if other != entry)
        self._save(self.record.model_copy(update={"entries": entries, "recovery": plan}))
        self.unmounted = None
        return row

    def keep_archive(self, archive: Path, sha256: str) -> Path:
        """Links an archive into the sandbox's folder, for its layers. The link stays if the node's cache evicts it."""
        return self._kept.keep(archive, sha256)

    def damaged(self) -> list[Entry]:
        """The restored directories whose archive is damaged or gone on this node.

        Reads each archive that was not verified since the node booted. Raises CorruptRecordError.
        """
        self._check_readable()
        found = []
        for entry in self.entries:
            if entry.is_mounted and entry.archive_sha256 is not None:
                try:
                    self._kept.check(entry.archive_sha256)
                except DamagedCopyError as e:
                    log.error("archive_damaged", dir=entry.dir, backup=entry.backup_id, detail=e.message)
                    found.append(entry)
        return found

    def _check_readable(self) -> None:
        if self._damage is not None:
            raise self._damage

    def drop_unused_archives(self) -> None:
        """Removes the links to archives that no recorded layer needs."""
        self._kept.drop_all_but({entry.archive_sha256 for entry in self.record.entries if entry.archive_sha256})

    def unmount_all(self) -> None:
        """Unmounts everything and keeps every upper. Raises MountError if a mount is in use."""
        self._is_mounted = False
        if self._open and sweep(self._tree.root, deadline_s=_UNMOUNT_S):
            raise MountBusyError("A restored directory is still in use.")
        self._layers.close_all()
        self._open.clear()
        self._kept.forget_mounts()

    def replace_by_layer(self, entry: Entry, layer: Layer) -> None:
        """Mounts a new layer at `entry.dir`, in place of everything that was restored there or below. All or nothing.

        Raises:
            NodeError: the directory has its old content; the caller discards the layer.
        """
        with self._without_mounts_in(entry.dir) as replaced:
            self._open[layer.id] = layer
            try:
                with step(RestoreStep.SHOW):
                    self._bind(entry)
                if self._layers.is_lost(layer):  # a daemon that dies later is revived, because the record has the layer
                    raise MountError("A file system daemon under the directory died.")
                self._commit(entry, replaced)
            except BaseException:
                self._unbind(entry)
                del self._open[layer.id]
                raise
        with step(RestoreStep.DISCARD):
            self._discard(replaced)

    def replace_by_copy(self, entry: Entry, stage: Path) -> None:
        """Exchanges the directory at `entry.dir` with the plain directory `stage` beside it. All or nothing.

        Afterwards `stage` holds the old content.

        Raises:
            PathError: this driver cannot replace a directory inside a restored overlay.
            NodeError: the directory has its old content.
        """
        with self._without_mounts_in(entry.dir) as replaced:
            place = self._place(entry.dir)
            with step(RestoreStep.SHOW):
                _exchange(stage, place)
            try:
                self._commit(entry, replaced)
            except BaseException:
                _exchange(stage, place)
                raise
        with step(RestoreStep.DISCARD):
            self._discard(replaced)

    @contextmanager
    def staging(self, place: str) -> Iterator[Path]:
        """A fresh path beside the directory `place`. Its content is removed after the block, or by `mount_all`."""
        stage = f"{place.rpartition('/')[0]}/{temporary_name()}"
        self._stage_note.write_text(stage)
        try:
            yield self._place(stage)
        finally:
            self._remove_stage()

    def _remove_stage(self) -> None:
        if not self._stage_note.exists():
            return
        parent, _, name = self._stage_note.read_text().rpartition("/")
        if not TEMPORARY.fullmatch(name):  # the note was cut short: nothing was staged yet
            self._stage_note.unlink()
            return
        try:
            with self._tree.directory(parent or "/") as fd:
                remove_tree(Path(f"/proc/{os.getpid()}/fd/{fd}/{name}"))
            self._stage_note.unlink()
        except (NodeError, OSError) as e:  # the note stays, so the next `mount_all` removes the stage
            log.warning("stage_left_behind", error=type(e).__name__)

    def revive(self, layer: Layer, stop_users: Callable[[], None]) -> None:
        """Mounts a layer again after its daemon died, with the same upper. Raises NodeError.

        Refuses while another layer is missing too: only `mount_all` makes the tree whole then.
        """
        entry = next((entry for entry in self.entries if entry.layer == layer.id), None)
        if entry is None or layer.id not in self._open:  # unmounted or replaced in the meantime
            return
        if not self._is_mounted:
            raise MountError("Another layer is missing.")
        self._is_mounted = False
        self._kept.check(layer.sha256)
        stop_users()
        inside = self._mounted_in(self._places(entry)[0], entry.dir)
        for other in reversed(inside):
            self._unbind(other)
        self._layers.revive(layer)
        self._show(inside)
        self._is_mounted = True

    def _commit(self, entry: Entry, replaced: Sequence[Entry]) -> None:
        kept = tuple(old for old in self.record.entries if not (old.lies_in(entry.dir) or old in replaced))
        recovery = self.record.recovery
        for directory, error in self._recovering.items():
            assert recovery is not None
            recovery = recovery.settled(directory, error=error)
        with step(RestoreStep.RECORD):
            self._save(self.record.model_copy(update={"entries": (*kept, entry), "recovery": recovery}))

    @contextmanager
    def _without_mounts_in(self, directory: str) -> Iterator[list[Entry]]:
        """Removes the mounts at and below `directory` from the tree; mounts them again if the block fails."""
        covered = self._mounted_in(self._place(directory), directory)
        taken: list[Entry] = []
        try:
            with step(RestoreStep.UNMOUNT):
                for entry in reversed(covered):
                    self._unbind(entry)
                    taken.append(entry)
            yield covered
        except BaseException:
            self._is_mounted = False
            for entry in reversed(taken):
                self._bind(entry)
            self._is_mounted = True
            raise

    def _discard(self, replaced: Sequence[Entry]) -> None:
        for entry in reversed(replaced):
            layer = self._open.pop(entry.layer or "", None)
            if layer is None:
                continue
            try:
                self._layers.discard(layer)
            except (NodeError, OSError, RuntimeError) as e:  # the record is written: nothing may fail any more
                log.warning("layer_left_behind", layer=layer.id, error=type(e).__name__)

    def _mounted_in(self, place: Path, directory: str) -> list[Entry]:
        """The overlays that are recorded in `directory`, or mounted in `place`; outer ones first."""
        found = []
        for entry in self._mounted:
            places = self._places(entry)
            if entry.lies_in(directory) or any(each.is_relative_to(place) for each in places):
                found.append((places[0], entry))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def _show(self, entries: Sequence[Entry]) -> None:
        """Mounts overlays into the tree, outer ones first. An overlay stays out if something else has taken its place.

        The overlay that was restored to a place comes before one that a symbolic link now leads there.
        """
        detours = []
        for entry in sorted(entries, key=lambda entry: entry.dir):
            with contextlib.suppress(PathError):
                self._tree.make_directory(entry.dir)
            if self._real_place(entry.dir) in (self._place(entry.dir), None):
                self._show_one(entry)
            else:
                detours.append(entry)
        for entry in detours:
            self._show_one(entry)

    def _show_one(self, entry: Entry) -> None:
        try:
            self._bind(entry)
        except PathError as e:
            self._devices.pop(entry.layer or "", None)
            log.error("layer_not_shown", layer=entry.layer, detail=e.message)

    def _bind(self, entry: Entry) -> None:
        """Mounts an overlay into the tree.

        Raises:
            PathError: something else has taken its place.
            MountError: its layer is not mounted; its daemon may just have died.
        """
        layer = self._open[entry.layer or ""]
        self._tree.make_directory(entry.dir)
        with self._tree.directory(entry.dir) as target:
            place = self._place(self._tree.canonical(target))
            if place in [mount.point for mount in mountinfo.mounts_under(self._place("/"))]:
                raise PathError("Another restored directory is shown there.")
            bind(layer.merged, target)
        mounted = mountinfo.find(layer.merged)
        if mounted is None:  # so a bare directory of the node's disk was bound
            unbind(place, deadline_s=_UNMOUNT_S)
            raise MountError("The layer is not mounted.")
        self._devices[layer.id] = mounted.device

    def _unbind(self, entry: Entry) -> None:
        for point in self._points(entry):
            unbind(point, deadline_s=_UNMOUNT_S)

    def _points(self, entry: Entry) -> list[Path]:
        """The places in the tree at which an overlay is mounted now."""
        device = self._devices.get(entry.layer or "")
        mounts = mountinfo.mounts_under(self._place("/"))
        return [mount.point for mount in mounts if mount.device == device]

    def _places(self, entry: Entry) -> list[Path]:
        """The places at which an overlay is mounted now, or its recorded place if it is not mounted."""
        return self._points(entry) or [self._place(entry.dir)]

    def _real_place(self, directory: str) -> Path | None:
        """The place of a directory with its symbolic links resolved; None if there is no such directory."""
        try:
            with self._tree.directory(directory) as fd:
                return self._place(self._tree.canonical(fd))
        except PathError:
            return None

    def _place(self, directory: str) -> Path:
        return Path(os.path.realpath(self._tree.root)) / directory.lstrip("/")

    def _save(self, record: Record) -> None:
        """Writes the record, whole or not at all. Once the file has its name, nothing here can fail."""
        self._twin.write(record.model_dump_json())
        self.record, self._is_on_record = record, True


def _exchange(one: Path, other: Path) -> None:
    """Exchanges two paths in one step: renameat2(2) with RENAME_EXCHANGE."""
    result = _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    if result != 0:
        error = ctypes.get_errno()
        if error == errno.EXDEV:  # from fuse-overlayfs, for a directory that came from the archive
            raise PathError('A directory inside a restored one cannot be replaced here; use mode "overlay".')
        raise MountError(f"The directory cannot be exchanged: {os.strerror(error)}.")
