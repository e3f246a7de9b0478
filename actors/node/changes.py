"""Stages what was changed in a directory since a backup, in one walk over it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from actors.node import mountinfo
from actors.node.errors import NoLayerError, TreeError
from actors.node.layers import Layer
from actors.node.overlay_changes import changes_of
from actors.node.removal import remove_tree
from actors.node.staged import Key, Stage
from actors.node.survey import Follower, Limits, Listed, Survey, survey
from actors.node.tree import Tree


class Base(Protocol):
    """The content of the earlier backup that the changes are laid over."""

    @property
    def needs_every_file(self) -> bool:
        """True if a walk for the changes looks at all files of the directory, whatever the rules are."""

    def check(self, fd: int) -> None:
        """Raises NoLayerError if the directory `fd` cannot be compared with it."""

    def follower(self, fd: int, stage: Stage, *, everywhere: bool, wanted: Collection[Key]) -> Follower:
        """The follower of a walk over the directory `fd`; see `overlay_changes.changes_of`."""


@dataclass(frozen=True, slots=True)
class OverlaidArchives:
    """The archives under a restored directory, as a base."""

    layer: Layer

    @property
    def needs_every_file(self) -> bool:
        """False: the upper tells where to look."""
        return False

    def check(self, fd: int) -> None:
        """Raises NoLayerError unless the directory is the layer, with nothing mounted inside it."""
        shown, merged = os.fstat(fd), self.layer.merged.stat()
        if (shown.st_dev, shown.st_ino) != (merged.st_dev, merged.st_ino):
            raise NoLayerError("the directory is not the restored one")
        root = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if any(mount.point != root for mount in mountinfo.mounts_under(root)):
            raise NoLayerError("another directory was restored inside it")

    def follower(self, fd: int, stage: Stage, *, everywhere: bool, wanted: Collection[Key]) -> Follower:
        """The follower of a walk over the layer's merged directory."""
        return changes_of(self.layer, stage, everywhere=everywhere, wanted=wanted)


@dataclass(frozen=True, slots=True)
class Since:
    """The changes to archive: those since `base`, if the changed files hold at most `max_bytes`."""

    base: Base
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Rules:
    """The request's rules for what is left out; `gitignore` is the sandbox's tree, if git's files count."""

    excludes: Sequence[str] = ()
    gitignore: Tree | None = None

    @property
    def leave_out(self) -> bool:
        """True if there are any."""
        return bool(self.excludes) or self.gitignore is not None


def stage_changes(
    fd: int,
    since: Since,
    folder: Path,
    *,
    uid: int,
    limits: Limits,
    rules: Rules,
    timeout_s: float,
    cancelled: threading.Event,
    listed: Listed | None = None,
    path_bytes: int | None = None,
) -> tuple[Survey, Stage]:
    """Stages in `folder`, which does not exist yet, what was changed in the directory `fd` since its base.

    The survey counts the staged files, and those that were looked at. `listed` is called with every entry of the
    directory, as in `survey`, if the base needs every file; else with none. `path_bytes` is as in `survey`.

    Raises:
        NoLayerError: the changes cannot be archived by themselves.
        TreeError, PathError: as `survey`.
    """
    deadline = time.monotonic() + timeout_s
    since.base.check(fd)
    wanted: Collection[Key] = ()
    if not since.base.needs_every_file:
        listed = None
    while True:
        stage = Stage(folder, uid, since.max_bytes, _checking(deadline))
        follower = since.base.follower(fd, stage, everywhere=rules.leave_out, wanted=wanted)
        try:
            found = survey(
                fd,
                limits=limits,
                excludes=rules.excludes,
                gitignore=rules.gitignore,
                cancelled=cancelled,
                timeout_s=max(0.0, deadline - time.monotonic()),
                listed=listed,
                follower=follower,
                path_bytes=path_bytes,
            )
        finally:
            follower.close()
        missing = stage.incomplete()
        if cancelled.is_set() or not missing or wanted:
            return found, stage
        wanted, listed = missing, None  # the second walk finds the same entries
        remove_tree(folder)


def _checking(deadline: float) -> Callable[[], None]:
    def check() -> None:
        if time.monotonic() > deadline:
            raise TreeError("What was changed could not be read in the time that commands may be paused.")

    return check
