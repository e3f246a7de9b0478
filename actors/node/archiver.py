"""Makes archives of a sandbox's directories (`packing`), and unpacks archives, with tools that run in its box."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from actors.node import squashfs
from actors.node.boxed_tools import run_boxed
from actors.node.bubblewrap import Bind, Box, Identity
from actors.node.errors import ArchiveError, NodeError, NoSpaceLeftError, ToolError, is_full
from actors.node.laying import lay
from actors.node.owners import give
from actors.node.packing import ArchiveRequest, PackedArchive, Packer
from actors.node.removal import remove_tree
from actors.node.survey import Limits, Survey, survey
from actors.node.tree import Tree
from actors.node.unpacking import UnpackedSize, half_of_the_disk

_EXTRACT_S = 3600.0
_LIST_S = 300.0


class Archiver:
    """Makes and unpacks archives for one sandbox. The caller ensures that nothing else changes the tree meanwhile.

    Every method but `left_out` ends early, without an error, when its `cancelled` is set.
    """

    def __init__(self, box: Box, tree: Tree, *, limits: Limits, memory_bytes: int) -> None:
        self._box = box
        self._tree = tree
        self._limits = limits
        self._packer = Packer(box, tree, limits=limits, memory_bytes=memory_bytes)

    def create(self, request: ArchiveRequest) -> PackedArchive:
        """Archives a directory of the tree; see `Packer.create`."""
        return self._packer.create(request)

    @property
    def user(self) -> int:
        """The user that the sandbox's processes run as, as the node sees it."""
        return self._box.user

    def left_out(self, directory: str, excludes: Sequence[str], *, timeout_s: float) -> list[bytes]:
        """Returns the paths in a directory that patterns exclude, relative to it; none below an excluded directory.

        Raises:
            PathError: the directory cannot be used; PathMissingError and PathTypeError say why.
            TreeError: the directory is beyond the limits, or could not be walked in time.
        """
        with self._tree.directory(directory) as fd:
            self._tree.canonical(fd)
            return survey(fd, limits=self._limits, excludes=excludes, timeout_s=timeout_s).excluded

    def extract(self, archive: Path, parent: Path, name: str, *, cancelled: threading.Event) -> None:
        """Unpacks an archive that this service made into the new directory `name` of `parent`, with owners and modes.

        Raises:
            BoxError, ToolError, NoSpaceLeftError: the caller has to remove what was unpacked.
        """
        binds = (Bind(archive, "/archive"), Bind(parent, "/parent", writable=True))
        command = squashfs.unsquashfs("/archive", f"/parent/{name}")
        empty = replace(self._box, binds=())
        ended = run_boxed(
            empty, command, identity=Identity.KEEPER, binds=binds, timeout_s=_EXTRACT_S, cancelled=cancelled
        )
        if cancelled.is_set():
            return
        squashfs.verify_extraction(ended)
        squashfs.verify_extracted_tree(archive, parent / name, self._limits)

    def extract_stack(
        self, archives: Sequence[Path], parent: Path, name: str, work: Path, *, cancelled: threading.Event
    ) -> None:
        """Unpacks the archives of an incremental backup, oldest first, into the new directory `name` of `parent`.

        Args:
            work: an empty folder on the node's disk, in which the layers are unpacked first. An overlay could not hold
                their whiteouts.

        Raises:
            BoxError, ToolError, NoSpaceLeftError: as `extract`.
        """
        base, *layers = archives
        self.extract(base, parent, name, cancelled=cancelled)
        for layer in layers:
            if cancelled.is_set():
                return
            self.extract(layer, work, "layer", cancelled=cancelled)
            if not cancelled.is_set():
                try:
                    lay(work / "layer", parent / name, uid=self._box.user)
                except OSError as e:
                    raise _as_node_error(e) from e
            remove_tree(work / "layer")

    def flatten(self, archives: Sequence[Path], work: Path, *, cancelled: threading.Event) -> PackedArchive:
        """Makes one archive of those of an incremental backup that this service made, with this sandbox's owner.

        Raises:
            TreeError: it holds more than the limits allow.
            BoxError, ToolError, NoSpaceLeftError, ArchiveError: the archive could not be made.
        """
        content, layers, spool = (work / name for name in ("content", "layers", "spool"))
        for folder in (content, layers, spool):
            folder.mkdir()
        self.extract_stack(archives, content, "tree", layers, cancelled=cancelled)
        if cancelled.is_set():
            return PackedArchive(archives[-1], Survey())
        try:
            give(content, uid=self._box.user)
        except OSError as e:
            raise _as_node_error(e) from e
        made = self._packer.pack(content, spool, cancelled)
        remove_tree(content)
        return made

    def find_name(self, archive: Path, wanted: Callable[[bytes], bool], *, cancelled: threading.Event) -> bytes | None:
        """Returns the first file name for which `wanted` is true, from an archive that this service made.

        Raises:
            BoxError, ToolError: the archive cannot be listed now.
        """
        names = squashfs.NameReader(wanted)
        empty = replace(self._box, binds=())
        command = squashfs.listing("/archive")
        ended = run_boxed(
            empty,
            command,
            identity=Identity.KEEPER,
            binds=(Bind(archive, "/archive"),),
            timeout_s=_LIST_S,
            on_stdout=names.read,
            cancelled=cancelled,
        )
        if not cancelled.is_set():
            squashfs.verify_extraction(replace(ended, stdout=b""))  # file names may look like errors
        return names.found

    def convert(self, archive: Path, work: Path, *, cancelled: threading.Event) -> PackedArchive:
        """Converts a foreign archive: unpacks it without any privilege, and packs it again.

        The kernel can safely mount the new archive, and its files belong to the sandbox. Owners, devices and
        set-id bits of the original are not kept. After an error the caller has to remove `work`.

        Raises:
            ArchiveError: it is no archive, or holds what unsquashfs cannot unpack.
            TreeError: it holds more than the limits allow; nothing was unpacked.
            NoSpaceLeftError: it takes more than half of the free disk.
            BoxError, ToolError: the archive could not be unpacked or packed.
        """
        squashfs.superblock(archive)
        content = work / "content"
        content.mkdir()
        for path in (content, archive):
            os.chown(path, self._box.user, self._box.user)
        alone = replace(self._box, binds=(), network=False)
        self._check_unpacked_size(archive, alone, cancelled)
        binds = (Bind(archive, "/archive"), Bind(content, "/content", writable=True))
        command = squashfs.unsquashfs("/archive", "/content/tree")
        with half_of_the_disk(content, cancelled) as stop:
            ended = run_boxed(
                alone, command, identity=Identity.COMMAND, binds=binds, timeout_s=_EXTRACT_S, cancelled=stop
            )
        if cancelled.is_set():
            return PackedArchive(archive, Survey())
        squashfs.verify_extraction(ended, blamed=ArchiveError)  # its digest is in no signed metadata
        made = self._packer.pack(content, work, cancelled)
        remove_tree(content)
        return made

    def _check_unpacked_size(self, archive: Path, alone: Box, cancelled: threading.Event) -> None:
        beyond = threading.Event()
        size = UnpackedSize(self._limits, beyond)

        def read(output: bytes) -> None:
            size.read(output)
            if cancelled.is_set():
                beyond.set()

        ended = run_boxed(
            alone,
            squashfs.sizes("/archive"),
            identity=Identity.COMMAND,
            binds=(Bind(archive, "/archive"),),
            timeout_s=_LIST_S,
            on_stdout=read,
            cancelled=beyond,
        )
        size.check()
        if not beyond.is_set():
            squashfs.verify_extraction(replace(ended, stdout=b""), blamed=ArchiveError)


def _as_node_error(error: OSError) -> NodeError:
    return NoSpaceLeftError("the disk is full") if is_full(error) else ToolError(f"A layer was not copied: {error}.")
