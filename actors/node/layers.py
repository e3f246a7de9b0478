"""The layers of a sandbox, writable over archives: `<root>/<layer id>/{lower,upper,work,merged,layer.json}`.

A layer lies over one archive, or over a stack of them: a full archive and the changes of incremental backups, which are
at `lower1`, `lower2` and so on.

All writes of a layer are in its `upper`, so they survive an unmount, a dead daemon and a dead actor: `open` mounts the
same upper again. An upper is valid only with the driver, the options and the archives that it was made with. layer.json
records these, with a checksum and a second time in layer.json.copy, and `open` refuses any others. The one exception
is a layer of fuse-overlayfs on a node with another driver: it is converted first. layer.json is written last: a folder
without it is a layer whose creation did not finish.
"""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from actors.logs import log
from actors.node import daemons, drivers, fuse_uppers, mountinfo, mounting, refused_xattrs
from actors.node.archive_cache import CachedArchive
from actors.node.causes import brief
from actors.node.drivers import MERGED, UPPER, WORK, Driver
from actors.node.errors import (
    ArchiveRefusedError,
    CorruptRecordError,
    DriverUnavailableError,
    LayerMismatchError,
    MountBusyError,
    MountError,
    NodeError,
    ToolError,
)
from actors.node.lowers import Lowers
from actors.node.records import TwinFile
from actors.node.removal import remove_tree
from actors.node.root_attributes import copy_root
from actors.node.stacks import Stack
from actors.node.union import Union
from actors.node.user_namespace import UserNamespace

_RECORD = "layer.json"
_ID = re.compile(r"[0-9a-f]{32}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_UNMOUNT_S = 10.0


class LayerRecord(BaseModel):
    """The content of layer.json: the driver, options and archives that the upper was made with."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", populate_by_name=True)

    version: Literal[1] = 1
    driver: Driver
    options: str
    archive_sha256: str = Field(validation_alias="archiveSha256", serialization_alias="archiveSha256")
    above: tuple[str, ...] | None = None
    """The digests of the archives over the first one, oldest first; None for one archive."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer that was created or opened. Its archives have to stay in place until the layer is closed."""

    folder: Path
    archive: Path
    sha256: str
    above: tuple[CachedArchive, ...] = ()
    """The archives laid over `archive`, oldest first."""

    @property
    def id(self) -> str:
        """The layer's id: 32 hexadecimal digits, never used again."""
        return self.folder.name

    @property
    def merged(self) -> Path:
        """The layer's directory for use: the archive's content with the layer's writes."""
        return self.folder / MERGED

    @property
    def upper(self) -> Path:
        """The directory with the layer's writes, in the driver's own form."""
        return self.folder / UPPER

    @property
    def index(self) -> Path:
        """The kernel's directory of hard links that were changed; it need not exist."""
        return self.folder / WORK / "index"

    @property
    def archives(self) -> tuple[CachedArchive, ...]:
        """All archives, oldest first."""
        return (CachedArchive(self.archive, self.sha256), *self.above)

    @property
    def lowers(self) -> list[Path]:
        """The directories that show the archives, oldest first, while the layer is mounted."""
        return [self.folder / drivers.lower(number) for number in range(len(self.archives))]


class Layers:
    """The layers of one sandbox.

    Args:
        root: the folder of the layers, on a file system that can be an overlay's upper (ext4, xfs, tmpfs; no overlay).
        lowers: the folder of the kernel's mounts of archives, shared by all sandboxes of the node.
        driver: the driver of every layer here. None if the node offers none: then no layer can be mounted.
        on_lost: called, in a thread of its own, after a daemon of a layer has died and the layer is no longer
            mounted. It ends the processes that use the layer, removes its bind mounts, and calls `revive`.
        is_trial: True if the caller expects failures and reports them. Else they are logged.
        user_namespace: the sandbox's. If it gives the sandbox a user of its own, the layers show their files as that
            user's; only with the driver `kernel`.
    """

    def __init__(
        self,
        root: Path,
        lowers: Path,
        *,
        driver: Driver | None,
        on_lost: Callable[[Layer], None],
        is_trial: bool = False,
        user_namespace: UserNamespace | None = None,
    ) -> None:
        self._root = Path(os.path.realpath(root))
        self._lowers = Lowers(Path(os.path.realpath(lowers)))
        self._offered = driver
        self._on_lost = on_lost
        self._is_trial = is_trial
        self._user_namespace = user_namespace
        self._daemons = daemons.of_this_process()
        self._stacks: dict[str, Stack] = {}

    @property
    def can_mount(self) -> bool:
        """True if there is a driver, so that layers can be mounted."""
        return self._offered is not None

    @property
    def driver(self) -> Driver:
        """The driver of every layer here. Raises DriverUnavailableError if there is none."""
        if self._offered is None:
            raise DriverUnavailableError(
                "No mount driver is offered here, so no layer can be mounted. What is in the layers is kept.",
                hint="Run `holdfast doctor` on the node, and give it what it lacks.",
            )
        return self._offered

    def create(self, archive: Path, sha256: str, above: Sequence[CachedArchive] = ()) -> Layer:
        """Creates a layer: mounts an archive, and those `above` it, under a new, empty upper. All or nothing.

        The caller has to verify the archives first, because the kernel parses them; no hash is checked here.

        Raises:
            ArchiveRefusedError: the driver would show something in the archive wrongly.
            DriverUnavailableError: there is no driver.
            MountError: the layer cannot be mounted; no mount, process or folder was left.
        """
        layer = self._layer(uuid.uuid4().hex, archive, sha256, above)
        stack = self._stack(layer)
        with self._attempt("made", layer.id):
            try:
                layer.folder.mkdir(mode=0o700, parents=True)
                for name in (UPPER, WORK, MERGED):
                    (layer.folder / name).mkdir()
                for each in layer.archives:
                    stack.mount_lower(each.path, each.sha256)
                self._check_xattrs(layer)
                copy_root(layer.lowers[-1], layer.upper)
                stack.mount_merged()
                stack.serve()
                self._write_record(layer)
            except BaseException:
                stack.abandon()
                self._delete(layer.folder)
                raise
        self._stacks[layer.id] = stack
        return layer

    def open(self, layer_id: str, archive: Path, sha256: str, above: Sequence[CachedArchive] = ()) -> Layer:
        """Mounts an existing layer again, with all its writes: after a restart, a crash or `close`.

        A kernel mount that has outlived its actor is adopted if it answers. FUSE mounts, and those that map owners,
        are always made anew.

        Raises:
            LayerMismatchError: the layer was made with other archives, driver or options; nothing was changed.
            DriverUnavailableError: there is no driver; nothing was changed.
            MountBusyError: an old mount of the layer is in use.
            MountError: the layer cannot be mounted; its upper is intact.
        """
        layer = self._layer(layer_id, archive, sha256, above)
        with self._attempt("opened", layer.id):
            converting = self._is_to_convert(layer)
            if not converting:
                self._check_record(layer)
            self._mount(layer, converting=converting)
        return layer

    def revive(self, layer: Layer, *, deadline_s: float = _UNMOUNT_S) -> None:
        """Mounts a lost layer again, with all writes that were closed or synced before the loss.

        Raises:
            MountBusyError: processes still use the dead mount; end them and retry.
            MountError: the layer cannot be mounted; its upper is intact.
        """
        self.close(layer, deadline_s=deadline_s)
        with self._attempt("revived", layer.id):
            self._mount(layer)

    def close(self, layer: Layer, *, deadline_s: float = _UNMOUNT_S) -> None:
        """Unmounts a layer and keeps its upper. Does nothing if the layer is not open. May be retried after a failure.

        Raises:
            MountBusyError: something used the layer until the deadline. If this mount namespace used it, it stays
                mounted; if only another one did, it is unmounted here.
        """
        stack = self._stacks.get(layer.id)
        if stack is not None:
            self._close(layer.id, stack, deadline_s=deadline_s)

    def close_all(self) -> None:
        """Closes every open layer, also one that could not be discarded. Raises as `close`."""
        for layer_id, stack in list(self._stacks.items()):
            self._close(layer_id, stack, deadline_s=_UNMOUNT_S)

    def _close(self, layer_id: str, stack: Stack, *, deadline_s: float) -> None:
        with self._attempt("closed", layer_id):
            stack.unmount(deadline_s=deadline_s)
        del self._stacks[layer_id]

    def discard(self, layer: Layer, *, deadline_s: float = _UNMOUNT_S) -> None:
        """Closes a layer and deletes it with all its writes.

        Raises:
            MountBusyError: something used the layer until the deadline; its upper is intact.
            MountError: the layer could not be deleted.
        """
        self.close(layer, deadline_s=deadline_s)
        self.discard_leftover(layer.id, deadline_s=deadline_s)

    def discard_leftover(self, layer_id: str, *, deadline_s: float = _UNMOUNT_S) -> None:
        """Deletes a layer that is not open here: one of an earlier process, or whose creation did not finish.

        Raises:
            MountBusyError: the layer is open here, or something used its mounts until the deadline.
            MountError: the layer could not be deleted.
        """
        folder = self._folder(layer_id)
        with self._attempt("deleted", layer_id):
            if layer_id in self._stacks:
                raise MountBusyError("The layer is open.")
            if mounting.sweep(folder, deadline_s=deadline_s):
                raise MountBusyError(f"Layer {layer_id} is still in use after {deadline_s:g} s.")
            self._delete(folder)

    def ids(self) -> list[str]:
        """The ids of all layers on the disk, open or not, finished or not."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self._root) if _ID.fullmatch(name))
        return []

    def is_lost(self, layer: Layer) -> bool:
        """True if a daemon of an open layer has died, and the layer is not mounted anew yet."""
        stack = self._stacks.get(layer.id)
        return stack is not None and stack.is_lost

    @property
    def has_lost(self) -> bool:
        """True if any open layer is lost, as in `is_lost`."""
        return any(stack.is_lost for stack in list(self._stacks.values()))

    def release_unused_lowers(self) -> list[Path]:
        """Unmounts the node's kernel mounts of archives that no process holds. Returns their folders."""
        with _as_mount_error("The archives cannot be unmounted"):
            return self._lowers.release_unused()

    @contextlib.contextmanager
    def _attempt(self, done: str, layer_id: str) -> Iterator[None]:
        """Raises OSError and ToolError as MountError. Logs each failure with the layer's id, except in a trial."""
        try:
            with _as_mount_error(f"The layer cannot be {done}"):
                yield
        except NodeError as e:
            if not self._is_trial:
                log.warning("layer_failed", layer=layer_id, done=done, error=type(e).__name__, detail=brief(e.message))
            raise

    def _folder(self, layer_id: str) -> Path:
        if not _ID.fullmatch(layer_id):
            raise MountError(f"{layer_id!r} is not the id of a layer.")
        return self._root / layer_id

    def _layer(self, layer_id: str, archive: Path, sha256: str, above: Sequence[CachedArchive]) -> Layer:
        for digest in (sha256, *(each.sha256 for each in above)):
            if not _SHA256.fullmatch(digest):
                raise MountError(f"{digest!r} is not a SHA-256 in hexadecimal.")
        over = tuple(CachedArchive(Path(os.path.abspath(each.path)), each.sha256) for each in above)
        return Layer(self._folder(layer_id), Path(os.path.abspath(archive)), sha256, over)

    def _stack(self, layer: Layer) -> Stack:
        return Stack(
            layer.folder,
            driver=self.driver,
            lowers=self._lowers,
            daemons=self._daemons,
            on_lost=lambda: self._on_lost(layer),
            mapping=self._mapping,
        )

    def _mapping(self) -> int | None:
        return None if self._user_namespace is None else self._user_namespace.mapping()

    def _mount(self, layer: Layer, *, converting: bool = False) -> None:
        if layer.id in self._stacks:
            raise MountError("The layer is open already.")
        stack = self._stack(layer)
        adopted = not converting and self._adoptable(layer)
        if not adopted and mounting.sweep(layer.folder, deadline_s=_UNMOUNT_S):
            raise MountBusyError(f"A stale mount of layer {layer.id} is still in use.")
        if converting:  # the kernel driver needs a link as `lower`; `work` holds leftovers
            for old in (*layer.lowers, layer.folder / WORK):
                remove_tree(old)
            (layer.folder / WORK).mkdir()
        try:
            for each in layer.archives:
                stack.mount_lower(each.path, each.sha256)
            if converting:
                self._convert(layer)
            if not adopted:
                stack.mount_merged()
            stack.serve()
        except BaseException:
            stack.abandon()
            raise
        self._stacks[layer.id] = stack

    def _adoptable(self, layer: Layer) -> bool:
        if self.driver is not Driver.KERNEL or self._mapping() is not None:
            return False
        mount = mountinfo.find(layer.merged)
        return (
            mount is not None
            and mount.fs_type == "overlay"
            and f"upperdir={UPPER}" in mount.super_options  # it shows the files as their owner's
            and mountinfo.look(layer.merged) is None
        )

    def _is_to_convert(self, layer: Layer) -> bool:
        """True if fuse-overlayfs made the layer, and this node has another driver."""
        return self.driver is not Driver.FUSE and self._read_record(layer) == _record(Driver.FUSE, layer)

    def _convert(self, layer: Layer) -> None:
        """Converts a layer of fuse-overlayfs for this node's driver. Only the layer's archives may be mounted."""
        upper = os.open(layer.upper, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with Union.of(layer.lowers) as lower:
                fuse_uppers.convert(upper, lower, self.driver)
        finally:
            os.close(upper)
        self._write_record(layer)
        log.warning("layer_converted", layer=layer.id, driver=self.driver.value)

    def _check_xattrs(self, layer: Layer) -> None:
        for archive, mounted in zip(layer.archives, layer.lowers, strict=True):
            limit = refused_xattrs.first_limit(archive.path, mounted, self.driver.limits)
            if limit is not None:
                raise ArchiveRefusedError(
                    f"The archive holds what the {self.driver} driver would show wrongly: {limit}.",
                    hint='Restore it with mode "copy".',
                )

    def _write_record(self, layer: Layer) -> None:
        _twin(layer).write(_json(_record(self.driver, layer)))

    def _read_record(self, layer: Layer) -> LayerRecord:
        """Reads the layer's record, and rewrites it if one of its two files is damaged."""
        twin = _twin(layer)
        try:
            found, is_sound = twin.read()
        except CorruptRecordError as e:
            raise LayerMismatchError(f"Layer {layer.id} has no readable {_RECORD}.") from e
        if found is None:
            raise LayerMismatchError(f"Layer {layer.id} has no {_RECORD}.")
        if not is_sound:
            twin.write(_json(found))
        return found

    def _check_record(self, layer: Layer) -> None:
        found, expected = self._read_record(layer), _record(self.driver, layer)
        if found != expected:
            raise LayerMismatchError(
                f"Layer {layer.id} was made as {found!r} and cannot be opened as {expected!r}.",
                hint="Open it with the driver and the archives it was made with, or restore the backup again.",
            )

    def _delete(self, folder: Path) -> None:
        """Deletes a layer's folder, if mountinfo shows no mount under it.

        Never crosses into another file system, in case a mount appears meanwhile.
        """
        if mountinfo.mounts_under(folder):
            raise MountBusyError(f"Layer {folder.name} is still mounted.")
        try:
            remove_tree(folder)
        except ToolError as e:
            raise MountError(f"Layer {folder.name} cannot be deleted: {e.message}") from e


def _record(driver: Driver, layer: Layer) -> LayerRecord:
    above = tuple(each.sha256 for each in layer.above) or None
    return LayerRecord(driver=driver, options=driver.overlay_options, archive_sha256=layer.sha256, above=above)


def _json(record: LayerRecord) -> str:
    return record.model_dump_json(by_alias=True, exclude_none=True)


def _twin(layer: Layer) -> TwinFile[LayerRecord]:
    return TwinFile(layer.folder / _RECORD, LayerRecord.model_validate_json)


@contextlib.contextmanager
def _as_mount_error(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ToolError) as e:
        raise MountError(f"{what}: {e}.") from e
