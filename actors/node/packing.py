"""Makes archives: a directory is looked over, then written by mksquashfs, which runs in the sandbox's box."""

from __future__ import annotations

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
from actors.node.errors import NoLayerError, NoSpaceLeftError, is_full
from actors.node.plain_changes import Recording
from actors.node.removal import remove_tree
from actors.node.survey import Limits, Listed, Survey, survey
from actors.node.tree import Tree

_SPOOL = "/spool"
_STAGED = "/staged"
_CONTENT = "/content"
_PACK_S = 3600.0


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


@dataclass(frozen=True, slots=True, kw_only=True)
class ArchiveRequest:
    """The directory to archive, how, and who is told of it."""

    directory: str
    """Its path in the sandbox."""
    spool: Path
    """An empty folder, in which the archive is made."""
    compression: str
    level: int | None
    timeout_s: float
    """For the survey and the archive together, because commands are paused until both are done."""
    cancelled: threading.Event
    """Once it is set, the work ends early, without an error."""
    excludes: Sequence[str] = ()
    gitignore: bool = False
    since: Since | None = None
    """If given, only what was changed since an earlier backup is archived, as a layer."""
    recording: Recording | None = None
    """If given, and without `since`, the fingerprints of the files are recorded."""
    listed: Listed | None = None
    """See `survey`. Not called with `since` if that does not need every file."""
    on_survey: Callable[[Survey], None] = lambda found: None
    on_staged: Callable[[], None] = lambda: None
    """With `since`, called once what was changed is copied: from then on, the tree may change."""
    on_percent: Callable[[int], None] = lambda percent: None
    on_writing: Callable[[Path], None] = lambda path: None
    """Called with the path at which the archive is going to grow, unless it is a layer; it is moved when it is
    verified."""


class Packer:
    """Makes archives for one sandbox. The caller ensures that nothing else changes the tree meanwhile."""

    def __init__(self, box: Box, tree: Tree, *, limits: Limits, memory_bytes: int) -> None:
        self._box = box
        self._tree = tree
        self._limits = limits
        self._memory_bytes = memory_bytes

    def create(self, request: ArchiveRequest) -> PackedArchive:
        """Archives a directory of the tree.

        Raises:
            PathError: the directory cannot be used; PathMissingError and PathTypeError say why.
            TreeError: the directory cannot be archived faithfully, or is beyond the limits.
            ArchiveError: the new archive failed its verification.
            NoLayerError: with `since`, the changes cannot be archived by themselves, but perhaps the whole directory.
            BoxError, ToolError, NoSpaceLeftError: the archive could not be made.
        """
        deadline = time.monotonic() + request.timeout_s
        rules = Rules(request.excludes, self._tree if request.gitignore else None)
        if request.since is None:
            return self._create_whole(request, rules, deadline)
        try:
            return self._create_layer(request, request.since, rules, deadline)
        except OSError as e:
            raise NoSpaceLeftError("the disk is full") if is_full(e) else NoLayerError(str(e)) from e

    def pack(self, content: Path, spool: Path, cancelled: threading.Event) -> PackedArchive:
        """Archives the tree `tree` in the folder `content`, which is no sandbox's. Raises as `create`."""
        fd = os.open(content / "tree", os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            found = survey(fd, limits=self._limits, cancelled=cancelled)
        finally:
            os.close(fd)
        request = ArchiveRequest(
            directory=f"{_CONTENT}/tree",
            spool=spool,
            compression="zstd",
            level=1,
            timeout_s=_PACK_S,
            cancelled=cancelled,
        )
        box = replace(self._box, binds=(Bind(content, _CONTENT),), network=False)
        path = self._squash(request, box, request.directory, found, time.monotonic() + request.timeout_s)
        return PackedArchive(path, found)

    def _create_whole(self, request: ArchiveRequest, rules: Rules, deadline: float) -> PackedArchive:
        # A read-only mount keeps access times from changing. If they change while mksquashfs reads symbolic links,
        # it takes the names of one link for different links.
        unchanged = replace(self._box, binds=tuple(replace(bind, writable=False) for bind in self._box.binds))
        with self._tree.directory(request.directory) as fd:
            inside = self._tree.nameable(fd)
            found = survey(
                fd,
                limits=self._limits,
                excludes=rules.excludes,
                gitignore=rules.gitignore,
                cancelled=request.cancelled,
                timeout_s=_left(deadline),
                listed=request.listed,
                follower=None if request.recording is None else request.recording.find_follower(fd),
                path_bytes=squashfs.PATH_BYTES,
            )
            request.on_survey(found)
            path = self._squash(request, unchanged, inside, found, deadline, on_writing=request.on_writing)
        return PackedArchive(path, found, inside, is_listed=request.listed is not None)

    def _create_layer(self, request: ArchiveRequest, since: Since, rules: Rules, deadline: float) -> PackedArchive:
        """Archives what was changed in the directory: stages it, then packs what is staged."""
        staged = request.spool / "staged"
        try:
            with self._tree.directory(request.directory) as fd:
                inside = self._tree.nameable(fd)
                found, stage = stage_changes(
                    fd,
                    since,
                    staged,
                    uid=self._box.user,
                    limits=self._limits,
                    rules=rules,
                    timeout_s=_left(deadline),
                    cancelled=request.cancelled,
                    listed=request.listed,
                    path_bytes=squashfs.PATH_BYTES,
                )
            request.on_survey(found)
            request.on_staged()
            box = replace(self._box, binds=(Bind(staged, _STAGED),))
            contents = replace(found, excluded=[], exclusions={}, inodes=stage.inodes)
            path = self._squash(request, box, _STAGED, contents, deadline)
        finally:
            remove_tree(staged)
        is_listed = request.listed is not None and since.base.needs_every_file
        return PackedArchive(path, found, inside, is_layer=True, is_listed=is_listed)

    def _squash(
        self,
        request: ArchiveRequest,
        box: Box,
        inside: str,
        found: Survey,
        deadline: float,
        *,
        on_writing: Callable[[Path], None] = lambda path: None,
    ) -> Path:
        """Runs mksquashfs for the directory `inside` of a box, in which `found` was found. Returns the archive."""
        out = request.spool / "out"
        out.mkdir(mode=0o700)
        os.chown(out, box.user, box.user)
        lines, words = squashfs.exclude_lines(found.excluded, found.exclusions)
        if lines or words:
            (out / "excludes").write_bytes(lines)
        command = squashfs.mksquashfs(
            f"{_SPOOL}/data.sqsh",
            uid=box.uid,
            compression=request.compression,
            level=request.level,
            memory_bytes=self._memory_bytes,
            excludes=f"{_SPOOL}/excludes" if lines or words else None,
            duplicates=not found.sizes.search_costs_more(),
        )
        if words:
            command += ["-e", *words]
        on_writing(out / "data.sqsh")
        ended = run_boxed(
            box,
            command,
            identity=Identity.READER,
            cwd=inside,
            binds=(Bind(out, _SPOOL, writable=True),),
            timeout_s=_left(deadline),
            on_stdout=squashfs.percent_reader(request.on_percent),
            cancelled=request.cancelled,
        )
        path = request.spool / "data.sqsh"
        if not request.cancelled.is_set():
            squashfs.verify_creation(ended, out / "data.sqsh", inodes=found.inodes)
            os.rename(out / "data.sqsh", path)
            os.chown(path, 0, 0)
        shutil.rmtree(out)
        return path


def _left(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
