"""Makes archives of a sandbox's directories, and unpacks archives, with tools that run in the sandbox's box."""

from __future__ import annotations

import functools
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.node import squashfs
from actors.node.boxed_tools import run_boxed
from actors.node.bubblewrap import Bind, Box, Identity
from actors.node.changes import Rules, Since, stage_changes
from actors.node.errors import ArchiveError, NodeError, NoLayerError, NoSpaceLeftError, ToolError, is_full
from actors.node.laying import lay
from actors.node.owners import give
from actors.node.plain_changes import Recording
from actors.node.removal import remove_tree
from actors.node.survey import Limits, Listed, Survey, survey
from actors.node.tree import Tree
from actors.node.unpacking import UnpackedSize, half_of_the_disk

_SPOOL = "/spool"
_STAGED = "/staged"
_EXTRACT_S = 3600.0
_LIST_S = 300.0


@dataclass(frozen=True, slots=True)
class PackedArchive:
    """A new, verified archive. The caller moves or deletes `path`."""

    path: Path
    found: Survey
    place: str | None = None
    """The path of the archived directory without symbolic links; None for an archive that was converted."""
    is_layer: bool = False
    """True if it holds only what was changed since another backup, and `found` counts no more than that."""
    is_listed: bool = False
    """True if every entry of the directory was listed."""


class Archiver:
    """Makes and unpacks archives for one sandbox. The caller ensures that nothing else changes the tree meanwhile.

    Every method but `left_out` ends early, without an error, when its `cancelled` is set.
    """

    def __init__(self, box: Box, tree: Tree, *, limits: Limits, memory_bytes: int) -> None:
        self._box = box
        self._tree = tree
        self._limits = limits
        self._memory_bytes = memory_bytes
        self._processors = max(1, os.cpu_count() or 1)

    def create(
        self,
        directory: str,
        spool: Path,
        *,
        compression: str,
        level: int | None,
        excludes: Sequence[str] = (),
        gitignore: bool = False,
        since: Since | None = None,
        recording: Recording | None = None,
        timeout_s: float,
        cancelled: threading.Event,
        listed: Listed | None = None,
        on_survey: Callable[[Survey], None] = lambda found: None,
        on_staged: Callable[[], None] = lambda: None,
        on_percent: Callable[[int], None] = lambda percent: None,
        on_writing: Callable[[Path], None] = lambda path: None,
    ) -> PackedArchive:
        """Archives a directory of the tree into the empty folder `spool`.

        Args:
            since: if given, only what was changed since an earlier backup is archived, as a layer.
            recording: if given, and without `since`, the fingerprints of the files are recorded.
            timeout_s: for the survey and the archive together, because commands are paused until both are done.
            listed: see `survey`. Not called with `since` if that does not need every file.
            on_staged: with `since`, called once what was changed is copied: from then on, the tree may change.
            on_writing: called with the path at which the archive is going to grow, unless it is a layer; it is moved
                when it is verified.

        Raises:
            PathError: the directory cannot be used; PathMissingError and PathTypeError say why.
            TreeError: the directory cannot be archived faithfully, or is beyond the limits.
            ArchiveError: the new archive failed its verification.
            NoLayerError: with `since`, the changes cannot be archived by themselves, but perhaps the whole directory.
            BoxError, ToolError, NoSpaceLeftError: the archive could not be made.
        """
        deadline = time.monotonic() + timeout_s
        pack = functools.partial(
            self._squash,
            spool=spool,
            compression=compression,
            level=level,
            cancelled=cancelled,
            on_percent=on_percent,
        )
        rules = Rules(excludes, self._tree if gitignore else None)
        # A read-only mount keeps access times from changing. If they change while mksquashfs reads symbolic links,
        # it takes the names of one link for different links.
        unchanged = replace(self._box, binds=tuple(replace(bind, writable=False) for bind in self._box.binds))
        if since is not None:
            return self._create_layer(
                directory, spool, since, rules, pack, deadline, cancelled, listed, on_survey, on_staged
            )
        with self._tree.directory(directory) as fd:
            inside = self._tree.nameable(fd)
            found = survey(
                fd,
                limits=self._limits,
                excludes=excludes,
                gitignore=rules.gitignore,
                cancelled=cancelled,
                timeout_s=timeout_s,
                listed=listed,
                follower=None if recording is None else recording.find_follower(fd),
                path_bytes=squashfs.PATH_BYTES,
            )
            on_survey(found)
            left_s = max(0.0, deadline - time.monotonic())
            path = pack(unchanged, inside, found, timeout_s=left_s, on_writing=on_writing)
        return PackedArchive(path, found, inside, is_listed=listed is not None)

    def _create_layer(
        self,
        directory: str,
        spool: Path,
        since: Since,
        rules: Rules,
        pack: Callable[..., Path],
        deadline: float,
        cancelled: threading.Event,
        listed: Listed | None,
        on_survey: Callable[[Survey], None],
        on_staged: Callable[[], None],
    ) -> PackedArchive:
        """Archives what was changed in a directory."""
        staged = spool / "staged"
        try:
            with self._tree.directory(directory) as fd:
                inside = self._tree.nameable(fd)
                found, stage = stage_changes(
                    fd,
                    since,
                    staged,
                    uid=self._box.user,
                    limits=self._limits,
                    rules=rules,
                    timeout_s=max(0.0, deadline - time.monotonic()),
                    cancelled=cancelled,
                    listed=listed,
                    path_bytes=squashfs.PATH_BYTES,
                )
            on_survey(found)
            on_staged()
            path = pack(
                replace(self._box, binds=(Bind(staged, _STAGED),)),
                _STAGED,
                replace(found, excluded=[], exclusions={}, inodes=stage.inodes),
                timeout_s=max(0.0, deadline - time.monotonic()),
            )
        except OSError as e:
            raise NoSpaceLeftError("the disk is full") if is_full(e) else NoLayerError(str(e)) from e
        finally:
            remove_tree(staged)
        is_listed = listed is not None and since.base.needs_every_file
        return PackedArchive(path, found, inside, is_layer=True, is_listed=is_listed)

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
        command = squashfs.unsquashfs("/archive", f"/parent/{name}", processors=self._processors)
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
        made = self._pack_alone(content, spool, cancelled)
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
        command = squashfs.unsquashfs("/archive", "/content/tree", processors=self._processors)
        with half_of_the_disk(content, cancelled) as stop:
            ended = run_boxed(
                alone, command, identity=Identity.COMMAND, binds=binds, timeout_s=_EXTRACT_S, cancelled=stop
            )
        if cancelled.is_set():
            return PackedArchive(archive, Survey())
        squashfs.verify_extraction(ended, blamed=ArchiveError)  # its digest is in no signed metadata
        made = self._pack_alone(content, work, cancelled)
        remove_tree(content)
        return made

    def _pack_alone(self, content: Path, spool: Path, cancelled: threading.Event) -> PackedArchive:
        """Archives the tree in the folder `content`, which is no sandbox's."""
        fd = os.open(content / "tree", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = survey(fd, limits=self._limits, cancelled=cancelled)
        finally:
            os.close(fd)
        box = replace(self._box, binds=(Bind(content, "/content"),), network=False)
        path = self._squash(
            box, "/content/tree", found, spool, compression="zstd", level=1, timeout_s=_EXTRACT_S, cancelled=cancelled
        )
        return PackedArchive(path, found)

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

    def _squash(
        self,
        box: Box,
        inside: str,
        found: Survey,
        spool: Path,
        *,
        compression: str,
        level: int | None,
        timeout_s: float,
        cancelled: threading.Event,
        on_percent: Callable[[int], None] = lambda percent: None,
        on_writing: Callable[[Path], None] = lambda path: None,
    ) -> Path:
        out = spool / "out"
        out.mkdir(mode=0o700)
        os.chown(out, box.user, box.user)
        lines, words = squashfs.exclude_lines(found.excluded, found.exclusions)
        if lines or words:
            (out / "excludes").write_bytes(lines)
        command = squashfs.mksquashfs(
            f"{_SPOOL}/data.sqsh",
            uid=box.uid,
            compression=compression,
            level=level,
            memory_bytes=self._memory_bytes,
            processors=self._processors,
            excludes=f"{_SPOOL}/excludes" if lines or words else None,
            duplicates=not found.sizes.search_costs_more(),
        )
        if words:
            command += ["-e", *words]
        bind = (Bind(out, _SPOOL, writable=True),)
        on_writing(out / "data.sqsh")
        ended = run_boxed(
            box,
            command,
            identity=Identity.READER,
            cwd=inside,
            binds=bind,
            timeout_s=timeout_s,
            on_stdout=squashfs.percent_reader(on_percent),
            cancelled=cancelled,
        )
        path = spool / "data.sqsh"
        if not cancelled.is_set():
            squashfs.verify_creation(ended, out / "data.sqsh", inodes=found.inodes)
            os.rename(out / "data.sqsh", path)
            os.chown(path, 0, 0)
        shutil.rmtree(out)
        return path


def _as_node_error(error: OSError) -> NodeError:
    return NoSpaceLeftError("the disk is full") if is_full(error) else ToolError(f"A layer was not copied: {error}.")
