"""The overlays of a sandbox: layers that are mounted, and shown in the sandbox's tree at the directories of entries."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from actors.logs import log
from actors.node import mountinfo
from actors.node.archive_cache import CachedArchive
from actors.node.binds import bind, unbind
from actors.node.drivers import Driver
from actors.node.errors import MountBusyError, MountError, NodeError, PathError
from actors.node.layers import Layer, Layers
from actors.node.mounting import sweep
from actors.node.tree import Tree
from actors.sandbox.discards import Discards
from actors.sandbox.steps import RestoreStep, step
from actors.state.node_record import Entry

_UNMOUNT_S = 10.0


class Overlays:
    """The open layers of one sandbox, and their mounts in its tree. Not thread-safe: the caller holds the tree lock.

    An overlay is open while its layer is mounted. It is shown while it is mounted into the tree as well, which a
    command can prevent or change: it may put something else in the overlay's place, or rename a directory above it.
    """

    def __init__(self, tree: Tree, layers: Layers) -> None:
        self._tree = tree
        self._layers = layers
        self._open: dict[str, Layer] = {}
        self._devices: dict[str, str] = {}
        """The device number of each layer that was shown, by which its mounts are found."""
        self._discards = Discards(layers)

    @property
    def driver(self) -> Driver:
        """The driver of the layers. Raises DriverUnavailableError."""
        return self._layers.driver

    def is_open(self, entry: Entry) -> bool:
        """Tells whether the layer of an entry is mounted, in the sandbox's tree or not."""
        return entry.layer in self._open

    def find_open(self, entry: Entry) -> Layer | None:
        """The mounted layer of an entry; None if it is not mounted."""
        return self._open.get(entry.layer or "")

    def open(self, layer: str, archives: Sequence[CachedArchive]) -> None:
        """Mounts a recorded layer over its archives (oldest first), outside of the tree. Raises NodeError."""
        base, *above = archives
        self._open[layer] = self._layers.open(layer, base.path, base.sha256, above)

    def close_all(self) -> None:
        """Unmounts everything and keeps every upper. Raises MountError if a mount is in use."""
        if self._open:
            self._hide_all()
        self._discards.wait()
        self._layers.close_all()
        self._open.clear()

    def sweep(self, folder: Path) -> None:
        """Unmounts what earlier processes have left mounted in the sandbox's folder. Raises MountError."""
        self._discards.wait()
        stuck = sweep(folder, deadline_s=_UNMOUNT_S)
        if stuck:
            raise MountError(f"{len(stuck)} mounts of an earlier process are still in use.")

    def forget(self) -> None:
        """Forgets where layers were shown, after the sandbox's files were removed."""
        self._devices.clear()

    def show(self, entries: Sequence[Entry]) -> None:
        """Shows open overlays, outer ones first. An overlay stays out if something else has taken its place.

        The overlay that was restored to a place comes before one that a symbolic link now leads there.

        Raises:
            MountError: a layer is not mounted; its daemon may just have died.
        """
        detours = []
        for entry in sorted(entries, key=lambda entry: entry.dir):
            with contextlib.suppress(PathError):
                self._tree.make_directory(entry.dir)
            if self._real_place(entry.dir) in (self._tree.place(entry.dir), None):
                self._show_or_leave_out(entry)
            else:
                detours.append(entry)
        for entry in detours:
            self._show_or_leave_out(entry)

    def show_one(self, entry: Entry) -> None:
        """Shows an open overlay.

        Raises:
            PathError: something else has taken its place.
            MountError: its layer is not mounted; its daemon may just have died.
        """
        layer = self._open[entry.layer or ""]
        self._tree.make_directory(entry.dir)
        with self._tree.directory(entry.dir) as target:
            place = self._tree.place(self._tree.canonical(target))
            if place in [mount.point for mount in self._mounts()]:
                raise PathError("Another restored directory is shown there.")
            bind(layer.merged, target)
        mounted = mountinfo.find(layer.merged)
        if mounted is None:  # so a bare directory of the node's disk was bound
            unbind(place, deadline_s=_UNMOUNT_S)
            raise MountError("The layer is not mounted.")
        self._devices[layer.id] = mounted.device

    def hide(self, entry: Entry) -> None:
        """Unmounts an overlay from the tree; its layer stays mounted. Raises MountError if it is in use."""
        for point in self._points(entry):
            unbind(point, deadline_s=_UNMOUNT_S)

    def shown_in(self, directory: str, entries: Sequence[Entry]) -> list[Entry]:
        """The open overlays of `entries` that are recorded or mounted in `directory`; outer ones first."""
        return self._shown_in(self._tree.place(directory), directory, entries)

    def show_missing(self, entries: Sequence[Entry]) -> bool:
        """Shows those open overlays that are not shown.

        Returns:
            False, and changes nothing, if one of the others is not in its place.
        """
        found = [(entry, self._points(entry)) for entry in entries]
        if any(points != [self._real_place(entry.dir)] for entry, points in found if points):
            return False
        self.show([entry for entry, points in found if not points])
        return True

    def show_anew(self, entries: Sequence[Entry]) -> None:
        """Unmounts everything from the tree, and shows these overlays. Raises MountBusyError, MountError."""
        self._hide_all()
        self.show(entries)

    def _hide_all(self) -> None:
        if sweep(self._tree.root, deadline_s=_UNMOUNT_S, and_itself=False):
            raise MountBusyError("A restored directory is still in use.")

    @contextmanager
    def shown(self, entry: Entry, layer: Layer) -> Iterator[None]:
        """Shows a new layer at `entry.dir`, for good unless the block fails. Raises NodeError."""
        self._open[layer.id] = layer
        try:
            with step(RestoreStep.SHOW):
                self.show_one(entry)
            if self._layers.is_lost(layer):  # a daemon that dies later is revived, because the record has the layer
                raise MountError("A file system daemon under the directory died.")
            yield
        except BaseException:
            self.hide(entry)
            del self._open[layer.id]
            raise

    def revive(self, entry: Entry, layer: Layer, entries: Sequence[Entry]) -> None:
        """Mounts a layer again after its daemon died, and shows it with all overlays inside it. Raises NodeError."""
        inside = self._shown_in(self._places(entry)[0], entry.dir, entries)
        for other in reversed(inside):
            self.hide(other)
        self._layers.revive(layer)
        self.show(inside)

    def discard(self, replaced: Sequence[Entry]) -> None:
        """Discards the layers of entries that a restore has replaced, soon. Raises nothing: the record is written."""
        for entry in reversed(replaced):
            layer = self._open.pop(entry.layer or "", None)
            if layer is not None:
                self._discards.add(layer)

    def discard_all_but(self, recorded: Collection[str | None]) -> None:
        """Removes the layers of earlier processes that are not recorded. Raises NodeError, OSError."""
        self._discards.wait()
        leftovers = [layer_id for layer_id in self._layers.ids() if layer_id not in recorded]
        for layer_id in leftovers:
            self._layers.discard_leftover(layer_id)
        if leftovers:
            self.release_lowers()

    def release_lowers(self) -> None:
        """Unmounts the archives that killed processes have left mounted by the kernel, unless they are in use."""
        try:
            self._layers.release_unused_lowers()
        except (NodeError, OSError) as e:  # the next call removes them
            log.warning("lowers_left_mounted", error=type(e).__name__)

    def _shown_in(self, place: Path, directory: str, entries: Sequence[Entry]) -> list[Entry]:
        """The open overlays that are recorded in `directory`, or mounted in `place`; outer ones first."""
        found = []
        for entry in filter(self.is_open, entries):
            places = self._places(entry)
            if entry.lies_in(directory) or any(each.is_relative_to(place) for each in places):
                found.append((places[0], entry))
        return [entry for _, entry in sorted(found, key=lambda pair: pair[0])]

    def _show_or_leave_out(self, entry: Entry) -> None:
        try:
            self.show_one(entry)
        except PathError as e:
            self._devices.pop(entry.layer or "", None)
            log.error("layer_not_shown", layer=entry.layer, detail=e.message)

    def _points(self, entry: Entry) -> list[Path]:
        """The places in the tree at which an overlay is mounted now."""
        device = self._devices.get(entry.layer or "")
        return [mount.point for mount in self._mounts() if mount.device == device]

    def _places(self, entry: Entry) -> list[Path]:
        """The places at which an overlay is mounted now, or its recorded place if it is not mounted."""
        return self._points(entry) or [self._tree.place(entry.dir)]

    def _mounts(self) -> list[mountinfo.Mount]:
        return mountinfo.mounts_under(self._tree.place("/"))

    def _real_place(self, directory: str) -> Path | None:
        """The place of a directory with its symbolic links resolved; None if there is no such directory."""
        found = self._tree.find_canonical(directory)
        return None if found is None else self._tree.place(found)
